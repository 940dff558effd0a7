"""The box of a phrase, from the whole image (X-VLM, Zeng et al. 2022, §3.3, "bounding box prediction")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diptych.core.errors import DiptychError
from diptych.models.regions.boxes import box_losses, iou
from diptych.objectives.base import Objective
from diptych.objectives.regions.base import count_of, on_whole_images

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


class Boxes(Objective):
    """ℓ1 of centre, width and height plus 1 − GIoU (``box_losses``) between each phrase's true box and ``text.box``, for any part
    that gives it. The log shows the share of boxes with an IoU of at least a half, of the last batch.
    """

    needs = ("image.tokens", "regions")
    parts = ("grounding",)

    def __init__(self, model: VLM):
        super().__init__(model)
        self.right = 0.0
        if not model.graph.gives("text.box"):
            raise DiptychError(
                "objective boxes trains the box of a text, which parts.grounding does not give; set parts.grounding.kind: box"
            )

    def forward(self, p: Pass) -> Tensor:
        """The mean loss of the regions of a batch, a scalar."""
        predicted, true = on_whole_images(p)["text.box"], p["regions"].boxes
        with torch.no_grad():
            self.right = float((iou(predicted, true) >= 0.5).float().mean())
        return box_losses(predicted, true).mean()

    def terms(self, p: Pass) -> int:
        """The regions."""
        return count_of(p)

    def metrics(self) -> dict[str, float]:
        """The share of right boxes."""
        return {"right": self.right}
