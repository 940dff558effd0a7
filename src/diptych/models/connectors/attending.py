"""Learned queries with places in the picture (Qwen-VL), and a perceiver of a language model's own layers (Idefics2).

Shapes: B images, N patches, K queries or latents, D width of the language model, H heads, d width of a head.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.models.build import Build
from diptych.models.connectors.base import Connector
from diptych.models.layers.attention import Attention, attend
from diptych.models.layers.rotary import GatedMLP
from diptych.models.vision.towers import sincos_2d


class PlacedQueries(Connector):
    """One cross-attention of ``tokens`` learned queries to the patches; queries and keys, not values, have fixed 2-D waves of their
    places, so that a query can stand for a region. Then a norm and a linear map (Qwen-VL, Bai et al. 2023, arXiv:2308.12966, §2.1;
    256 queries on a grid of 16 × 16).

    Checked with the authors' code: patches are mapped to the language model's width first; queries and patches are normalised. The
    places of the patches are those of the queries' grid, scaled to the tower's.
    """

    def __init__(
        self, build: Build, *, tokens: Annotated[int, Field(ge=1)] = 256, heads: Annotated[int, Field(ge=1)] | None = None
    ):
        super().__init__(build)
        side, heads = math.isqrt(tokens), heads or max(1, self.width // 128)
        build.require(side**2 == tokens, f"tokens: {tokens} is no square, and each query has a place on a grid")
        build.require(self.width % heads == 0, f"heads: {heads} does not divide the language model's width {self.width}")
        build.require(self.width % 4 == 0, f"the language model's width {self.width} does not divide by 4, as waves in 2-D need")
        self.tokens = tokens
        self.enter = nn.Linear(self.image_width, self.width, bias=False)
        self.queries = nn.Parameter(torch.randn(tokens, self.width) * 0.02)
        self.norm_queries, self.norm, self.norm_out = (nn.LayerNorm(self.width) for _ in range(3))
        self.attention = Attention(self.width, heads)
        self.layer = nn.Linear(self.width, self.width, bias=False)
        waves = sincos_2d(side, side, self.width)
        self.places: Tensor
        self.patch_places: Tensor
        self.register_buffer("places", waves, persistent=False)
        self.register_buffer("patch_places", scaled_places(waves, self.grid), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, K, D of the language model]"""
        x = self.norm(self.enter(self.patches(x)))
        own, heads = self.attention, self.attention.heads
        key, value = own.kv.weight.chunk(2)
        key_bias, value_bias = own.kv.bias.chunk(2)
        k = F.linear(x + self.patch_places.to(x.dtype), key, key_bias)
        v = F.linear(x, value, value_bias)
        k, v = (torch.unflatten(t, 2, (heads, -1)).transpose(1, 2) for t in (k, v))
        queries = (self.norm_queries(self.queries) + self.places).to(x.dtype).expand(len(x), -1, -1)
        x = self.layer(self.norm_out(own.look(queries, k, v)))
        return x


def scaled_places(places: Tensor, side: int) -> Tensor:
    """Waves [K, D] of a square grid at the places of a grid of ``side`` × ``side``: [side², D], bicubic."""
    own = math.isqrt(len(places))
    if own == side:
        return places.clone()
    grid = places.reshape(1, own, own, -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(0, 2)


class PerceiverAttention(nn.Module):
    """Latents attend to context and latents, with fewer key heads than heads, and no biases."""

    def __init__(self, width: int, heads: int, key_heads: int, head_width: int):
        super().__init__()
        self.heads, self.key_heads = heads, key_heads
        self.q = nn.Linear(width, heads * head_width, bias=False)
        self.k, self.v = (nn.Linear(width, key_heads * head_width, bias=False) for _ in range(2))
        self.out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """latents [B, K, D], context [B, N, D] → [B, K, D]"""
        seen = torch.cat([context, latents], 1)
        q = torch.unflatten(self.q(latents), 2, (self.heads, -1)).transpose(1, 2)
        k, v = (torch.unflatten(layer(seen), 2, (self.key_heads, -1)).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (t.repeat_interleave(self.heads // self.key_heads, 1) for t in (k, v))
        out: Tensor = self.out(attend(q, k, v, None).transpose(1, 2).flatten(2))
        return out


class PerceiverLayer(nn.Module):
    """Attention and a gated MLP, each added to the latents, behind RMS norms."""

    def __init__(self, width: int, heads: int, key_heads: int, head_width: int, eps: float):
        super().__init__()
        self.norm_latents, self.norm_context, self.norm = (nn.RMSNorm(width, eps) for _ in range(3))
        self.attention = PerceiverAttention(width, heads, key_heads, head_width)
        self.mlp = GatedMLP(width, 4 * width)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """latents [B, K, D], context [B, N, D] → [B, K, D]"""
        latents = latents + self.attention(self.norm_latents(latents), self.norm_context(context))
        latents = latents + self.mlp(self.norm(latents))
        return latents


class Perceiver(Connector):
    """A gated MLP to the language model's width, then ``tokens`` latents that attend to the patches and to each other in layers
    like the language model's own: RMS norms, gated MLPs, shared key heads (Idefics2, Laurençon et al. 2024, arXiv:2405.02246, §2;
    the defaults are the released model's). hidden: inside the first MLP; None: four times the language model's width.
    """

    def __init__(
        self,
        build: Build,
        *,
        tokens: Annotated[int, Field(ge=1)] = 64,
        depth: Annotated[int, Field(ge=1)] = 3,
        heads: Annotated[int, Field(ge=1)] = 16,
        key_heads: Annotated[int, Field(ge=1)] = 4,
        head_width: Annotated[int, Field(ge=1)] = 96,
        hidden: Annotated[int, Field(ge=1)] | None = None,
        eps: float = 1e-6,
    ):
        super().__init__(build)
        build.require(heads % key_heads == 0, f"key_heads: {key_heads} does not divide the {heads} heads")
        self.tokens = tokens
        hidden = hidden or 4 * self.width
        self.gate, self.up = (nn.Linear(self.image_width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, self.width, bias=False)
        self.latents = nn.Parameter(torch.ones(tokens, self.width) + 0.02 * torch.randn(tokens, self.width))
        self.layers = nn.ModuleList(PerceiverLayer(self.width, heads, key_heads, head_width, eps) for _ in range(depth))
        self.norm = nn.RMSNorm(self.width, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, extra + N, D of the tower] → [B, K, D of the language model]"""
        x = self.patches(x)
        context = self.down(F.silu(self.gate(x)) * self.up(x))
        latents = self.latents.to(context.dtype).expand(len(x), -1, -1)
        for layer in self.layers:
            latents = layer(latents, context)
        x = self.norm(latents)
        return x
