"""The key-value cache: what a causal model has read, so that it does not read it again.

A cache is never changed, so it can be continued in many ways. Shapes: B batch, H heads, S positions, d width of a head, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # keys and values, [B, H, S, d] each


class Indexed:
    """A frozen dataclass of tensors with one row per sequence, and of other such dataclasses. ``x[rows]`` is that of these rows,
    which may repeat.
    """

    def __getitem__(self, rows: Tensor) -> Self:
        return replace(self, **{f.name: _rows(getattr(self, f.name), rows) for f in fields(self)})  # type: ignore[type-var, arg-type]


def _rows(value: Any, rows: Tensor) -> Any:
    if isinstance(value, tuple):
        return tuple(_rows(v, rows) for v in value)
    return value[rows] if isinstance(value, Tensor | Indexed) else value


@dataclass(frozen=True)
class KVCache(Indexed):
    """Keys and values of every block."""

    own: tuple[Pair, ...] = ()  # of self-attention so far
    cross: tuple[Pair, ...] = ()  # of the context of cross-attention
    mask: Tensor | None = None  # [B, S] bool, False at padding; None: no padding
    deep: Tensor | None = None  # [B, p] int64: the positions that layers behind a pruned one have, −1: none (``language.pruning``)
    images: Any = None  # the images that gated layers continue to read (``language.seen.Seen``)

    @property
    def length(self) -> int:
        """The number of positions read."""
        return int(self.own[0][0].shape[2]) if self.own else 0

    def expand(self, rows: int) -> KVCache:
        """One row repeated, without copying."""
        if not self.own or len(self.own[0][0]) == rows:
            return self
        own = tuple((k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self.own)
        mask = None if self.mask is None else self.mask.expand(rows, -1)
        deep = None if self.deep is None else self.deep.expand(rows, -1)
        return replace(self, own=own, mask=mask, deep=deep, images=None if self.images is None else self.images.expand(rows))


EMPTY = KVCache()


@dataclass(frozen=True)
class Prefix(Indexed):
    """A prefix that can be continued in many ways: the hidden state [B, 1, D] of its last token, which predicts the next one, and
    its cache.
    """

    last: Tensor
    cache: KVCache


@dataclass(frozen=True)
class DecoderState(Indexed):
    """What a decoder over images has read and written so far."""

    cache: KVCache
    bias: Tensor | None = None  # of image tokens that are padding
    text: KVCache = EMPTY  # of the text tower below it, if it has one


def appended(before: Pair | None, k: Tensor, v: Tensor) -> Pair:
    """Keys and values appended to those read before."""
    return (k, v) if before is None else (torch.cat([before[0].to(k.dtype), k], 2), torch.cat([before[1].to(v.dtype), v], 2))
