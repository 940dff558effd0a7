"""Learned queries that read an image, one a region: GRAIN (Halbe et al. 2024, arXiv:2412.04429), as DETR (Carion et
al. 2020, arXiv:2005.12872) does.

Shapes: B images, Q region queries, D width, E embedding.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.layers.attention import Transformer
from diptych.models.part import Part
from diptych.models.regions.anchors import best
from diptych.models.regions.boxes import to_corners
from diptych.models.space import LinearSpace, unit


class RegionQueries(Part):
    """A decoder with ``queries`` region queries and one image query over the tower's tokens: each looks at the others and at the
    image, layer by layer. A head of three layers gives each region query's box.
    """

    def __init__(
        self,
        build: Build,
        *,
        queries: Annotated[int, Field(ge=1)] = 10,
        depth: int | None = None,
        heads: int | None = None,
        width: int | None = None,
    ):
        super().__init__()
        size, seen = build.size, build.width_of("vision")
        self.width = width or seen
        self.queries = nn.Parameter(torch.randn(queries + 1, self.width) * 0.5)
        self.transformer = Transformer(self.width, depth or size.depth, heads or size.heads, seen, size.activation)
        inner = self.width
        self.head = nn.Sequential(nn.Linear(inner, inner), nn.ReLU(), nn.Linear(inner, inner), nn.ReLU(), nn.Linear(inner, 4))

    @provides(("image.region_queries", "image.region_boxes"), "image.tokens")
    def read(self, image: Tokens) -> tuple[Tokens, Tensor]:
        """The region queries [B, Q, D] with the image query as the pooled vector [B, D], and boxes [B, Q, 4]."""
        x = self.transformer(self.queries.expand(len(image.tokens), -1, -1), context=image.tokens)
        regions = x[:, 1:]
        return Tokens(regions, x[:, 0]), to_corners(torch.sigmoid(self.head(regions).float()))

    @provides("text.box", "image.region_embedding", "image.region_boxes", "text.embedding")
    def box(self, regions: Tensor, boxes: Tensor, text: Tensor) -> Tensor:
        """The box of the region query that is most similar to the text, [B, 4]."""
        return best(torch.einsum("bqe,be->bq", regions, text), boxes)


class RegionSpace(LinearSpace):
    """A linear space in which an image is its image query, and each region query has an embedding by the same map."""

    def _image_tower(self, build: Build) -> Any:
        build.require(
            isinstance(build.parts.get("grounding"), RegionQueries), "needs the part grounding; set parts.grounding.kind: queries"
        )
        return _Queries(build.width_of("grounding"))

    @provides("{image}.embedding", "{image}.region_queries")
    def image_embedding(self, tokens: Tokens) -> Tensor:
        """[B, E]"""
        return unit(self.image(tokens.pooled))

    @provides("{image}.region_embedding", "{image}.region_queries")
    def region_embedding(self, tokens: Tokens) -> Tensor:
        """[B, Q, E]"""
        return unit(self.image(tokens.tokens))


class _Queries:
    """What a projection asks of a tower."""

    projection = "linear"

    def __init__(self, width: int):
        self.width = width
