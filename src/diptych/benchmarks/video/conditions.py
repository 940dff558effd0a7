"""What every score on clips is compared with, and the temporal gain.

Controls: ``one_frame``, the middle frame in the place of all; ``shuffled_frames``, the frames in a random order; ``reversed``, the
frames backwards; ``blind``, grey frames, so that only the text is left. The temporal gain of a metric, ``METRIC/gain``, is the
score with the frames in order minus that with shuffled ones, over the same items, with the interval of this paired difference.
(That much of the score of video models comes from single frames: Buch et al., arXiv:2206.01720; Lei et al., arXiv:2206.03428.)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.benchmarks.base import NotApplicable
from diptych.benchmarks.controls import blank
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.results import of_credits, shares
from diptych.core.capabilities import Image, Model
from diptych.core.streaming import Conversing

ORDERED = "correct"
CONTROLS = ("one_frame", "shuffled_frames", "reversed", "blind")
CONDITIONS = (ORDERED, *CONTROLS)
GAIN = "gain"


def shown(clip: Image, condition: str, name: str) -> Image:
    """A clip [frames, height, width, 3] as a condition shows it. name: of the item, which decides the order of shuffled frames; it
    is neither the true order nor the reverse where there are three frames or more.
    """
    n = len(clip)
    if condition == "one_frame":
        return clip[[n // 2] * n]
    if condition == "reversed":
        return clip[::-1]
    if condition == "blind":
        return blank(clip)
    if condition == "shuffled_frames":
        order, rng = list(range(n)), random.Random(f"frames of {name}")
        while n > 1 and order in (list(range(n)), list(range(n))[::-1]):
            rng.shuffle(order)
            if n == 2:
                break
        return clip[order]
    return clip


def need_clips(model: Model) -> None:
    """Raises NotApplicable for a model that is shown pictures."""
    if getattr(model, "shows", "image") != "video":
        also = f", and frames:{model.name} answers questions about its frames" if isinstance(model, Conversing) else ""
        raise NotApplicable(f"the model reads pictures; pooled:{model.name} reads clips frame by frame{also}")


def is_clip(image: Any) -> bool:
    """Whether an image of an item is a clip."""
    return isinstance(image, np.ndarray) and image.ndim == 4


def results_of(task: str, records: Sequence[Record]) -> list[Result]:
    """Each metric with its controls, then its temporal gain."""
    results = []
    for result in shares(task, records):
        results += [result, gain(task, result.metric, records)]
    return results


def gain(task: str, metric: str, records: Sequence[Record]) -> Result:
    """The score with frames in order minus that with shuffled frames, over the same items; its chance is 0."""
    rows = [r for r in records if metric in r["correct"]]
    differences = np.array([r["correct"][metric] - r["shuffled_frames"][metric] for r in rows], dtype=np.float64)
    return of_credits(task, f"{metric}/{GAIN}", differences, [r["cluster"] for r in rows], bounded=False, chance=0.0)


def attended(model: Model, clips: Sequence[Image], texts: Sequence[str]) -> list[Record]:
    """``{"frames": weights}`` for each clip with its text, for the report, of a model that says how much each frame counts; else
    empty records.
    """
    weigh = getattr(model, "frame_weights", None)
    found = None if weigh is None else weigh(clips, texts)
    return [{} for _ in clips] if found is None else [{"frames": weights} for weights in found]
