"""Vectors from one store to another: ids kept, every vector and the top 10 compared; one that was stopped can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diptych.core.errors import DiptychError, counted
from diptych.index.stores.base import Rows, Store, settle
from diptych.index.stores.recall import exact_search, probes, recall_of

CHUNK = 20_000  # vectors that are copied, and saved, at a time
LEAST = 0.95  # of the true top 10 that the new store has to find, unless the old one finds less


@dataclass(frozen=True)
class Moved:
    """What was moved. copied: vectors that were not there yet; count: all. before, after: recall@10 of the two stores against exact
    search, on the same queries.
    """

    count: int
    copied: int
    before: float
    after: float

    def __str__(self) -> str:
        moved = f"{counted(self.count, 'vector')} moved ({self.copied:,} copied now)"
        return f"{moved}; recall@10 {self.before:.3f} before, {self.after:.3f} now"


def move(
    source: Store,
    target: Store,
    rows: Callable[[np.ndarray], Rows] | None = None,
    queries: np.ndarray | None = None,
    progress: Callable[[int, int], object] | None = None,
    texts: np.ndarray | None = None,
    graph: Callable[[int, int], object] | None = None,
) -> Moved:
    """Makes ``target`` hold what ``source`` holds, under the same ids. The source is only read: let go of it afterwards.

    rows: the columns of ids, for a store that filters by itself. queries: float32 [Q, E] for the comparison of the top 10; None: 50
    near the vectors (``probes``). progress: called with how many of how many are done. texts: further queries for which a store
    that approximates has to be good, float32 [T, E]; graph: its own progress (``settle``).

    What is there already is compared and copied again only where it differs, so a move that was stopped goes on. DiptychError if in
    the end a vector differs, or the new store finds less of the true top 10 than ``LEAST`` and than the old one.
    """
    ids, copied = source.ids(), 0
    extra = np.setdiff1d(target.ids(), ids, assume_unique=True)
    if len(extra):
        target.delete(extra)
        target.save()
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        vectors = source.vectors(some)
        fresh = some[~_same(target, some, vectors)]
        if len(fresh):
            target.add(fresh, vectors[np.searchsorted(some, fresh)], None if rows is None else rows(fresh))
            target.save()
            copied += len(fresh)
        if progress is not None:
            progress(min(start + CHUNK, len(ids)), len(ids))
    settle(target, texts, graph)
    if not np.array_equal(target.ids(), ids):
        raise DiptychError(f"the store {target.kind} has other ids than {source.kind} after the move; the old store is unchanged")
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        if not _same(target, some, source.vectors(some)).all():
            raise DiptychError(
                f"the store {target.kind} has other vectors than {source.kind} after the move; the old store is unchanged"
            )
    if not len(ids):
        return Moved(0, copied, 1.0, 1.0)
    queries, k = probes(source, 50) if queries is None else queries, min(10, len(ids))
    truth = exact_search(source, queries, k)
    before, after = (recall_of(store.search(queries, k), truth) for store in (source, target))
    if after < min(LEAST, before):
        raise DiptychError(
            f"the store {target.kind} finds {after:.3f} of the true top {k}, {source.kind} {before:.3f}; the old one stays: "
            "raise recall or effort of the new one"
        )
    return Moved(len(ids), copied, before, after)


def _same(store: Store, ids: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Which ids of a store have exactly these vectors, bool [N]."""
    same, there = np.zeros(len(ids), bool), np.isin(ids, store.ids())
    if there.any():
        same[there] = (store.vectors(ids[there]) == vectors[there]).all(1)
    return same
