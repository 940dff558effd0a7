"""Sixteen patches in one token, in two steps (TextHawk, Yu et al. 2024, arXiv:2404.09204; TextHawk2, Yu et al. 2024,
arXiv:2410.05261).

Shapes: B images, N = g² patches, K = (g / s)² queries, D width of the tower.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.models.build import Build
from diptych.models.connectors.base import Connector
from diptych.models.layers.attention import ACTIVATIONS, Activation, Attention, attend


class ScalablePositions(nn.Module):
    """Positions for a grid of any size: of rows and of columns, half of the width each. Between two learned ends they lie on the
    arc of a sphere, equally spaced (spherical linear interpolation); its radius is learned too.
    """

    def __init__(self, width: int):
        super().__init__()
        self.ends = nn.Parameter(torch.randn(2, 2, width // 2))  # axis, end
        self.radius = nn.Parameter(torch.ones(2))

    def axis(self, which: int, steps: int) -> Tensor:
        """The positions of rows (0) or columns (1), [steps, D / 2]."""
        a, b = F.normalize(self.ends[which], dim=-1)
        angle = torch.arccos((a @ b).clamp(-1 + 1e-6, 1 - 1e-6))
        t = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype)[:, None]
        arc: Tensor = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
        return self.radius[which] * arc

    def forward(self, side: int) -> Tensor:
        """[side², D], row by row."""
        rows, columns = (self.axis(i, side) for i in range(2))
        return torch.cat([rows[:, None].expand(-1, side, -1), columns[None].expand(side, -1, -1)], -1).flatten(0, 1)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, activation: str):
        super().__init__()
        self.norm_queries, self.norm_patches, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), ACTIVATIONS[activation](), nn.Linear(4 * width, width))

    def forward(self, queries: Tensor, x: Tensor, places: Tensor, patch_places: Tensor) -> Tensor:
        """Queries [B, K, D] look at patches x [B, N, D]; places [K, D] and patch_places [N, D] go into queries and keys."""
        own, heads = self.attention, self.attention.heads
        x = self.norm_patches(x)
        key, value = own.kv.weight.chunk(2)
        key_bias, value_bias = own.kv.bias.chunk(2)
        q = own.q(self.norm_queries(queries) + places)
        k, v = F.linear(x + patch_places, key, key_bias), F.linear(x, value, value_bias)
        q, k, v = (torch.unflatten(t, 2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        queries = queries + own.out(attend(q, k, v, None).transpose(1, 2).flatten(2))
        queries = queries + self.mlp(self.norm(queries))
        return queries


class Rearranged(Connector):
    """First a resampler with a query for each square of ``stride`` × ``stride`` patches: the query is proposed from these patches,
    by an MLP, their maximum and a linear map, and looks at all of them, with scalable positions in queries and keys. Then
    ``together`` resampled tokens that follow each other in a row become one, joined and mapped to the language model. 2 × 2 and 4
    in the papers: one token for sixteen patches.

    After the papers, from their descriptions; no code of the authors shows it. Theirs reads several layers of the tower, in other
    layers of the resampler; here all read the last one. depth: layers of the resampler.
    """

    def __init__(
        self,
        build: Build,
        *,
        stride: Annotated[int, Field(ge=1)] = 2,
        together: Annotated[int, Field(ge=1)] = 4,
        depth: Annotated[int, Field(ge=1)] = 2,
        heads: Annotated[int, Field(ge=1)] = 16,
        activation: Activation = "gelu",
    ):
        super().__init__(build)
        width, side = self.image_width, self.divided(build, stride)
        build.require(width % heads == 0, f"heads: {heads} does not divide the tower's width {width}")
        build.require(width % 2 == 0, f"the tower's width {width} is odd, and half of it is for rows")
        build.require(side % together == 0, f"together: {together} does not divide the {side} resampled tokens of a row")
        self.stride, self.side, self.together, self.tokens = stride, side, together, side**2 // together
        self.propose = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, 4 * width))
        self.proposed = nn.Linear(4 * width, width)
        self.positions = ScalablePositions(width)
        self.layers = nn.ModuleList(_Layer(width, heads, activation) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.layer = nn.Linear(together * width, self.width)
        names = [f"layers.{i}.attention.kv" for i in range(depth)]
        self.read_directly = tuple(names)

    def queries(self, x: Tensor) -> Tensor:
        """Patches [B, N, D] → a proposed query for each square of them [B, K, D]."""
        grid = torch.unflatten(self.propose(x).transpose(1, 2), 2, (self.grid, self.grid))
        proposed: Tensor = self.proposed(F.max_pool2d(grid, self.stride).flatten(2).transpose(1, 2))
        return proposed

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, N / (stride² · together), D of the language model]"""
        x = self.patches(x)
        queries, places, patch_places = self.queries(x), self.positions(self.side), self.positions(self.grid)
        for layer in self.layers:
            queries = layer(queries, x, places, patch_places)
        x = self.layer(self.norm(queries).reshape(len(x), self.tokens, -1))
        return x
