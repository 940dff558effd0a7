"""How much attention each token receives."""

from __future__ import annotations

import torch
from torch import Tensor

from diptych.models.layers.attention import Transformer
from diptych.models.layers.masks import padding_bias


@torch.no_grad()
def attention_received(transformer: Transformer, x: Tensor, mask: Tensor) -> Tensor:
    """The attention that each token receives in self-attention: the mean over heads, summed over the real tokens that attend and
    over the blocks. x [B, T, D], mask [B, T] bool → [B, T], without gradient; 0 at padding.
    """
    bias, total = padding_bias(mask), x.new_zeros(mask.shape, dtype=torch.float32)
    for block in transformer.blocks:
        inner = x if block.post_norm else block.norm1(x)  # type: ignore[operator]
        attention = block.attention
        k, _ = attention.read(inner)  # type: ignore[union-attr, operator]
        q = attention.q(inner).view(*x.shape[:2], attention.heads, -1).transpose(1, 2)  # type: ignore[union-attr, operator]
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).float() + bias
        total += (weights.softmax(-1).mean(1) * mask[..., None]).sum(1)
        x = block(x, bias)
    return total * mask
