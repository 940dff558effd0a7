"""How much a model attends to each frame of a clip for a text, where the objective that scores says so (``frame_weights``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.data.fields.video import FRAMES, spread

if TYPE_CHECKING:
    from diptych.core.capabilities import Image
    from diptych.inference.run import TrainedModel

AT_ONCE = 32


def frame_weights(trained: TrainedModel, clips: Sequence[Image], texts: Sequence[str]) -> list[np.ndarray] | None:
    """For each clip with its text (aligned) the weights of its frames, float32 [frames], adding up to 1; frames that the model does
    not read have 0. None for a model that has no such weights.
    """
    weigh: Any = getattr(trained.scorer, "frame_weights", None)
    if weigh is None:
        return None
    own = trained.recipe.data.fields.get("video")
    read = int(getattr(own, "options", {}).get("frames", FRAMES))
    result = []
    for start in range(0, len(clips), AT_ONCE):
        part = clips[start : start + AT_ONCE]
        with trained._inference():
            shown, said = trained._images(part), trained._texts(texts[start : start + AT_ONCE])
            both = trained.model.encode(shown.batch.with_(**said.batch.fields)).renamed(trained.names)
            weights = weigh(both).float().cpu().numpy()
        for i, clip in enumerate(part):
            numbers = spread(len(clip), read)
            every = np.zeros(len(clip), dtype=np.float32)
            every[numbers] = weights[i, i, : len(numbers)]
            result.append(every)
    return result
