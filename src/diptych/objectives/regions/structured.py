"""Contrast that has to keep wrong versions of captions apart: CE-CLIP (Zhang et al. 2024, arXiv:2306.08832) and Structure-CLIP
(Huang et al. 2024, arXiv:2305.06152).

Shapes: B samples, m wrong captions of all of them, E embedding, R the samples that this process answers for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.core.encodings import IMAGE_EMBEDDING, TEXT_EMBEDDING
from diptych.objectives.base import Objective, Scaled
from diptych.objectives.contrastive import info_nce, meanings, same_meaning

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def within_text(right: Tensor, wrong: Tensor, owner: Tensor) -> Tensor:
    """CE-CLIP's contrast within the text (equation 4): −log(e^right / Σ_k e^wrong_k) of each caption that has a wrong version: [k].

    right: [n] scaled similarity of image and caption; wrong: [m] of a caption and one of its wrong versions; owner: [m].
    """
    has = torch.bincount(owner, minlength=len(right)) > 0
    top = torch.full_like(right, float("-inf")).scatter_reduce(0, owner, wrong.detach(), "amax")
    total = torch.zeros_like(right).index_add(0, owner, (wrong - top[owner]).exp())
    return (total[has].log() + top[has]) - right[has]


class WrongCaptions(Scaled):
    """CE-CLIP's loss: ``info_nce`` with the wrong captions of all samples as further columns, plus ``text`` times ``within_text``,
    plus ``rank`` times a hinge: a wrong caption must be less similar to the image than the right one by a margin, which is what the
    mean difference was in the step before, for each kind on its own, within 0 … 10.

    Field ``wrong``. text: 0.2 in the paper; rank: 0.4. Captions that mean the same are not negatives.
    """

    couples = ("image.embedding", "text.embedding", "wrong.embedding")
    needs = ("text", "wrong")
    margins: Tensor

    def __init__(
        self,
        model: VLM,
        *,
        text: Annotated[float, Field(ge=0)] = 0.2,
        rank: Annotated[float, Field(ge=0)] = 0.4,
        kinds: Annotated[int, Field(ge=1)] = 4,
        temperature: float = 0.07,
        max_scale: float = 100.0,
    ):
        super().__init__(model, temperature=temperature, max_scale=max_scale)
        self.text, self.rank, self.kinds = text, rank, kinds
        self.register_buffer("margins", torch.zeros(kinds))
        self._next: tuple[Tensor, Tensor] | None = None

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        image, text = p[IMAGE_EMBEDDING], p[TEXT_EMBEDDING]
        wrong = p["wrong.embedding"] if p.has("wrong.embedding") else text[:0]
        rows = p.rows or slice(0, p.size)
        with torch.autocast(image.device.type, enabled=False):
            scale = self.scale
            loss = info_nce(image, text, scale, meanings(p, "mask"), wrong if len(wrong) else None, p.rows)
            if not len(wrong):
                return loss
            owner, kinds = p["wrong"].owner, p["wrong"].kinds
            here = (owner >= rows.start) & (owner < rows.stop)
            of, kind = owner[here] - rows.start, kinds[here]
            if not len(of):
                return loss
            right = scale * (image[rows] * text[rows]).sum(-1)
            hard = scale * (image[rows][of] * wrong[here]).sum(-1)
            inside = scale * (text[rows][of] * wrong[here]).sum(-1)
            loss = loss + self.text * within_text(right, inside, of).mean()
            loss = loss + self.rank * F.relu(hard - right[of] + self.margins[kind]).mean()
        if torch.is_grad_enabled():
            apart = (right[of] - hard).detach()
            zeros = torch.zeros_like(self.margins)
            self._next = zeros.index_add(0, kind, apart), zeros.index_add(0, kind, torch.ones_like(apart))
        return loss

    def after_step(self, total: Callable[..., list[float]]) -> None:
        """Limit the scale; the margins of the next step are this one's mean differences, over all processes."""
        super().after_step(total)
        sums, counts = (torch.zeros(self.kinds),) * 2 if self._next is None else self._next
        values = torch.tensor(total(*sums.tolist(), *counts.tolist()))
        mean = values[: self.kinds] / values[self.kinds :].clamp(min=1)
        seen = values[self.kinds :] > 0
        self.margins.copy_(torch.where(seen.to(self.margins.device), mean.clamp(0, 10).to(self.margins.device), self.margins))
        self._next = None


def hinge(image: Tensor, text: Tensor, margin: float, meaning: Tensor | None = None, rows: slice | None = None) -> Tensor:
    """The mean of max(0, margin + s(wrong) − s(right)) over all other texts of each image and all other images of each text, half
    each.

    image, text: [B, E] unit vectors; meaning: [B], rows that mean the same are no negatives. rows: only these are queries.
    """
    own = slice(0, len(image)) if rows is None else rows
    right = (image[own] * text[own]).sum(-1, keepdim=True)
    index = torch.arange(own.start, own.stop, device=image.device)
    wrong = torch.arange(len(image), device=image.device) != index[:, None]
    same = same_meaning(meaning, rows)
    wrong = wrong if same is None else wrong & ~same
    losses = [F.relu(margin + a[own] @ b.T - right) * wrong for a, b in ((image, text), (text, image))]
    return (losses[0] + losses[1]).sum() / (2 * wrong.sum().clamp(min=1))


class Hinge(Objective):
    """Structure-CLIP's loss: ``hinge`` over the batch, plus ``wrong`` times max(0, wrong_margin − (s(image, caption) − s(image,
    wrong caption))) of each caption that has a wrong version (field ``negatives``: words swapped).
    """

    couples = ("image.embedding", "text.embedding", "negatives.embedding")
    needs = ("text", "negatives?")

    def __init__(
        self,
        model: VLM,
        *,
        margin: Annotated[float, Field(gt=0)] = 0.2,
        wrong_margin: Annotated[float, Field(gt=0)] = 0.1,
        wrong: Annotated[float, Field(ge=0)] = 1.0,
    ):
        super().__init__(model)
        self.margin, self.wrong_margin, self.wrong = margin, wrong_margin, wrong

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        image, text = p[IMAGE_EMBEDDING], p[TEXT_EMBEDDING]
        with torch.autocast(image.device.type, enabled=False):
            loss = hinge(image, text, self.margin, meanings(p, "mask"), p.rows)
            if not p.has("negatives.embedding") or not len(wrong := p["negatives.embedding"]):
                return loss
            owner = p["negatives"].owner
            rows = p.rows or slice(0, p.size)
            here = (owner >= rows.start) & (owner < rows.stop)
            if not here.any():
                return loss
            of = owner[here]
            apart = (image[of] * (text[of] - wrong[here])).sum(-1)
            return loss + self.wrong * F.relu(self.wrong_margin - apart).mean()
