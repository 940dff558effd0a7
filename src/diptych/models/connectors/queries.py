"""A fixed number of tokens that look at the image: Q-Former, C-Abstractor. Flamingo's resampler has a file of its own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.models.build import Build
from diptych.models.connectors.base import Connector, perceptron
from diptych.models.layers.attention import Transformer


class QFormer(Connector):
    """Learned queries that look at each other and at the image (BLIP-2, Li et al. 2023, the query half of the Q-Former)."""

    def __init__(self, build: Build, *, tokens: int = 32, width: int | None = None, depth: int = 2, heads: int = 4):
        super().__init__(build)
        width = width or build.size.width
        self.tokens = tokens
        self.queries = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.norm = nn.LayerNorm(self.image_width)
        self.transformer = Transformer(width, depth, heads, self.image_width)
        self.layer = nn.Linear(width, self.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, tokens, D of the language model]"""
        queries = self.queries.expand(x.shape[0], -1, -1)
        x = self.layer(self.transformer(queries, context=self.norm(self.patches(x))))
        return x


class CAbstractor(Connector):
    """Residual convolutions, adaptive average pooling to ``tokens``, residual convolutions, MLP (Honeybee, Cha et al. 2024).

    The blocks are bottlenecks of 1 × 1, depthwise 3 × 3 and 1 × 1 convolutions with squeeze and excitation, as in the RegNetY
    blocks of the paper.
    """

    placed = True

    def __init__(self, build: Build, *, tokens: int = 16, width: int | None = None, depth: int = 3):
        super().__init__(build)
        side = math.isqrt(tokens)
        build.require(side**2 == tokens and side <= self.grid, f"tokens must be a square of at most {self.tokens}, got {tokens}")
        width = width or self.image_width
        self.tokens, self.side = tokens, side
        self.norm = nn.LayerNorm(self.image_width)
        self.enter = nn.Conv2d(self.image_width, width, 1) if width != self.image_width else nn.Identity()
        self.before = nn.Sequential(*(_ConvBlock(width) for _ in range(depth)))
        self.after = nn.Sequential(*(_ConvBlock(width) for _ in range(depth)))
        self.layers = perceptron(width, self.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, tokens, D of the language model]"""
        x = self.norm(self.patches(x)).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        x = F.adaptive_avg_pool2d(self.before(self.enter(x)), self.side)
        x = self.layers(self.after(x).flatten(2).transpose(1, 2))
        return x


class _ConvBlock(nn.Module):
    """GroupNorm of one group instead of BatchNorm: the output of a sample must not depend on the others of its batch."""

    def __init__(self, width: int):
        super().__init__()
        self.into, self.norm1 = nn.Conv2d(width, width, 1, bias=False), nn.GroupNorm(1, width)
        self.deep, self.norm2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.GroupNorm(1, width)
        quarter = max(1, width // 4)
        self.squeeze, self.excite = nn.Conv2d(width, quarter, 1), nn.Conv2d(quarter, width, 1)
        self.out, self.norm3 = nn.Conv2d(width, width, 1, bias=False), nn.GroupNorm(1, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] → the same shape."""
        y = F.silu(self.norm1(self.into(x)))
        y = F.silu(self.norm2(self.deep(y)))
        y = y * torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return F.silu(x + self.norm3(self.out(y)))
