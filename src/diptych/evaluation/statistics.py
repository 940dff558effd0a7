"""Error bars and tests that respect clusters: everything that belongs to one image is drawn, or flipped, together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
DRAWS = 10_000
EXACT_CLUSTERS = 13  # up to 2^13 sign patterns are enumerated: fewer than the draws it would take


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


def mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean, free of the order of the values, and of rounding where all are equal: chance is exactly chance."""
    if not len(values):
        return math.nan
    low, high = float(min(values)), float(max(values))
    return low if low == high else math.fsum(float(v) for v in values) / len(values)


def clopper_pearson(value: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share seen in n trials; at 0 of n about [0, 3.7/n] (the "rule of three", two-sided)."""
    from scipy.special import betaincinv

    tail, hits = (1 - level) / 2, value * n
    low = 0.0 if hits <= 0 else float(betaincinv(hits, n - hits + 1, tail))
    high = 1.0 if hits >= n else float(betaincinv(hits + 1, n - hits, 1 - tail))
    return low, high


def _members(clusters: Sequence[Hashable]) -> list[np.ndarray]:
    """Indices of each cluster's items; clusters in the order of their names, so the order of items does not matter."""
    where: dict[str, list[int]] = {}
    for i, cluster in enumerate(clusters):
        where.setdefault(str(cluster), []).append(i)
    return [np.array(where[name]) for name in sorted(where)]


def mean_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    share: bool = True,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of values [n] with a percentile bootstrap over clusters.

    ``share``: the values lie in [0, 1]. If then all clusters agree, no resample differs, and the bootstrap's
    interval of width nothing would mislead; the exact bound for so many clusters stands in.
    """
    data, members = np.asarray(values, dtype=np.float64), _members(clusters)
    value = mean(data)
    sums, sizes = np.array([data[m].sum() for m in members]), np.array([len(m) for m in members])
    if np.ptp(sums / sizes) < 1e-12:
        return _of_equal_clusters(value, len(members), share, level)
    drawn = np.random.default_rng(seed).multinomial(len(members), np.full(len(members), 1 / len(members)), resamples)
    return _percentiles(value, (drawn @ sums) / (drawn @ sizes), level)


def function_interval(
    metric: Callable[[np.ndarray], float],
    clusters: Sequence[Hashable],
    *,
    share: bool = False,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The same for any corpus metric: ``metric`` takes item indices (with repetitions) and returns a number.

    Such a metric may be biased on resamples (the distance of two means grows with their noise), so the resamples lend
    their spread and the estimate the centre.
    """
    members, rng = _members(clusters), np.random.default_rng(seed)
    value = float(metric(np.arange(len(clusters))))
    found = []
    for _ in range(resamples if len(members) > 1 else 0):
        picked = rng.integers(len(members), size=len(members))
        found.append(float(metric(np.concatenate([members[i] for i in picked]))))
    if len(members) < 2 or np.ptp(found) < 1e-12:
        return _of_equal_clusters(value, len(members), share, level)
    centred = np.array(found) - mean(found) + value
    return _percentiles(value, np.clip(centred, 0, 1) if share else centred, level)


def sums_interval(
    items: np.ndarray,
    metric: Callable[[np.ndarray], np.ndarray],
    clusters: Sequence[Hashable],
    *,
    share: bool = False,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The same, without a loop, for a metric of column sums: F1 of confusion counts, BLEU of n-gram counts, ECE of bins.

    ``items`` [n, K]; ``metric`` takes sums [..., K] and returns [...].
    """
    items, members = np.asarray(items, dtype=np.float64), _members(clusters)
    value = float(metric(items.sum(0)))
    by_cluster = np.stack([items[m].sum(0) for m in members]) if members else items[:0]
    if len(members) < 2:
        return _of_equal_clusters(value, len(members), share, level)
    drawn = np.random.default_rng(seed).multinomial(len(members), np.full(len(members), 1 / len(members)), resamples)
    found = np.asarray(metric(drawn @ by_cluster), dtype=np.float64)
    if np.ptp(found) < 1e-12:
        return _of_equal_clusters(value, len(members), share, level)
    centred = found - mean(found) + value
    return _percentiles(value, np.clip(centred, 0, 1) if share else centred, level)


def _percentiles(value: float, found: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _of_equal_clusters(value: float, clusters: int, share: bool, level: float) -> Interval:
    if share and 0 <= value <= 1:
        return Interval(value, *clopper_pearson(value, clusters, level))
    return Interval(value, math.nan, math.nan) if clusters < 2 else Interval(value, value, value)


@dataclass(frozen=True)
class PairedTest:
    difference: float  # mean of a − b
    low: float
    high: float
    p: float


def paired_test(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, clusters: Sequence[Hashable], *, seed: int = 0
) -> PairedTest:
    """Do a and b, values [n] of the same items, differ in the mean? Two-sided; signs are flipped by cluster.

    All sign patterns where they are few, else 10,000 random ones with p = (1 + k) / (1 + N), never 0.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    members = _members(clusters)
    sums = np.array([difference[m].sum() for m in members])
    sums = sums[sums != 0]  # a cluster without a difference has no sign to flip
    bound = abs(sums.sum()) * (1 - 1e-9)
    if len(sums) <= EXACT_CLUSTERS:
        bits = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        p = float((np.abs((1 - 2 * bits) @ sums) >= bound).mean()) if len(sums) else 1.0
    else:
        rng, hits, chunk = np.random.default_rng(seed), 0, 1000
        for _ in range(DRAWS // chunk):
            signs = 1 - 2 * rng.integers(0, 2, size=(chunk, len(sums)), dtype=np.int8)
            hits += int((np.abs(signs @ sums) >= bound).sum())
        p = (1 + hits) / (1 + DRAWS)
    interval = mean_interval(difference, clusters, share=False, seed=seed)
    return PairedTest(interval.value, interval.low, interval.high, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given (Holm 1979)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected
