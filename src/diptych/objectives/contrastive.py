"""Contrastive objectives: pairs that belong together against the rest of the batch.

Shapes: B batch, E embedding, M further texts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.models.passes import Pass
    from diptych.models.vlm import VLM


def same_meaning(meaning: Tensor | None) -> Tensor | None:
    """[B, B] bool, True where i ≠ j say the same: these are no negatives of each other. None if there are none."""
    if meaning is None:
        return None
    same = (meaning[:, None] == meaning[None, :]).fill_diagonal_(False)
    return same if bool(same.any()) else None


def info_nce(
    image: Tensor, text: Tensor, scale: Tensor | float, meaning: Tensor | None = None, negatives: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE (Oord et al. 2018; CLIP, Radford et al. 2021, figure 3).

    image, text: [B, E] unit vectors, row i of both belonging together; scale: 1 / temperature; meaning: [B], rows that mean the
    same are left out of each other's denominator; negatives: [M, E] texts that match no image and stand as extra columns of the
    image-to-text side (NegCLIP, Yuksekgonul et al. 2023).
    """
    logits = scale * image @ text.T  # [B, B]
    same = same_meaning(meaning)
    if same is not None:
        logits = logits.masked_fill(same, float("-inf"))
    columns = logits if negatives is None else torch.cat([logits, scale * image @ negatives.T], dim=1)  # [B, B + M]
    target = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(columns, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    meaning: Tensor | None = None,
    negatives: Tensor | None = None,
) -> Tensor:
    """Pairwise sigmoid loss, −1/B Σ_ij log σ(z_ij (scale · x_i·y_j + bias)), z = 1 on the diagonal, else −1 (SigLIP, Zhai et al. 2023, eq. 1)."""
    logits = scale * image @ text.T + bias
    sign = 2 * torch.eye(len(image), device=image.device) - 1
    terms = F.logsigmoid(sign * logits)
    same = same_meaning(meaning)
    if same is not None:
        terms = terms.masked_fill(same, 0.0)
    total = terms.sum()
    if negatives is not None:
        total = total + F.logsigmoid(-(scale * image @ negatives.T + bias)).sum()
    return -total / len(image)


def negative_embeddings(p: Pass) -> Tensor | None:
    """The batch's hard negative texts in the shared space, [B, E]."""
    batch = p.batch
    if batch.negatives is None or batch.negatives_mask is None:
        return None
    return p.with_text(batch.negatives, batch.negatives_mask, batch.negative_captions).text_embedding


class InfoNCE(Objective):
    """``info_nce`` with CLIP's learned scale: starts at 1/0.07, never above 100. hard_negatives: each caption's wrong twin as extra columns."""

    couples_batch = True
    needs = ("vision", "text")

    def __init__(self, model: VLM, *, temperature: float = 0.07, max_scale: float = 100.0, hard_negatives: bool = False):
        super().__init__(model)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.max_log_scale = math.log(max_scale)
        self.hard_negatives = hard_negatives

    @property
    def scale(self) -> Tensor:
        return self.logit_scale.clamp(max=self.max_log_scale).exp()

    def forward(self, p: Pass) -> Tensor:
        negatives = negative_embeddings(p) if self.hard_negatives else None
        return info_nce(p.image_embedding, p.text_embedding, self.scale, p.batch.meaning, negatives)

    def metrics(self) -> dict[str, float]:
        return {"scale": self.scale.item()}


class Sigmoid(Objective):
    """``sigmoid_loss`` with learned scale and bias, from 10 and −10 as in the paper."""

    couples_batch = True
    needs = ("vision", "text")

    def __init__(self, model: VLM, *, scale: float = 10.0, bias: float = -10.0, hard_negatives: bool = False):
        super().__init__(model)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.logit_bias = nn.Parameter(torch.tensor(bias))
        self.hard_negatives = hard_negatives

    def forward(self, p: Pass) -> Tensor:
        negatives = negative_embeddings(p) if self.hard_negatives else None
        return sigmoid_loss(
            p.image_embedding, p.text_embedding, self.logit_scale.exp(), self.logit_bias, p.batch.meaning, negatives
        )

    def metrics(self) -> dict[str, float]:
        return {"scale": self.logit_scale.exp().item(), "bias": self.logit_bias.item()}
