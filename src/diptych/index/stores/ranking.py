"""What every store does with queries and candidates: checks, exact scores, order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diptych.core.errors import DiptychError
from diptych.index.stores.base import Found

ROUNDING = 2e-6  # of a float32 product of unit vectors


def check_queries(queries: np.ndarray, width: int, where: str) -> np.ndarray:
    """Queries as float32 [Q, width]. DiptychError for another width or for one that is not finite."""
    queries = np.atleast_2d(np.asarray(queries, np.float32))
    if queries.ndim != 2 or queries.shape[1] != width:
        raise DiptychError(f"{where}: a query of width {queries.shape[-1]}; the vectors have {width}")
    if not np.isfinite(queries).all():
        raise DiptychError(f"{where}: query {int(np.flatnonzero(~np.isfinite(queries).all(1))[0]) + 1} is not finite")
    return np.ascontiguousarray(queries)


def check_ids(ids: np.ndarray, where: str) -> np.ndarray:
    """Ids as int64 [N]. DiptychError if one is given twice or is negative (-1 means "none" in results)."""
    ids = np.asarray(ids, np.int64)
    ordered, counts = np.unique(ids, return_counts=True)
    if len(ordered) != len(ids):
        raise DiptychError(f"{where}: the id {ordered[counts > 1][0]} is given twice")
    if len(ordered) and ordered[0] < 0:
        raise DiptychError(f"{where}: the id {ordered[0]} is negative")
    return ids


def ascending(ids: np.ndarray) -> np.ndarray:
    """Ids in ascending order, each once, int64; as they are if they are so."""
    ids = np.asarray(ids, np.int64)
    return ids if (ids[1:] > ids[:-1]).all() else np.unique(ids)


def exact_scores(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Inner products, computed in float64, so that equal vectors have equal scores wherever they stand; float32 [N]."""
    scores: np.ndarray = (vectors.astype(np.float64) * query.astype(np.float64)).sum(1).astype(np.float32)
    return scores


def nearest_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows of float32 products that may be among the k best: a few more than k where products are nearly equal."""
    if len(scores) <= k:
        return np.arange(len(scores))
    limit = np.partition(scores, len(scores) - k)[len(scores) - k]
    return np.flatnonzero(scores >= limit - ROUNDING)


def best(queries: np.ndarray, candidates: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> Found:
    """The k best of the candidates of each query, by exact scores, ties in the order of the ids.

    candidates: for each query, ids without repetition and their vectors, float32 [C, E].
    """
    ids, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    for q, (some, vectors) in enumerate(candidates):
        values = exact_scores(queries[q], vectors)
        order = np.lexsort((some, -values))[:k]
        ids[q, : len(order)], scores[q, : len(order)] = some[order], values[order]
    return Found(ids, scores)


def ranked(queries: np.ndarray, candidates: Sequence[np.ndarray], vectors: Callable[[np.ndarray], np.ndarray], k: int) -> Found:
    """``best`` of ids whose vectors are still to be read. vectors: of ids; called once, with all of them in ascending order."""
    every = np.unique(np.concatenate([*candidates, np.zeros(0, np.int64)]))
    held = vectors(every)
    return best(queries, [(some, held[np.searchsorted(every, some)]) for some in candidates], k)
