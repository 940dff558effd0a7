"""A small transformer between two frozen models: learned constant tokens read the image (MAPL)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.models.build import Build
from diptych.models.connectors.base import Connector
from diptych.models.layers.attention import Activation, Transformer


class Mapping(Connector):
    """Image tokens through a linear map to a small width, ``tokens`` learned constants behind them, a transformer over both; what
    the constants have become goes through a linear map to the language model (Mañas et al. 2023, arXiv:2210.07179, §3.2).

    width: inside; hidden: of the transformer's MLPs; None: twice the width. The defaults are the paper's (4 layers, 8 heads, 32
    constants, width 256). Checked with the authors' code: blocks normalise first, and no norm follows the last block.
    """

    def __init__(
        self,
        build: Build,
        *,
        tokens: Annotated[int, Field(ge=1)] = 32,
        width: Annotated[int, Field(ge=1)] = 256,
        depth: Annotated[int, Field(ge=1)] = 4,
        heads: Annotated[int, Field(ge=1)] = 8,
        hidden: Annotated[int, Field(ge=1)] | None = None,
        activation: Activation = "relu",
    ):
        super().__init__(build)
        build.require(width % heads == 0, f"heads: {heads} does not divide the width {width}")
        self.tokens = tokens
        self.down, self.up = nn.Linear(self.image_width, width), nn.Linear(width, self.width)
        self.constants = nn.Parameter(torch.randn(tokens, width))
        self.transformer = Transformer(width, depth, heads, activation=activation, hidden=hidden or 2 * width, bare=True)
        self.transformer.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, tokens, D of the language model]"""
        x = self.down(self.patches(x))
        x = torch.cat([x, self.constants.to(x.dtype).expand(len(x), -1, -1)], 1)
        x = self.up(self.transformer(x)[:, -self.tokens :])
        return x
