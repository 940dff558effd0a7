"""Region queries matched one to one to the boxes of an image (GRAIN).

Shapes: B images, Q queries, n regions of all images, k matched pairs, E embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from diptych.models.regions.boxes import assigned, box_losses, match_cost
from diptych.models.regions.weights import owners
from diptych.objectives.base import Scaled
from diptych.objectives.contrastive import info_nce
from diptych.objectives.regions.base import count_of, meaning_of
from diptych.objectives.scores import Score

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def matched(proposed: Tensor, boxes: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """The assignment of least cost (``match_cost``) within each image: the query and the region of each pair, int64 [k] each, in
    the order of the regions. proposed: [B, Q, 4]; boxes: [n, 4]; owner: [n]. An image with more regions than queries leaves some
    out.
    """
    queries, regions = [], []
    for image in sorted(set(owner.tolist())):
        own = (owner == image).nonzero()[:, 0]
        query, region = assigned(match_cost(proposed[image], boxes[own]))
        order = region.argsort()
        queries.append(query[order])
        regions.append(own[region[order]])
    return torch.cat(queries), torch.cat(regions)


class QueryRegions(Scaled):
    """GRAIN's region losses: ``info_nce`` of matched region queries and their phrases, over the whole batch, plus ``boxes`` times
    ℓ1 and 1 − GIoU of the matched boxes. Phrases that mean the same are not negatives.
    """

    couples = ("image.region_embedding", "image.region_boxes", "regions.phrases.embedding")
    needs = ("regions",)
    parts = ("grounding",)

    def __init__(
        self, model: VLM, *, temperature: float = 0.07, max_scale: float = 100.0, boxes: Annotated[float, Field(ge=0)] = 1.0
    ):
        super().__init__(model, temperature=temperature, max_scale=max_scale)
        self.boxes = boxes

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar; 0 if there are no regions."""
        image, proposed, text = (p[name].float() for name in self.couples)
        if not count_of(p):
            result: Tensor = (image.sum() + text.sum()) * 0 * self.scale
            return result
        regions = p["regions"]
        owner = owners(regions.owner, len(regions), image.device)
        query, region = matched(proposed, regions.boxes, owner)
        at = owner[region]
        rows, weight = None, 1.0
        if p.rows is not None:
            first, last = (int((at < edge).sum()) for edge in (p.rows.start, p.rows.stop))
            rows, weight = slice(first, last), (last - first) * p.size / (len(at) * (p.rows.stop - p.rows.start))
        own = rows or slice(0, len(at))
        with torch.autocast(image.device.type, enabled=False):
            loss = info_nce(image[at, query], text[region], self.scale, meaning_of(regions.phrases)[region], None, rows)
            boxes = box_losses(proposed[at, query][own], regions.boxes[region][own]).mean()
            return (loss + self.boxes * boxes) * weight


class BestRegion(Score):
    """The cosine of image and text plus that of the text and the region query nearest to it (GRAIN's zero-shot score)."""

    needs = ("image.embedding", "image.region_embedding", "text.embedding")
    scores_all = True

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for index tensors [P] into the batch: [P]."""
        image, regions, text = (p[name] for name in self.needs)
        best = torch.einsum("pqe,pe->pq", regions[images], text[texts]).amax(1)
        scores: Tensor = (image[images] * text[texts]).sum(-1) + best
        return scores

    def all_scores(self, p: Pass) -> Tensor:
        """Every image with every text, [M, N]."""
        image, regions, text = (p[name] for name in self.needs)
        scores: Tensor = image @ text.T + torch.einsum("mqe,ne->mnq", regions, text).amax(2)
        return scores
