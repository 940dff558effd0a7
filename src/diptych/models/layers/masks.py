"""Attention masks, as additive biases [B or 1, 1, L or 1, S] in float32: 0 where a query may attend, ``FLOOR`` where it may not.

Finite, so that a row with no key to attend to stays finite. Shapes: B batch, L queries, S keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = -1e4


def bias_of(allowed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """From bool, True where attention is allowed, of any shape."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, FLOOR)


def padding_bias(mask: Tensor | None) -> Tensor | None:
    """[B, 1, 1, S] from mask [B, S] bool, True at real keys; None: all are real."""
    return None if mask is None else bias_of(mask)[:, None, None]


def causal_bias(length: int, before: int, device: torch.device) -> Tensor | None:
    """[1, 1, L, before + L]: each of the last ``length`` positions sees those up to itself; None for length 1, which sees all."""
    if length == 1:
        return None
    return torch.full((length, before + length), FLOOR, device=device).triu(1 + before)[None, None]


def joined(*biases: Tensor | None) -> Tensor | None:
    """Several restrictions at once; None: no restriction."""
    given = [b for b in biases if b is not None]
    return sum(given[1:], given[0]) if given else None


def attention_bias(mask: Tensor | None, length: int, causal: bool, like: Tensor) -> Tensor | None:
    """Padding, and causality among ``length`` positions if asked for."""
    return joined(padding_bias(mask), causal_bias(length, 0, like.device) if causal else None)
