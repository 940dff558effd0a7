"""How many of the true neighbours a store finds, and in what time: measured when an index is built, and printed."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.index.filters import Where
from diptych.index.stores.base import Found, Store
from diptych.index.stores.ranking import ROUNDING, check_queries, exact_scores, nearest_rows

CHUNK = 1 << 15  # vectors that are compared at a time
SHARE = 0.01  # of the vectors that the filter of the second measurement lets through


@dataclass(frozen=True)
class Recall:
    """What was measured. recall: share of the k true neighbours that were among the k found, mean over the queries; filtered: the
    same under a filter that lets a random hundredth through. Times in seconds for one query at a time; one query in twenty takes
    longer than ``p95``.
    """

    kind: str
    count: int
    queries: int
    k: int
    recall: float
    filtered: float
    median: float
    p95: float
    filtered_median: float
    filtered_p95: float

    def as_json(self) -> dict[str, float | int | str]:
        """All fields by name."""
        return asdict(self)

    def __str__(self) -> str:
        def milliseconds(median: float, p95: float) -> str:
            return f"{1000 * median:.1f} ms a query (p95 {1000 * p95:.1f})"

        return (
            f"recall@{self.k} {self.recall:.3f}, {milliseconds(self.median, self.p95)}; of a hundredth {self.filtered:.3f}, "
            f"{milliseconds(self.filtered_median, self.filtered_p95)}; {self.queries} queries, {self.count:,} vectors, {self.kind}"
        )


def probes(store: Store, number: int, seed: int = 0) -> np.ndarray:
    """Queries that are not in the store but lie where its vectors lie, float32 [number, E], of length 1. Empty for an empty store.

    Each is a stored vector moved by the difference of two of its ten nearest neighbours in a sample, divided by the root of 2: it
    is as far from the vector as these neighbours are, in a direction in which the vectors vary. The stored vector itself would be
    too easy a query, since a graph has links from it to its neighbours.
    """
    rng, ids = np.random.default_rng(seed), store.ids()
    if not len(ids):
        return np.zeros((0, 0), np.float32)
    sample = store.vectors(np.sort(rng.choice(ids, min(len(ids), 20 * number), replace=False)))
    chosen = sample[rng.choice(len(sample), number, replace=len(sample) < number)]
    if len(sample) < 3:
        return chosen
    near = np.argsort(-(chosen @ sample.T), axis=1, kind="stable")[:, 1:11]
    every, count = np.arange(number), near.shape[1]
    first = rng.integers(0, count, number)
    second = (first + rng.integers(1, count, number)) % count
    return unit_rows(chosen + (sample[near[every, first]] - sample[near[every, second]]) / np.sqrt(np.float32(2)), np.float32)


def exact_search(store: Store, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
    """The true neighbours by comparing every vector of a store: for any store, in chunks. allowed: ids, ascending; None for all."""
    ids = store.ids() if allowed is None else np.intersect1d(allowed, store.ids())
    best_ids = [np.zeros(0, np.int64) for _ in queries]
    best = [np.zeros(0, np.float32) for _ in queries]
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        vectors = store.vectors(some)
        rough = queries @ vectors.T
        for q, row in enumerate(rough):
            top = nearest_rows(row, k)
            all_ids = np.concatenate([best_ids[q], some[top]])
            scores = np.concatenate([best[q], exact_scores(queries[q], vectors[top])])
            order = np.lexsort((all_ids, -scores))[:k]
            best_ids[q], best[q] = all_ids[order], scores[order]
    found = Found(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
    for q, (one, scores) in enumerate(zip(best_ids, best, strict=True)):
        found.ids[q, : len(one)], found.scores[q, : len(one)] = one, scores
    return found


def recall_of(found: Found, truth: Found) -> float:
    """Share of the true neighbours that were found, mean over the queries that have any. A vector that scores as well as the last
    true one counts as true: of equal ones, any is right. 1 if there is nothing to find.
    """
    shares = []
    for got, scores, true, wanted in zip(found.ids, found.scores, truth.ids, truth.scores, strict=True):
        true, wanted = true[true >= 0], wanted[true >= 0]
        if len(true):
            right = np.isin(got, true) | ((got >= 0) & (np.abs(scores - wanted[-1]) <= ROUNDING))
            shares.append(min(int(right.sum()), len(true)) / len(true))
    return float(np.mean(shares)) if shares else 1.0


def measure(store: Store, queries: np.ndarray | None = None, k: int = 10, number: int = 100, seed: int = 0) -> Recall:
    """Recall against exact search and the time of a search, without a filter and under one that a random hundredth fulfils.

    queries: float32 [Q, E] of pictures that are not in the store, or of texts; None: ``number`` of ``probes``. A store that
    searches by an approximation is brought up to date first (its ``settle``).
    """
    settle = getattr(store, "settle", None)
    if settle is not None:
        settle()
    if not len(store):
        return Recall(store.kind, 0, 0, k, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    queries = (
        probes(store, number, seed)
        if queries is None
        else check_queries(queries, store.vectors(store.ids()[:1]).shape[1], "recall")
    )
    ids = store.ids()
    few = np.sort(np.random.default_rng(seed + 1).choice(ids, max(1, round(SHARE * len(ids))), replace=False))
    results = []
    for allowed in (None, few):
        where = None if allowed is None else Where(ids=lambda allowed=allowed: allowed)  # type: ignore[misc]
        store.search(queries[:1], k, where)  # what is done once, such as opening files, is not counted
        times, parts = [], []
        for query in queries:
            began = time.perf_counter()
            parts.append(store.search(query[None], k, where))
            times.append(time.perf_counter() - began)
        found = Found(np.concatenate([p.ids for p in parts]), np.concatenate([p.scores for p in parts]))
        results.append((recall_of(found, exact_search(store, queries, k, allowed)), times))
    (free, times), (filtered, filtered_times) = results
    return Recall(
        store.kind, len(store), len(queries), k, free, filtered,
        float(np.median(times)), float(np.quantile(times, 0.95)),
        float(np.median(filtered_times)), float(np.quantile(filtered_times, 0.95)),
    )  # fmt: skip
