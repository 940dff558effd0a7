"""A transformer between tower and language model that merges tokens as it goes (SimVLG, Jian et al. 2023, arXiv:2310.03291)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.models.build import Build
from diptych.models.connectors.base import Connector
from diptych.models.layers.attention import Activation, Attention, Block, Transformer
from diptych.models.layers.merging import match, merged, rates_of


class GradualMerging(Connector):
    """A linear map, positions and a norm, then blocks that normalise sums (BERT's), each of which merges ``merge`` tokens between
    attention and MLP by the similarity of their keys; then a linear map (§3). All of it learns by the next-token loss alone.

    Checked with the authors' code (its later name is EVLGen): 12 blocks of BERT-base, 19 of 257 tokens in each, so that 29 are
    left; merged tokens are plain means, and attention does not count how many patches a token stands for. The tower's class tokens
    are read too and never merged. width: of the blocks; None: the tower's.
    """

    unplaced = True

    def __init__(
        self,
        build: Build,
        *,
        merge: Annotated[int, Field(ge=1)] = 19,
        depth: Annotated[int, Field(ge=1)] = 12,
        width: Annotated[int, Field(ge=1)] | None = None,
        heads: Annotated[int, Field(ge=1)] | None = None,
        hidden: Annotated[int, Field(ge=1)] | None = None,
        activation: Activation = "gelu",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        eps: float = 1e-12,
    ):
        super().__init__(build)
        own, heads = width or self.image_width, heads or max(1, (width or self.image_width) // 64)
        build.require(own % heads == 0, f"heads: {heads} does not divide the width {own}")
        patches = self.tokens
        self.rates = rates_of(patches, depth, merge)
        self.tokens = self.extra + patches - sum(self.rates)
        self.enter, self.leave = nn.Linear(self.image_width, own), nn.Linear(own, self.width)
        self.positions = nn.Parameter(torch.randn(self.extra + patches, own) * 0.02)
        self.norm, self.dropout = nn.LayerNorm(own, eps), nn.Dropout(dropout)
        self.transformer = Transformer(
            own, depth, heads, activation=activation, dropout=dropout, hidden=hidden, eps=eps, post_norm=True
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, extra + N − merged, D of the language model]"""
        x = self.dropout(self.norm(self.enter(x) + self.positions))
        for block, r in zip(self.transformer.blocks, self.rates, strict=True):
            x = self.block(block, x, r)  # type: ignore[arg-type]
        x = self.leave(x)
        return x

    def block(self, block: Block, x: Tensor, r: int) -> Tensor:
        """One block: x [B, n, D] → [B, n − r, D]."""
        attention, e = block.attention, self.extra
        assert isinstance(attention, Attention)
        k, v = attention.read(x)
        x = block.norm1(x + block.dropout(attention.look(x, k, v)))
        matching = match(k.mean(1)[:, e:], r, first=e % 2)
        patches, _ = merged(x[:, e:], torch.ones_like(x[:, e:, :1]), matching)
        x = torch.cat([x[:, :e], patches], 1)
        x = block.norm2(x + block.dropout(block.mlp(x)))
        return x
