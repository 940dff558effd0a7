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
    owner: Tensor | None = None,
    meaning: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE over clips and captions [B, E], and M of the same clips and captions run backwards [M, E]; unit vectors.

    same: the weight in the denominator of a pair's own backward version; cross: of the backward versions of others; beta: the
    weight of the loss of the backward pairs, relative to the forward ones. The loss is the weighted mean over all queries of both
    directions. owner: the pair that each backward pair belongs to, [M]; None: every pair has one, in the same order. meaning: [B],
    others that mean the same are left out of each other's denominators.
    """
    B, device = len(video), video.device
    forward = torch.arange(B, device=device)
    of = torch.cat([forward, forward if owner is None else owner])  # the pair of each row and column
    backward = torch.arange(len(of), device=device) >= B
    logits = scale * torch.cat([video, back_video]) @ torch.cat([text, back_text]).T  # [B + M, B + M]
    crossed = backward[:, None] != backward
    own = of[:, None] == of
    weights = torch.ones_like(logits).masked_fill(crossed & own, same).masked_fill(crossed & ~own, cross)
    if meaning is not None:
        equal = (meaning[of][:, None] == meaning[of]) & ~own & ~crossed
        weights = weights.masked_fill(equal, 0.0)
    logits = logits + torch.where(weights > 0, weights.clamp(min=1e-30).log(), -math.inf)
    target = torch.arange(len(of), device=device)
    rows = torch.ones_like(logits[0]).masked_fill(backward, beta)
    both = F.cross_entropy(logits, target, reduction="none") + F.cross_entropy(logits.T, target, reduction="none")
    return (both * rows).sum() / (2 * rows.sum())


class TimeOrder(Scaled):
    """``time_order_loss``, with CLIP's learned scale. The caption of a clip that runs backwards is the sample's hard negative
    (field ``negatives``, as ``scenes:clips?actions=…&backwards=1`` gives it); its frames are those of the clip in reverse order.
    Clips without such a caption have no backward version.

    same, cross, beta: α_same, α_cross and β of the paper.
    """

    couples: tuple[str, ...] = ("video.embedding", "video.reversed_embedding", "text.embedding", "negatives.embedding")
    needs = ("text", "negatives")

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
        video, back, text = p["video.embedding"], p["video.reversed_embedding"], p[TEXT_EMBEDDING]
        own = p.alone
        given = own["negatives"] if own.has("negatives") else None
        if given is None:
            owner = torch.zeros(0, dtype=torch.long, device=video.device)
        else:
            owner = torch.arange(len(given), device=video.device) if given.owner is None else given.owner
        # Gathered here: a process without backward captions has no such field, and then the whole batch has none either.
        owner = p.everyones(owner + (0 if p.rows is None else p.rows.start))
        wrong = p["negatives.embedding"] if len(owner) else text[:0]
        with torch.autocast(video.device.type, enabled=False):
            return time_order_loss(
                video, text, back[owner], wrong, self.scale, self.same, self.cross, self.beta, owner, p["text"].meaning
            )
