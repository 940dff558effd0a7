"""Token by token: linear (LLaVA, Liu et al. 2023) or linear, GELU, linear (LLaVA 1.5, Liu et al. 2024); or the pooled vector alone
(Frozen, Tsimpoukelli et al. 2021).
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.models.build import Build
from diptych.models.connectors.base import Connector, perceptron


class MLP(Connector):
    """norm: on the tower's tokens first, since feature maps of convolutional towers have no fixed scale; LLaVA's own has none."""

    placed = True
    unplaced = True
    token_wise = True

    def __init__(self, build: Build, *, depth: int = 2, width: int | None = None, norm: bool = True):
        super().__init__(build)
        build.require(depth >= 1, f"depth must be at least 1, got {depth}")
        self.norm: nn.Module = nn.LayerNorm(self.image_width) if norm else nn.Identity()
        self.layers = perceptron(self.image_width, self.width, depth, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, N, D of the language model]"""
        x = self.layers(self.norm(self.patches(x)))
        return x


class Linear(MLP):
    """One linear layer (LLaVA, Liu et al. 2023)."""

    def __init__(self, build: Build, *, norm: bool = True):
        super().__init__(build, depth=1, norm=norm)


class PerTower(Connector):
    """For a vision part of kind ``joined``: a linear layer for the channels of each tower, their outputs side by side, GELU, and a
    linear layer over all (DeepSeek-VL, Lu et al. 2024, arXiv:2403.05525, §3.1).
    """

    def __init__(self, build: Build):
        super().__init__(build)
        widths = getattr(build.parts["vision"], "widths", None)
        build.require(widths is not None, "it has a layer for each of several towers; set parts.vision.kind: joined")
        assert widths is not None
        self.widths: list[int] = list(widths)
        n = len(self.widths)
        out = [self.width // n + (i < self.width % n) for i in range(n)]
        self.first = nn.ModuleList(nn.Linear(a, b) for a, b in zip(self.widths, out, strict=True))
        self.layer = nn.Linear(self.width, self.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, all widths] → [B, N, D of the language model]"""
        each = self.patches(x).split_with_sizes(self.widths, 2)
        x = self.layer(F.gelu(torch.cat([layer(part) for layer, part in zip(self.first, each, strict=True)], 2)))
        return x


class LinearNorm(Connector):
    """A linear layer, dropout, then a LayerNorm, so that image tokens have the size of word vectors whatever was learned (MAGMA,
    Eichenberg et al. 2022, arXiv:2112.05253, §3.1; dropout 0.1 is the paper's).
    """

    unplaced = True
    token_wise = True

    def __init__(self, build: Build, *, dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1):
        super().__init__(build)
        self.layer = nn.Linear(self.image_width, self.width)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(self.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, N, D of the language model]"""
        x = self.norm(self.dropout(self.layer(self.patches(x))))
        return x


class Pooled(Connector):
    """The tower's pooled vector by one linear map to ``tokens`` vectors of the language model (Frozen, Tsimpoukelli et al. 2021,
    §3.1; n = 2 in the paper). norm: a LayerNorm first; the paper has none.
    """

    unplaced = True

    def __init__(self, build: Build, *, tokens: Annotated[int, Field(ge=1)] = 2, norm: bool = False):
        super().__init__(build)
        self.tokens = tokens
        self.norm: nn.Module = nn.LayerNorm(self.image_width) if norm else nn.Identity()
        self.layer = nn.Linear(self.image_width, tokens * self.width)

    def prefix(self, image: Tokens) -> Tensor:
        """What the language model reads of an image, [B, tokens, D]."""
        return self(image.pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled vectors [B, D of the tower] → [B, tokens, D of the language model]"""
        x = torch.unflatten(self.layer(self.norm(x)), 1, (self.tokens, self.width))
        return x
