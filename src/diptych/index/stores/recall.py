"""How many of the true neighbours a store finds, and in what time: measured when an index is built, and printed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.index.filters import Where
from diptych.index.stores.base import Found, Store, settle
from diptych.index.stores.ranking import ROUNDING, check_queries, exact_scores, nearest_rows

CHUNK = 1 << 15  # vectors that are compared at a time
SHARE = 0.01  # of the vectors that the filter of the second measurement lets through
SAMPLE = 2000  # vectors from which the median of a similarity is known

# (ids [N], vectors [N, E]) → which of them a filter lets through, bool [N]
Test = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Recall:
    """What was measured. recall: share of the k true neighbours that were among the k found, mean over the queries; filtered: the
    same under a filter that lets a random hundredth through; alike: under one that lets a half through of which the vectors are
    like each other, as a folder or a label may. Times in seconds for one query at a time; one query in twenty takes longer than
    ``p95``.
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
    alike: float = 1.0
    alike_median: float = 0.0
    alike_p95: float = 0.0

    def as_json(self) -> dict[str, float | int | str]:
        """All fields by name."""
        return asdict(self)

    def __str__(self) -> str:
        def milliseconds(median: float, p95: float) -> str:
            """A time in words."""
            return f"{1000 * median:.1f} ms a query (p95 {1000 * p95:.1f})"

        return (
            f"recall@{self.k} {self.recall:.3f}, {milliseconds(self.median, self.p95)}; of a hundredth {self.filtered:.3f}, "
            f"{milliseconds(self.filtered_median, self.filtered_p95)}; of a half that is alike {self.alike:.3f}, "
            f"{milliseconds(self.alike_median, self.alike_p95)}; {self.queries} queries, {self.count:,} vectors, {self.kind}"
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


def halves(store: Store, seed: int = 0) -> list[Test]:
    """Two filters: the half of the vectors that is most like one of them, and the other half. What is near a query may then be
    excluded as a whole, which is the difficult case for a search that begins near the query.
    """
    rng, ids = np.random.default_rng(seed), store.ids()
    sample = store.vectors(np.sort(rng.choice(ids, min(len(ids), SAMPLE), replace=False)))
    direction = sample[int(rng.integers(len(sample)))]
    median = np.median(sample @ direction)
    return [lambda _, vectors: vectors @ direction >= median, lambda _, vectors: vectors @ direction < median]


def exact_search(store: Store, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
    """The true neighbours by comparing every vector of a store: for any store, in chunks. allowed: ids, ascending; None for all."""
    return exact_searches(store, queries, k, [None if allowed is None else lambda ids, _: np.isin(ids, allowed)])[0][1]


def exact_searches(store: Store, queries: np.ndarray, k: int, tests: Sequence[Test | None]) -> list[tuple[np.ndarray, Found]]:
    """For each filter the ids that it lets through, ascending, and the true neighbours among these (None: among all). Every vector
    is read once: a large store does not fit in memory.
    """
    ids, empty = store.ids(), np.zeros(0, np.int64)
    through: list[list[np.ndarray]] = [[] for _ in tests]
    near = [[(empty, np.zeros(0, np.float32)) for _ in queries] for _ in tests]
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        vectors = store.vectors(some)
        rough = queries @ vectors.T
        for t, test in enumerate(tests):
            rows = np.arange(len(some)) if test is None else np.flatnonzero(test(some, vectors))
            through[t].append(some[rows])
            for q, scores in enumerate(rough if test is None else rough[:, rows]):
                top = rows[nearest_rows(scores, k)]
                held, kept = near[t][q]
                held, kept = np.concatenate([held, some[top]]), np.concatenate([kept, exact_scores(queries[q], vectors[top])])
                order = np.lexsort((held, -kept))[:k]
                near[t][q] = held[order], kept[order]
    results = []
    for t in range(len(tests)):
        found = Found(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
        for q, (one, scores) in enumerate(near[t]):
            found.ids[q, : len(one)], found.scores[q, : len(one)] = one, scores
        results.append((np.concatenate([*through[t], empty]), found))
    return results


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
    """Recall against exact search and the time of a search: without a filter, under one that a random hundredth fulfils, and under
    one that a half fulfils of which the vectors are alike.

    queries: float32 [Q, E] of pictures that are not in the store, or of texts; None: ``number`` of ``probes``. A store that
    searches by an approximation is brought up to date first (its ``settle``).
    """
    settle(store)
    if not len(store):
        return Recall(store.kind, 0, 0, k, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    queries = (
        probes(store, number, seed)
        if queries is None
        else check_queries(queries, store.vectors(store.ids()[:1]).shape[1], "recall")
    )
    ids = store.ids()
    few = np.sort(np.random.default_rng(seed + 1).choice(ids, max(1, round(SHARE * len(ids))), replace=False))
    tests: list[Test | None] = [None, lambda some, _: np.isin(some, few), halves(store, seed + 2)[1]]
    results: list[tuple[float, float, float]] = []
    for test, (allowed, truth) in zip(tests, exact_searches(store, queries, k, tests), strict=True):
        where = None if test is None else Where(ids=lambda allowed=allowed: allowed)  # type: ignore[misc]
        store.search(queries[:1], k, where)  # what is done once, such as opening files, is not counted
        times, parts = [], []
        for query in queries:
            began = time.perf_counter()
            parts.append(store.search(query[None], k, where))
            times.append(time.perf_counter() - began)
        found = Found(np.concatenate([p.ids for p in parts]), np.concatenate([p.scores for p in parts]))
        results.append((recall_of(found, truth), float(np.median(times)), float(np.quantile(times, 0.95))))
    (free, median, p95), (filtered, filtered_median, filtered_p95), (alike, alike_median, alike_p95) = results
    return Recall(
        store.kind, len(store), len(queries), k, free, filtered, median, p95, filtered_median, filtered_p95, alike, alike_median,
        alike_p95,
    )  # fmt: skip
