"""Retrieval in both directions from a similarity matrix, a block of rows at a time, so that it may be larger than the memory.

S [Q, M]: images down, captions across (or anything else). Ties are shared as in ``ranking``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.benchmarks.metrics.ranking import expected_rank, recall_at, undecided

BLOCK = 64 << 20  # bytes of float64 scores looked at at once


@dataclass(frozen=True)
class Standing:
    """Of the best positive of each query; int [Q] each, as ``ranking.standing`` gives them."""

    above: np.ndarray
    tied: np.ndarray
    hits: np.ndarray
    nans: int  # scores that are not finite: they count as the lowest

    def credit(self, k: int) -> np.ndarray:
        """R@k of each query: P(a positive in the top k) under random order of ties; float [Q]."""
        return recall_at(k, self.above, self.tied, self.hits)

    def rank(self) -> np.ndarray:
        return expected_rank(self.above, self.tied, self.hits)

    def ties(self, k: int) -> int:
        return int(undecided(k, self.above, self.tied, self.hits).sum())


def standings(
    similarity: np.ndarray, positives: Sequence[Sequence[int]], progress: Callable[[int, int], None] | None = None
) -> tuple[Standing, Standing | None]:
    """Rows that look for columns, and columns that look for rows; the second is None if a column is no row's positive.

    ``similarity``: numbers [Q, M], memory-mapped if large; ``positives``: the columns right for each row, at least one.
    Every row is read twice. Raises ValueError for a row without a positive or a column that is not there.
    """
    rows, columns = similarity.shape
    _check(positives, rows, columns)
    row_of = np.repeat(np.arange(rows), [len(p) for p in positives])
    column_of = np.concatenate([np.asarray(p, dtype=np.int64) for p in positives])
    step = max(1, BLOCK // (8 * columns))
    starts = range(0, rows, step)
    above, tied, hits = (np.zeros(rows, dtype=np.int64) for _ in range(3))
    best, nans = np.full(columns, -np.inf), 0
    for start in starts:
        block, bad = _finite(similarity[start : start + step])
        nans += bad
        mine = (row_of >= start) & (row_of < start + step)
        r, c = row_of[mine] - start, column_of[mine]
        own = np.full(len(block), -np.inf)
        np.maximum.at(own, r, block[r, c])
        above[start : start + step] = (block > own[:, None]).sum(1)
        tied[start : start + step] = (block == own[:, None]).sum(1)
        np.add.at(hits, r + start, block[r, c] == own[r])
        np.maximum.at(best, c, block[r, c])
        if progress:
            progress(min(start + step, rows), 2 * rows)
    forward = Standing(above, tied, hits, nans)
    if len(np.unique(column_of)) < columns:
        return forward, None
    above, tied, hits = (np.zeros(columns, dtype=np.int64) for _ in range(3))
    for start in starts:
        block, _ = _finite(similarity[start : start + step])
        mine = (row_of >= start) & (row_of < start + step)
        r, c = row_of[mine] - start, column_of[mine]
        above += (block > best).sum(0)
        tied += (block == best).sum(0)
        np.add.at(hits, c, block[r, c] == best[c])
        if progress:
            progress(rows + min(start + step, rows), 2 * rows)
    return forward, Standing(above, tied, hits, nans)


def _finite(block: np.ndarray) -> tuple[np.ndarray, int]:
    block = np.array(block, dtype=np.float32 if block.dtype.itemsize <= 2 else None)
    if block.dtype.kind != "f":
        return block.astype(np.float64), 0
    good = np.isfinite(block)
    bad = int(block.size - np.count_nonzero(good))
    if bad:
        block[~good] = -np.inf
    return block, bad


def _check(positives: Sequence[Sequence[int]], rows: int, columns: int) -> None:
    if len(positives) != rows:
        raise ValueError(f"{rows} rows of scores but positives for {len(positives)}")
    for i, mine in enumerate(positives):
        if not len(mine):
            raise ValueError(f"row {i} has no positive")
        if len(set(mine)) < len(mine):
            raise ValueError(f"row {i} names a positive twice")
        wrong = [j for j in mine if not 0 <= j < columns]
        if wrong:
            raise ValueError(f"row {i}: there is no column {wrong[0]}; there are {columns}, from 0")


def chance(k: int, candidates: int, positives: np.ndarray) -> float:
    """Mean over queries of P(one of its ``positives`` [Q] among k random ones of ``candidates``)."""
    missed = np.ones(len(positives))
    for j in range(min(k, candidates)):
        missed = missed * np.maximum(candidates - positives - j, 0) / (candidates - j)
    return float((1 - missed).mean())
