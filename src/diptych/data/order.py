"""The order of samples: pure functions of a seed and a position in an endless stream, so that any process can compute any part of
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

ENDLESS = 10_000_000  # a source longer than this is read in order: its samples are drawn at random already
BLOCK = (
    50_400  # positions in which each source of a mixture has its exact share: percents, thirds, sevenths … are whole numbers of it
)


def mixed(*numbers: int) -> int:
    """One well-mixed integer from several (splitmix64), so that neighbouring seeds give unrelated draws."""
    x = 0x9E3779B97F4A7C15
    for n in numbers:
        x = (x ^ n) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 31
    return x


class Order(Protocol):
    """``order[position]`` is the index of the sample at that position."""

    def __getitem__(self, position: int) -> int: ...


class Epochs:
    """One source: each epoch is its own permutation."""

    def __init__(self, n: int, *seed: int):
        self.n, self.seed = n, seed
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))  # the last one: positions mostly increase

    def __getitem__(self, position: int) -> int:
        if self.n > ENDLESS:
            return (mixed(*self.seed) + position) % self.n
        epoch, place = divmod(position, self.n)
        held = self._epoch  # read once: another thread may replace it
        if held[0] != epoch:
            held = self._epoch = (epoch, np.random.default_rng((*self.seed, epoch)).permutation(self.n))
        return int(held[1][place])


class Mixed:
    """Several sources laid end to end, each drawn by its weight and in epochs of its own.

    Every block of ``BLOCK`` draws holds each source's exact share, shuffled; so the number of draws of a source before a position
    can be computed directly. A draw is ``run`` consecutive positions, all of one source: 1, or a whole batch.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int, run: int = 1):
        self.seed, self.quotas, self.run = seed, quotas(weights), run
        self.offsets = [sum(lengths[:i]) for i in range(len(lengths))]
        self.orders = [Epochs(n, seed, which) for which, n in enumerate(lengths)]
        self._block: tuple[int, np.ndarray, np.ndarray] = (-1, np.empty(0), np.empty(0))

    def _drawn(self, block: int) -> tuple[int, np.ndarray, np.ndarray]:
        """(block, [BLOCK] source at each position, [BLOCK] how often it was drawn earlier in the block)."""
        held = self._block
        if held[0] != block:
            which = np.repeat(np.arange(len(self.quotas), dtype=np.int32), self.quotas)
            np.random.default_rng((self.seed, block, BLOCK)).shuffle(which)
            before = np.empty(BLOCK, dtype=np.int32)
            for source, quota in enumerate(self.quotas):
                before[which == source] = np.arange(quota)
            held = self._block = (block, which, before)
        return held

    def __getitem__(self, position: int) -> int:
        draw, within = divmod(position, self.run)
        block, place = divmod(draw, BLOCK)
        _, which, before = self._drawn(block)
        source = int(which[place])
        earlier = block * self.quotas[source] + int(before[place])
        return self.offsets[source] + self.orders[source][earlier * self.run + within]

    def counts(self, positions: int) -> list[int]:
        """How often each source occurs among the first ``positions`` positions."""
        draws, within = divmod(positions, self.run)
        blocks, rest = divmod(draws, BLOCK)
        which = self._drawn(blocks)[1] if rest or within else np.empty(0, dtype=np.int32)
        partial = np.bincount(which[:rest], minlength=len(self.quotas)) * self.run
        if within:
            partial[which[rest]] += within
        return [blocks * quota * self.run + int(more) for quota, more in zip(self.quotas, partial, strict=True)]


class Neighboured:
    """Pairs of positions: at the even one a sample of ``order``, at the odd one after it one of the neighbours of that sample,
    drawn at random. table: int [N, K], the neighbours of each sample.
    """

    def __init__(self, order: Order, table: np.ndarray, seed: int):
        self.order, self.table, self.seed = order, table, seed

    def __getitem__(self, position: int) -> int:
        pair, second = divmod(position, 2)
        index = self.order[pair]
        if not second:
            return index
        row = self.table[index]
        return int(row[mixed(self.seed, pair, 5) % len(row)])


def quotas(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers that sum to ``BLOCK`` (largest remainders); none below 1."""
    shares = [w / sum(weights) * BLOCK for w in weights]
    whole = [max(1, int(share)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: whole[i] - shares[i])
    for i in by_remainder[: max(0, BLOCK - sum(whole))]:
        whole[i] += 1
    whole[whole.index(max(whole))] -= sum(whole) - BLOCK  # weights below 1/BLOCK were rounded up
    return whole
