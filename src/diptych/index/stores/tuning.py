"""How far an approximate search has to look: found by measurement, when its graph was made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diptych.index.stores.base import Found
from diptych.index.stores.ranking import ROUNDING, check_queries
from diptych.index.stores.recall import CHUNK, exact_searches, halves, probes, recall_of

if TYPE_CHECKING:
    from diptych.index.stores.approximate import Approximate

EFFORTS = (1, 2, 4, 8, 16, 32, 64, 128)  # of a search, each twice the one before
MARGINS, DEPTHS = (2, 4, 8), (256, 1024, 4096)  # of ``Pick``
PROBES = 100
DEEP = 25  # queries of each kind for which depths are measured


class Pick(NamedTuple):
    """How hits that count are picked out of the nearest of all, under a filter: of the ``depth`` nearest that a graph finds, the
    first part (depth / margin) is complete, so hits are taken from it alone.
    """

    margin: float
    depth: int


def tuned(store: Approximate, queries: np.ndarray | None = None) -> tuple[float | None, Pick | None]:
    """Twice the least effort by which a store finds the share of true neighbours that is asked for (its ``recall``), on queries
    near the vectors (``probes``) and, by themselves, on those that are given, float32 [Q, E]; and how hits are picked out under
    filters: as far as the first part of what is found is complete to the same share, and hits among halves that are alike
    (``halves``) are.

    None where nothing is enough: search, or search under filters, has to be exact then.
    """
    near, k = probes(store.exact, PROBES), min(10, len(store))
    kinds = [near] if queries is None or not len(queries) else [near, check_queries(queries, store.width, str(store.folder))]
    free, *filtered = exact_searches(store.exact, np.concatenate(kinds), k, [None, *halves(store.exact)])

    def enough(allowed: np.ndarray | None, truth: Found, effort: float, pick: Pick | None) -> bool:
        """Whether queries of each kind find enough."""
        start = 0
        for some in kinds:
            found = store.searched(some, k, allowed, effort, pick)
            part = slice(start, start + len(some))
            if recall_of(found, Found(truth.ids[part], truth.scores[part])) < store.recall:
                return False
            start += len(some)
        return True

    effort = next((e for e in EFFORTS if enough(None, free[1], e, None)), None)
    if effort is None:
        return None, None
    effort *= 2  # other queries than those that were measured may need more
    complete = _complete(store, np.concatenate([some[:DEEP] for some in kinds]), effort)
    return effort, next((pick for pick in complete if all(enough(*each, effort, pick) for each in filtered)), None)


def _complete(store: Approximate, queries: np.ndarray, effort: float) -> list[Pick]:
    """Depths of which the first part is complete, to the recall asked for: smaller margins first, of each the greater depths."""
    depths = [depth for depth in DEPTHS if depth < len(store)]
    if not depths:
        return []
    best = _best_scores(store, queries, depths[-1] // MARGINS[0])
    complete = []
    shares: dict[Pick, float] = {}
    for depth in depths:
        rows = store.nearest(queries, effort, depth)
        parts = {margin: [] for margin in MARGINS}  # type: dict[int, list[float]]
        for query, some, scores in zip(queries, rows, best, strict=True):
            found = np.sort(store.row_vectors(some[some >= 0]) @ query)[::-1]
            for margin in MARGINS:
                limit = scores[min(depth // margin, len(scores)) - 1]
                parts[margin].append(min(1.0, float((found >= limit - ROUNDING).sum()) / (depth // margin)))
        shares |= {Pick(margin, depth): float(np.mean(part)) for margin, part in parts.items()}
    for margin in MARGINS:
        complete += [Pick(margin, depth) for depth in reversed(depths) if shares[Pick(margin, depth)] >= store.recall]
    return complete


def _best_scores(store: Approximate, queries: np.ndarray, k: int) -> list[np.ndarray]:
    """The k highest scores of each query among the vectors that the graph holds, descending; every vector is read once."""
    ids = store.exact.ids()
    best = [np.zeros(0, np.float32) for _ in queries]
    for start in range(0, len(ids), CHUNK):
        scores = queries @ store.exact.vectors(ids[start : start + CHUNK]).T
        for q, row in enumerate(scores):
            held = np.concatenate([best[q], row])
            best[q] = np.partition(held, len(held) - k)[-k:] if len(held) > k else held
    return [np.sort(each)[::-1] for each in best]


@contextmanager
def all_cores(faiss: Any) -> Iterator[None]:
    """All cores for faiss, unless the user set their number (OMP_NUM_THREADS)."""
    before = faiss.omp_get_max_threads()
    if not os.environ.get("OMP_NUM_THREADS"):
        faiss.omp_set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
