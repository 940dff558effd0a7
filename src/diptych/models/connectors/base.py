"""Base class of connectors: the tower's patches as a grid, without its class tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.part import Part


class Connector(Part):
    """Image tokens [B, extra + N, D of the tower] → [B, tokens, D of the language model].

    ``grid`` is the side of the square of patches, ``tokens`` the number of output tokens. Class tokens are dropped, as in LLaVA.
    placed: whether the output tokens are a square, row by row, each of the patches at its place (``inference.maps``).
    unplaced: whether it reads any number of patches, in any places. token_wise: whether it gives one token for each of them;
    at_most: or one for each, if there are fewer than its ``tokens``.
    """

    __call__: Callable[..., Tensor]  # what ``forward`` gives; torch says Any
    tokens: int
    placed: bool = False
    unplaced: bool = False
    token_wise: bool = False
    at_most: bool = False

    def __init__(self, build: Build):
        super().__init__()
        self.image_width, self.width = build.width_of("vision"), build.width_of("lm")
        vision = build.parts["vision"]
        self.extra, n = int(getattr(vision, "extra", 0)), int(vision.tokens)  # type: ignore[arg-type]
        build.require(getattr(vision, "pooling", "") != "cascade", "it reads patches; parts.vision.pool: cascade gives none")
        self.grid, self.tokens = math.isqrt(n), n
        if getattr(vision, "scattered", False):
            build.require(
                self.unplaced,
                "it reads a square of patches, and the tower merges them (adapter tome); kinds that read any number: mlp, linear, "
                "linear_norm, merge, resampler, pooled",
            )
            self.placed = False
        else:
            build.require(self.grid**2 == n, f"the tower gives {n} patches, which do not form a square")

    @provides("{image}.prefix", "{image}.tokens")
    def prefix(self, image: Tokens) -> Tensor:
        """What the language model reads of an image, [B, tokens, D]."""
        return self(image.tokens)

    def patches(self, x: Tensor) -> Tensor:
        """[B, N, D], row by row."""
        return x[:, self.extra :]

    def square(self, x: Tensor) -> Tensor:
        """[B, D, grid, grid]"""
        return torch.unflatten(self.patches(x).transpose(1, 2), 2, (self.grid, self.grid))

    def divided(self, build: Build, factor: int) -> int:
        """The side of the grid after merging ``factor`` × ``factor`` patches into one."""
        build.require(
            factor >= 1 and self.grid % factor == 0, f"a grid of {self.grid} × {self.grid} patches does not divide by {factor}"
        )
        return self.grid // factor


def perceptron(inside: int, outside: int, depth: int = 2, hidden: int | None = None) -> nn.Sequential:
    """``depth`` linear layers with GELU between them."""
    layers: list[nn.Module] = [nn.Linear(inside, hidden or outside if depth > 1 else outside)]
    for i in range(1, depth):
        width = outside if i == depth - 1 else hidden or outside
        layers += [nn.GELU(), nn.Linear(layers[-1].out_features, width)]  # type: ignore[arg-type]
    return nn.Sequential(*layers)
