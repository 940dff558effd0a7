"""Time-order consistency (Bagad et al. 2023, *Test of Time*, arXiv:2301.02074, §4): clips run backwards are negatives.

Shapes: B clips, E embedding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.core.encodings import TEXT_EMBEDDING
from diptych.core.errors import DiptychError
from diptych.objectives.base import Scaled

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

Share = Annotated[float, Field(ge=0, le=1)]


def time_order_loss(
    video: Tensor,
    text: Tensor,
    back_video: Tensor,
    back_text: Tensor,
    scale: Tensor | float,
    same: float = 1.0,
    cross: float = 1.0,
    beta: float = 1.0,
    meaning: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE over clips and captions, and the same clips and captions run backwards: [B, E] each, unit vectors.

    same: the weight in the denominator of a pair's own backward version; cross: of the backward versions of others; beta: the
    weight of the loss of the backward pairs, relative to the forward ones. The loss is the weighted mean over all 2B queries of
    both directions. meaning: [B], others that mean the same are left out of the denominators.
    """
    B, device = len(video), video.device
    logits = scale * torch.cat([video, back_video]) @ torch.cat([text, back_text]).T  # [2B, 2B]
    weights = torch.full((B, B), cross, device=device, dtype=logits.dtype)
    weights.fill_diagonal_(same)
    ones = torch.ones_like(weights)
    blocks = torch.cat([torch.cat([ones, weights], 1), torch.cat([weights, ones], 1)])
    if meaning is not None:
        equal = (meaning[:, None] == meaning).fill_diagonal_(False)
        left_out = torch.cat([torch.cat([equal, torch.zeros_like(equal)], 1), torch.cat([torch.zeros_like(equal), equal], 1)])
        blocks = blocks.masked_fill(left_out, 0.0)
    logits = logits + torch.where(blocks > 0, blocks.clamp(min=1e-30).log(), -math.inf)
    target = torch.arange(2 * B, device=device)
    rows = torch.cat([torch.ones(B, device=device), torch.full((B,), beta, device=device)]).to(logits.dtype)
    both = F.cross_entropy(logits, target, reduction="none") + F.cross_entropy(logits.T, target, reduction="none")
    return (both * rows).sum() / (2 * rows.sum())


class TimeOrder(Scaled):
    """``time_order_loss``, with CLIP's learned scale. The caption of a clip that runs backwards is the sample's hard negative
    (field ``negatives``, one a sample, as ``scenes:clips?reversed=1`` gives it); its frames are those of the clip in reverse order.

    same, cross, beta: α_same, α_cross and β of the paper.
    """

    couples: tuple[str, ...] = ("video.embedding", "video.reversed_embedding", "text.embedding", "negatives.embedding")
    needs = ("text",)

    def __init__(
        self,
        model: VLM,
        *,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        same: Share = 1.0,
        cross: Share = 1.0,
        beta: Share = 1.0,
    ):
        super().__init__(model, temperature=temperature, max_scale=max_scale)
        self.same, self.cross, self.beta = same, cross, beta

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        video, back, text, wrong = p["video.embedding"], p["video.reversed_embedding"], p[TEXT_EMBEDDING], p["negatives.embedding"]
        if len(wrong) != len(video):
            raise DiptychError(
                f"time_order: {len(wrong)} captions of backward clips for {len(video)} clips; every clip needs one, as "
                "scenes:clips?reversed=1 gives them"
            )
        with torch.autocast(video.device.type, enabled=False):
            return time_order_loss(video, text, back, wrong, self.scale, self.same, self.cross, self.beta, p["text"].meaning)
