"""Fewer tokens without learned queries: neighbours averaged or concatenated, or similar tokens merged."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.models.build import Build
from diptych.models.connectors.base import Connector, perceptron
from diptych.models.layers.merging import match, merged


class Average(Connector):
    """Mean over ``factor`` × ``factor`` patches, then linear (the ablation of Ak et al., section 4.4)."""

    placed = True

    def __init__(self, build: Build, *, factor: int = 2, depth: int = 1):
        super().__init__(build)
        self.factor = factor
        self.tokens = self.divided(build, factor) ** 2
        self.norm = nn.LayerNorm(self.image_width)
        self.layers = perceptron(self.image_width, self.width, depth)

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, N / factor², D of the language model]"""
        x = F.avg_pool2d(self.square(x), self.factor).flatten(2).transpose(1, 2)
        x = self.layers(self.norm(x))
        return x


def side_by_side(x: Tensor, factor: int) -> Tensor:
    """[B, s², D] → [B, (s/f)², f²·D]: each token is f × f neighbours, row by row (space to depth)."""
    s = int(x.shape[1] ** 0.5)
    x = torch.unflatten(x, 1, (s // factor, factor, s // factor, factor))  # [B, y, fy, x, fx, D]
    return x.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


class Downsample(Connector):
    """2 × 2 neighbours concatenated, a norm and an MLP (VILA, Lin et al. 2024)."""

    placed = True

    def __init__(self, build: Build, *, factor: int = 2, depth: int = 2):
        super().__init__(build)
        self.factor = factor
        self.tokens = self.divided(build, factor) ** 2
        self.norm = nn.LayerNorm(factor**2 * self.image_width)
        self.layers = perceptron(factor**2 * self.image_width, self.width, depth)

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, N / factor², D of the language model]"""
        x = self.layers(self.norm(side_by_side(self.patches(x), self.factor)))
        return x


class Neighbours(Connector):
    """``together`` tokens that follow each other in a row are concatenated, and one linear layer (MiniGPT-v2, Chen et al. 2023,
    arXiv:2310.09478, §2: 4 of them).
    """

    def __init__(self, build: Build, *, together: Annotated[int, Field(ge=1)] = 4):
        super().__init__(build)
        build.require(self.tokens % together == 0, f"together: {together} does not divide the {self.tokens} patches")
        self.together, self.tokens = together, self.tokens // together
        self.layer = nn.Linear(together * self.image_width, self.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, N / together, D of the language model]"""
        x = self.patches(x)
        x = self.layer(x.reshape(len(x), self.tokens, self.together * self.image_width))
        return x


class PixelShuffle(Connector):
    """Space to depth and one linear layer without bias (Idefics3, Laurençon et al. 2024; SmolVLM)."""

    placed = True

    def __init__(self, build: Build, *, factor: int = 2):
        super().__init__(build)
        self.factor = factor
        self.tokens = self.divided(build, factor) ** 2
        self.layer = nn.Linear(factor**2 * self.image_width, self.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, N / factor², D of the language model]"""
        x = self.layer(side_by_side(self.patches(x), self.factor))
        return x


def merge(x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Merge the r most similar pairs of tokens (ToMe, Bolya et al. 2023, section 3.1: bipartite soft matching).

    x [B, N, D]; size [B, N, 1], how many patches each token represents; r at most N // 2 → [B, N − r, D] and sizes.
    """
    return merged(x, size, match(x, r))


class Merge(Connector):
    """Similar tokens are merged until ``tokens`` are left, then an MLP (token merging, as in SimVLG, Jian et al. 2023)."""

    unplaced = True
    at_most = True

    def __init__(self, build: Build, *, tokens: int = 16, depth: int = 2):
        super().__init__(build)
        build.require(1 <= tokens <= self.tokens, f"tokens must lie between 1 and the {self.tokens} of the tower, got {tokens}")
        self.tokens = tokens
        self.norm = nn.LayerNorm(self.image_width)
        self.layers = perceptron(self.image_width, self.width, depth)

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, tokens, D of the language model]"""
        x = self.patches(x)
        size = torch.ones_like(x[..., :1])
        while x.shape[1] > self.tokens:
            x, size = merge(x, size, min(x.shape[1] - self.tokens, x.shape[1] // 2))
        x = self.layers(self.norm(x))
        return x
