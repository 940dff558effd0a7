"""How far an approximate search has to look: found by measurement, when its graph was made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.index.stores.base import Found
from diptych.index.stores.ranking import check_queries
from diptych.index.stores.recall import exact_searches, halves, probes, recall_of

if TYPE_CHECKING:
    from diptych.index.stores.approximate import Approximate

EFFORTS = (1, 2, 4, 8, 16, 32, 64, 128)  # of a search, each twice the one before
MARGINS = (2, 4, 8)  # how much further than the last hit that counts a search under a filter has to have looked
PROBES = 100


def tuned(store: Approximate, queries: np.ndarray | None = None) -> tuple[float | None, float | None]:
    """The least effort, and the least margin under filters, by which a store finds the share of the true neighbours that is asked
    for (its ``recall``): on queries near the vectors (``probes``) and, by themselves, on those that are given, float32 [Q, E].

    The filters let half of the vectors through, those that are like each other (``halves``). None where neither is enough: search,
    or search under filters, has to be exact then.
    """
    near, k = probes(store.exact, PROBES), min(10, len(store))
    kinds = [near] if queries is None or not len(queries) else [near, check_queries(queries, store.width, str(store.folder))]
    free, *filtered = exact_searches(store.exact, np.concatenate(kinds), k, [None, *halves(store.exact)])

    def enough(allowed: np.ndarray | None, truth: Found, effort: float, margin: float | None) -> bool:
        """Whether queries of each kind find enough."""
        start = 0
        for some in kinds:
            found = store.searched(some, k, allowed, effort, margin)
            part = slice(start, start + len(some))
            if recall_of(found, Found(truth.ids[part], truth.scores[part])) < store.recall:
                return False
            start += len(some)
        return True

    effort = next((e for e in EFFORTS if enough(None, free[1], e, MARGINS[0])), None)
    if effort is None:
        return None, None
    return effort, next((m for m in MARGINS if all(enough(*each, effort, m) for each in filtered)), None)


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
