"""Masks of phrases (UFO, Tang et al. 2025; the losses of MaskFormer, Cheng et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.core.errors import DiptychError
from diptych.objectives.base import Objective
from diptych.objectives.regions.base import count_of, on_whole_images

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def dice(probability: Tensor, target: Tensor) -> Tensor:
    """1 − (2 Σ p·t + 1) / (Σ p + Σ t + 1) of each mask: [n]. probability, target: [n, H, W], 0 … 1."""
    both, sums = (probability * target).flatten(1).sum(1), (probability + target).flatten(1).sum(1)
    return 1 - (2 * both + 1) / (sums + 1)


class RegionMasks(Objective):
    """Binary cross-entropy plus ``dice`` of each phrase's mask, on the whole image. The regions must have masks
    (``data.fields.regions.masks: true``).

    dice: the weight of that loss.
    """

    needs = ("image.tokens", "regions")

    def __init__(self, model: VLM, *, dice: Annotated[float, Field(ge=0)] = 1.0):
        super().__init__(model)
        self.weight = dice
        if not model.graph.gives("text.mask_logits"):
            raise DiptychError("objective region_masks trains masks, which no part gives; set parts.grounding.kind: mask_tokens")

    def forward(self, p: Pass) -> Tensor:
        """The mean loss of the regions of a batch, a scalar."""
        masks = p["regions"].masks
        if masks is None:
            raise DiptychError(
                "objective region_masks: the regions have no masks; set data.fields.regions: {kind: regions, masks: true}"
            )
        logits = on_whole_images(p)["text.mask_logits"]
        target = F.adaptive_avg_pool2d(masks[:, None].float(), logits.shape[-1])[:, 0]
        cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1)
        return (cross + self.weight * dice(logits.sigmoid(), target)).mean()

    def terms(self, p: Pass) -> int:
        """The regions."""
        return count_of(p)
