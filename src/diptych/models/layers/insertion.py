"""Learned vectors among the tokens of a transformer: they join, change between blocks, and leave (adapters such as ``prompt``).

Shapes: B batch, T own tokens, n vectors, L all of them, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from diptych.models.layers.masks import attention_bias, bias_of, joined, padding_bias

Change = tuple[Tensor, Tensor | None]  # tokens and attention bias, before a block


class Inserted(Protocol):
    """What an adapter puts among a tower's tokens.

    count: n. first: the block, from 0, before which the vectors join; None: with the tower's own tokens, in a text tower with
    positions of their own. ahead: how many of them stand before a text's words; the others stand behind them, before [EOS].
    """

    count: int
    first: int | None
    ahead: int

    def __call__(self, rows: int, dtype: torch.dtype) -> Tensor:
        """The vectors that join: [rows, n, D]."""
        ...

    def before(self, block: int, vectors: Tensor) -> Tensor:
        """The vectors [B, n, D] that a later block reads, from those that left the block before it."""
        ...

    def used(self, ids: Tensor) -> Tensor | None:
        """Which of the texts [B, T] get the vectors, bool [B]; None: all."""
        ...


class Insertion:
    """The vectors of a tower's adapters in one pass. They are always one run of rows behind the first ``at`` tokens, those of a
    later adapter first; where some stand behind a text's words, positions and masks say so, and the rows stay where they are.

    causal: each token sees only those before it.
    """

    def __init__(self, adapters: Sequence[Inserted], at: int, causal: bool = False):
        self.waiting = list(adapters)
        self.inside: list[Inserted] = []  # in the order of their rows
        self.at, self.causal = at, causal
        self.seen: Tensor | None = None  # [B, L] bool, which tokens are real; None: all
        self.place: Tensor | None = None  # [B, L] int64, the position of each row; None: that of the row

    @property
    def n(self) -> int:
        """How many vectors are among the tokens now."""
        return sum(adapter.count for adapter in self.inside)

    def join(self, x: Tensor, seen: Tensor | None = None, ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, D] with the vectors that are there from the start: [B, L, D]. seen: as the attribute, of T; ids, mask [B,
        T]: of a text.
        """
        self.seen = seen
        adapters = [adapter for adapter in self.waiting if adapter.first is None]
        use = [None if ids is None else adapter.used(ids) for adapter in adapters]
        for adapter in adapters:
            x = self._add(adapter, x)
        if mask is not None and any(u is not None or a.ahead < a.count for a, u in zip(adapters, use, strict=True)):
            self._arrange(mask, list(reversed(use)))
        return x

    def _add(self, adapter: Inserted, x: Tensor) -> Tensor:
        new, at = adapter(x.shape[0], x.dtype), self.at
        if self.seen is not None:
            real = self.seen.new_ones(x.shape[0], adapter.count)
            self.seen = torch.cat([self.seen[:, :at], real, self.seen[:, at:]], 1)
        if self.place is not None:  # before what was there, behind the first tokens
            own = torch.arange(at, at + adapter.count, device=x.device).expand(x.shape[0], -1)
            self.place = torch.cat([self.place[:, :at], own, self.place[:, at:] + adapter.count], 1)
        self.inside.insert(0, adapter)
        return torch.cat([x[:, :at], new, x[:, at:]], 1)

    def _arrange(self, mask: Tensor, use: list[Tensor | None]) -> None:
        """Positions of all rows, for texts in which vectors stand behind the words, or which do not get them all."""
        at, device = self.at, mask.device
        last = mask.sum(1, keepdim=True) - 1  # [EOS]
        given = [torch.ones_like(last) if u is None else u[:, None].long() for u in use]  # [B, 1], 0 or 1
        none = torch.zeros_like(last)
        ahead = sum((a.ahead * g for a, g in zip(self.inside, given, strict=True)), none)
        behind = sum(((a.count - a.ahead) * g for a, g in zip(self.inside, given, strict=True)), none)
        t = torch.arange(mask.shape[1], device=device)[None]
        own = t + (t >= at) * ahead + (t >= last) * behind
        before, after, rows = none + at, last + ahead, []
        for adapter, g in zip(self.inside, given, strict=True):
            k = torch.arange(adapter.count, device=device)[None]
            rows.append(torch.where(k < adapter.ahead, before + k, after + k - adapter.ahead))
            before, after = before + adapter.ahead * g, after + (adapter.count - adapter.ahead) * g
        self.place = torch.cat([own[:, :at], *rows, own[:, at:]], 1)
        if any(u is not None for u in use):  # the others are in the tensor, but nothing sees them
            real = torch.cat([g.bool().expand(-1, a.count) for a, g in zip(self.inside, given, strict=True)], 1)
            kept = self.seen if self.seen is not None else torch.ones_like(self.place, dtype=torch.bool)
            self.seen = torch.cat([kept[:, :at], real, kept[:, at + self.n :]], 1)

    def append(self, count: int) -> None:
        """Further tokens of the tower follow, which see all before them."""
        if self.seen is not None:
            self.seen = torch.cat([self.seen, self.seen.new_ones(self.seen.shape[0], count)], 1)
        if self.place is not None:
            new = self.place.amax(1, keepdim=True) + torch.arange(1, count + 1, device=self.place.device)
            self.place = torch.cat([self.place, new], 1)

    def positions(self, table: Tensor, length: int) -> Tensor:
        """The rows [L, D] or [B, L, D] of the tower's positions that belong to the tokens."""
        return table[:length] if self.place is None else table[self.place]

    def bias(self, x: Tensor) -> Tensor | None:
        """What is added to the attention's logits for tokens x [B, L, D]."""
        if self.place is None or not self.causal:
            return attention_bias(self.seen, x.shape[1], self.causal, x)
        return joined(padding_bias(self.seen), bias_of(self.place[:, None] <= self.place[:, :, None])[:, None])

    def before(self, block: int, x: Tensor, bias: Tensor | None) -> Change:
        """Tokens and bias that a block reads."""
        at = self.at
        for adapter in list(self.inside):
            own = x[:, at : at + adapter.count]
            new = adapter.before(block, own) if block else own
            if new is not own:
                x = torch.cat([x[:, :at], new, x[:, at + adapter.count :]], 1)
            at += adapter.count
        if new_ones := [adapter for adapter in self.waiting if adapter.first == block]:
            for adapter in new_ones:
                x = self._add(adapter, x)
            bias = self.bias(x)
        return x, bias

    def leave(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The tower's own tokens [B, T, D], and what the vectors have become [B, n, D]."""
        at, end = self.at, self.at + self.n
        return torch.cat([x[:, :at], x[:, end:]], 1), x[:, at:end]
