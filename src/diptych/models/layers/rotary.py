"""Causal blocks with rotary positions, RMS norms and gated MLPs, as in Llama and, with normed queries and keys, Chameleon.

Shapes: B batch, L tokens read now, S tokens read before, D width, H heads, d width of a head.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.models.layers.attention import attend
from diptych.models.layers.cache import EMPTY, KVCache, Pair, appended
from diptych.models.layers.masks import causal_bias


def rotations(start: int, length: int, width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [length, width] of the rotation angles of positions start, start + 1 … (Su et al. 2021, RoFormer)."""
    frequency = theta ** (-torch.arange(0, width, 2, device=device).float() / width)
    angles = torch.arange(start, start + length, device=device).float()[:, None] * frequency
    angles = torch.cat([angles, angles], 1)
    return angles.cos(), angles.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, L, d] with its two halves taken as real and imaginary parts, each pair rotated by its angle."""
    real, imaginary = x.chunk(2, -1)
    return x * cos + torch.cat([-imaginary, real], -1) * sin


class Places(NamedTuple):
    """The positions of the tokens that are read now: the same for every block."""

    cos: Tensor  # [L, d]
    sin: Tensor
    bias: Tensor | None  # [1, 1, L, S + L]


class HeadNorm(nn.Module):
    """A LayerNorm of each head, with its own scale and shift."""

    def __init__(self, heads: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, H, d]"""
        return F.layer_norm(x, x.shape[-1:]) * self.weight + self.bias


class RotaryAttention(nn.Module):
    """Causal self-attention. qk_norm: queries and keys are normalised before their product, which prevents training with two
    modalities from diverging (Chameleon Team 2024, §2.3.1).
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = True):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.q_norm: nn.Module = HeadNorm(heads, width // heads) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = HeadNorm(heads, width // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, places: Places, past: Pair | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, D] → output [B, L, D], and keys and values [B, H, S + L, d] with the past's"""
        B, L, D = x.shape
        q, k, v = (layer(x).view(B, L, self.heads, -1) for layer in (self.q, self.k, self.v))
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        q, k = turn(q, places.cos, places.sin).to(v.dtype), turn(k, places.cos, places.sin).to(v.dtype)
        k, v = appended(past, k, v)
        x = attend(q, k, v, places.bias)
        return self.out(x.transpose(1, 2).reshape(B, L, D)), k, v


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate x) · up x)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]"""
        x = self.down(F.silu(self.gate(x)) * self.up(x))
        return x


class RotaryBlock(nn.Module):
    """Attention and a gated MLP, both added to the residual stream. norm: ``before`` each of them, as in Llama, or ``after`` each,
    before its result is added: x + norm(attention(x)), as in Swin v2 and the 34B model of Chameleon (§2.3.1).
    """

    def __init__(
        self, width: int, heads: int, hidden: int, eps: float, norm: Literal["before", "after"] = "before", qk_norm: bool = True
    ):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)
        self.attention = RotaryAttention(width, heads, qk_norm)
        self.mlp = GatedMLP(width, hidden)
        self.after = norm == "after"

    def forward(self, x: Tensor, places: Places, past: Pair | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, D] → output [B, L, D], and keys and values [B, H, S + L, d]"""
        if self.after:
            out, k, v = self.attention(x, places, past)
            x = x + self.norm1(out)
            return x + self.norm2(self.mlp(x)), k, v
        out, k, v = self.attention(self.norm1(x), places, past)
        x = x + out
        return x + self.mlp(self.norm2(x)), k, v


class RotaryTransformer(nn.Module):
    """A stack of causal blocks and a last norm; it can continue from a past. hidden: None: 8/3 of the width, in steps of 32. norm,
    qk_norm: as of the blocks.
    """

    checkpointing = False

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        hidden: int | None = None,
        theta: float = 10_000.0,
        eps: float = 1e-5,
        norm: Literal["before", "after"] = "before",
        qk_norm: bool = True,
    ):
        super().__init__()
        hidden = hidden or 32 * round(width / 12)
        self.head_width, self.theta = width // heads, theta
        self.blocks = nn.ModuleList(RotaryBlock(width, heads, hidden, eps, norm, qk_norm) for _ in range(depth))
        for block in self.blocks:  # GPT-2's scaling: the scale of the stream does not depend on the depth
            for layer in (block.attention.out, block.mlp.down):  # type: ignore[union-attr]
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * max(depth, 1)) * math.sqrt(1024 / width))  # type: ignore[union-attr, arg-type]
        self.norm = nn.RMSNorm(width, eps)

    def forward(self, x: Tensor, past: KVCache = EMPTY) -> tuple[Tensor, KVCache]:
        """x [B, L, D], which follows the past → [B, L, D] and the past including it"""
        own: list[Pair] = []
        places = Places(
            *rotations(past.length, x.shape[1], self.head_width, self.theta, x.device),
            causal_bias(x.shape[1], past.length, x.device),
        )
        for i, block in enumerate(self.blocks):
            before = past.own[i] if past.own else None
            if self.checkpointing and torch.is_grad_enabled():
                x, k, v = checkpoint(block, x, places, before, use_reentrant=False)
            else:
                x, k, v = block(x, places, before)
            own.append((k, v))
        return self.norm(x), KVCache(tuple(own))
