"""Wrong phrases of regions, and phrases against each other (FG-CLIP, Xie et al. 2025, arXiv:2505.05071; FG-CLIP 2,
arXiv:2510.10921).

Shapes: n regions, m wrong phrases of all regions together, E embedding, R the regions that this process computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.core.errors import DiptychError
from diptych.objectives.base import Objective, Scaled
from diptych.objectives.contrastive import info_nce
from diptych.objectives.regions.base import count_of, meaning_of, share_of

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

MARGINS = (0.0, 10.0)  # between which the margin of the ranking loss is kept, in scaled similarity


def own_cross_entropy(right: Tensor, wrong: Tensor, owner: Tensor) -> Tensor:
    """−log p(right phrase) among it and the wrong versions of it, for each region that has any: [k].

    right: [n] scaled similarity of each region and its phrase; wrong: [m] of a region and one of its wrong phrases; owner: [m]
    region of each.
    """
    has = torch.bincount(owner, minlength=len(right)) > 0
    rows = torch.cat([torch.arange(len(right), device=right.device), owner])
    logits = torch.cat([right, wrong])
    top = torch.full_like(right, -math.inf).scatter_reduce(0, rows, logits.detach(), "amax")
    total = torch.zeros_like(right).index_add(0, rows, (logits - top[rows]).exp())
    return (total.log() + top - right)[has]


def margin_ranking(right: Tensor, wrong: Tensor, owner: Tensor, margin: Tensor | float) -> Tensor:
    """The mean of max(0, wrong − right + margin) over wrong phrases; arguments as in ``own_cross_entropy``."""
    return F.relu(wrong - right[owner] + margin).mean()


class RegionNegatives(Scaled):
    """A region must find its phrase among wrong versions of it, such as with one attribute changed
    (``data.fields.regions.negatives`` says how many). A weighted sum of up to three losses:

    own: cross-entropy over the phrase and its own wrong versions (FG-CLIP: 1, FG-CLIP 2: 3). columns: ``info_nce`` of regions and
    phrases with the wrong phrases of all regions as further columns (FG-CLIP 2: 0.6). rank: a hinge, by which each wrong phrase
    must be less similar by a margin: what the mean difference was in the step before, within 0 … 10 (FG-CLIP 2: 0.4; CE-CLIP).
    temperature, max_scale, scale_of: of the learned scale, as in ``region_contrast``.
    """

    couples = ("regions.embedding", "regions.phrases.embedding", "regions.negatives.embedding")
    needs = ("regions",)
    margin: Tensor

    def __init__(
        self,
        model: VLM,
        *,
        own: Annotated[float, Field(ge=0)] = 1.0,
        columns: Annotated[float, Field(ge=0)] = 0.0,
        rank: Annotated[float, Field(ge=0)] = 0.0,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        scale_of: str = "",
    ):
        super().__init__(model, temperature=temperature, max_scale=max_scale)
        if not own + columns + rank:
            raise DiptychError("objective region_negatives: own, columns and rank are all 0; give one of them a weight")
        self.own, self.columns, self.rank, self.scale_of = own, columns, rank, scale_of
        self.register_buffer("margin", torch.zeros(()))
        self._next: Tensor | None = None
        self.right = 0.0

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar; 0 if none of its phrases has a wrong version."""
        if not count_of(p) or p["regions"].negatives is None:
            return self.scale * 0
        image, text, wrong = (p[name].float() for name in self.couples)
        regions, (rows, weight) = p["regions"], share_of(p)
        owner = regions.negatives.owner
        with torch.autocast(image.device.type, enabled=False):
            scale = self.scale
            here = (owner >= rows.start) & (owner < rows.stop)
            mine, of = wrong[here], owner[here] - rows.start
            right = scale * (image[rows] * text[rows]).sum(-1)
            hard = scale * (image[rows][of] * mine).sum(-1)
            loss = image.sum() * 0
            if self.own and len(of):
                loss = loss + self.own * own_cross_entropy(right, hard, of).mean()
            if self.columns:
                loss = loss + self.columns * info_nce(image, text, scale, meaning_of(regions.phrases), wrong, p.rows and rows)
            if self.rank and len(of):
                loss = loss + self.rank * margin_ranking(right, hard, of, self.margin)
        if torch.is_grad_enabled() and len(of):
            self._next = (right[of].mean() - hard.mean()).detach().clamp(*MARGINS)
            self.right = float((right[of] > hard).float().mean())
        result: Tensor = loss * weight
        return result

    def after_step(self, total: Callable[..., list[float]]) -> None:
        """Limit the scale; the margin of the next step is the mean difference in this one, over all processes."""
        super().after_step(total)
        value, count = total(0.0 if self._next is None else float(self._next), float(self._next is not None))
        if count:
            self.margin.fill_(value / count)
        self._next = None

    def metrics(self) -> dict[str, float]:
        """The scale, and the share of wrong phrases that are less similar than the right one."""
        return {**super().metrics(), "right": self.right}


def nearest_phrases(text: Tensor, most: int, same: float) -> Tensor:
    """log Σ exp(cosine) over each phrase's ``most`` most similar other ones, of those whose cosine is at most ``same``: [n]. text:
    [n, E] unit vectors. A phrase without any gives 0.
    """
    cosines = text @ text.T
    apart = (cosines <= same) & ~torch.eye(len(text), dtype=torch.bool, device=text.device)
    values = cosines.masked_fill(~apart, -math.inf).topk(min(most, len(text)), 1).values
    has = values[:, :1].isfinite()
    return torch.where(has, values, values.new_zeros(())).masked_fill(~values.isfinite() & has, -math.inf).logsumexp(1) * has[:, 0]


class PhraseContrast(Objective):
    """Phrases of regions away from their nearest ones (FG-CLIP 2, §3.2, "textual intra-modal contrast"): the mean of
    ``nearest_phrases``. most: 10 in the paper. same: phrases with a greater cosine count as the same and are left out (0.95).
    """

    couples = ("regions.phrases.embedding",)
    needs = ("regions",)

    def __init__(self, model: VLM, *, most: Annotated[int, Field(ge=1)] = 10, same: Annotated[float, Field(gt=0, le=1)] = 0.95):
        super().__init__(model)
        self.most, self.same = most, same

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar; 0 if there are no regions."""
        text = p[self.couples[0]].float()
        if not count_of(p):
            result: Tensor = text.sum() * 0
            return result
        rows, weight = share_of(p)
        return nearest_phrases(text, self.most, self.same)[rows].mean() * weight
