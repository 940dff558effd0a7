"""Attention with capped logits, and a pooling head that is wider inside (VideoPrism, Zhao et al. 2024, arXiv:2402.13217, as in the
authors' code and in transformers).

Shapes: B batch, L queries, S keys, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.models.layers.attention import Attention, Transformer
from diptych.models.layers.masks import padding_bias


class CappedAttention(Attention):
    """Attention in which a logit z becomes cap · tanh(z / cap), so that none is larger than ``cap``; masks come after it."""

    def __init__(self, width: int, heads: int, cap: float):
        super().__init__(width, heads)
        self.cap = cap

    def look(self, x: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [B, L, D], keys and values [B, H, S, d] → [B, L, D]"""
        B, L, D = x.shape
        q = self.q(x).view(B, L, self.heads, -1).transpose(1, 2)
        logits = self.cap * torch.tanh((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) / self.cap)
        if bias is not None:
            logits = logits + bias.to(logits.dtype)
        out: Tensor = self.out((logits.softmax(-1) @ v).transpose(1, 2).reshape(B, L, D))
        return out


def capped(transformer: Transformer, cap: float) -> Transformer:
    """The same transformer with capped self-attention in every block; its weights stay."""
    for block in transformer.blocks:
        plain: Attention = block.attention  # type: ignore[assignment]
        block.attention = CappedAttention(plain.out.in_features, plain.heads, cap)
        block.attention.load_state_dict(plain.state_dict())
    return transformer


class WidePool(nn.Module):
    """One learned query that reads a sequence, with keys and values ``hidden`` wide, then a norm. No norm on what is read.

    The class of transformers scales each number of the query by a learned factor too, which the first layer can do by itself.
    """

    def __init__(self, width: int, heads: int, hidden: int | None = None, eps: float = 1e-6):
        super().__init__()
        hidden = hidden or 4 * width
        self.heads = heads
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.q, self.kv, self.out = nn.Linear(width, hidden), nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, N, D], mask [B, N] bool, True where real → [B, D]"""
        B, N, _ = x.shape
        k, v = self.kv(x).view(B, N, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = self.q(self.query.to(x.dtype)).view(1, self.heads, 1, -1).expand(B, -1, -1, -1)
        bias = padding_bias(mask)
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        pooled: Tensor = self.norm(self.out(read.transpose(1, 2).reshape(B, -1)))
        return pooled
