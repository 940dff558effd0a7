"""Intervals and tests that respect clusters: all items of one image are drawn, or flipped, together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.core.special import beta_quantile, normal_cdf, student_quantile

RESAMPLES = 2000
DRAWS = 10_000
BUNDLES = 5000  # the most kinds of clusters that a resample draws from
CHUNK = 200  # resamples at a time, for the memory
EXACT_CLUSTERS = 13  # up to 2^13 sign patterns are enumerated: fewer than the draws it would take


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval."""

    value: float
    low: float
    high: float


def mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean, independent of the order of the values, and exact if all are equal, so that chance is exactly chance."""
    if not len(values):
        return math.nan
    numbers = np.asarray(values, dtype=np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    return low if low == high else math.fsum(numbers.tolist()) / len(numbers)


def clopper_pearson(value: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share seen in n trials; at 0 of n about [0, 3.7/n] (the "rule of three", two-sided)."""
    tail, hits = (1 - level) / 2, value * n
    low = 0.0 if hits <= 0 else beta_quantile(hits, n - hits + 1, tail)
    high = 1.0 if hits >= n else beta_quantile(hits + 1, n - hits, 1 - tail)
    return low, high


def codes(names: Sequence[Hashable]) -> np.ndarray:
    """0, 1, … in the order of first occurrence, the same for the same name; int [n]."""
    if isinstance(names, np.ndarray) and names.dtype.kind in "iu":
        return np.unique(names, return_inverse=True)[1].ravel()
    known: dict[str, int] = {}
    return np.fromiter((known.setdefault(str(name), len(known)) for name in names), dtype=np.int64, count=len(names))


def _cluster_sums(items: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """Column sums of items [n, K] over each cluster, float [G, K]."""
    which = codes(clusters)
    groups = int(which.max()) + 1 if len(which) else 0
    return np.stack([np.bincount(which, column, minlength=groups) for column in items.T], axis=1)


def _draw(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Column sums of resamples of the clusters' sums [G, K], float [R, K].

    Clusters that are alike are drawn as one kind, which is the same draw; where more kinds than ``BUNDLES`` are left,
    clusters are first put into this many random bundles: the spread is then known to about one percent.
    """
    rng = np.random.default_rng(seed)
    # one number a row, the same for the same row: sorting numbers is far quicker than sorting rows
    mark = (sums.round(9) * np.random.default_rng(1).random(sums.shape[1])).sum(1)
    _, first, count = np.unique(mark, return_index=True, return_counts=True)
    if len(first) > BUNDLES:
        order = np.repeat(first, count)  # sorted by value: the order of the items must not matter
        which = rng.permutation(len(order)) % BUNDLES
        kinds = np.stack([np.bincount(which, column[order]) for column in sums.T], axis=1)
        count = np.ones(BUNDLES, dtype=np.int64)
    else:
        kinds = sums[first]
    clusters, drawn = int(count.sum()), []
    for start in range(0, resamples, CHUNK):
        drawn.append(rng.multinomial(clusters, count / clusters, min(CHUNK, resamples - start)) @ kinds)
    return np.concatenate(drawn)


def mean_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    share: bool = True,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of values [n] with a bootstrap over clusters that is valid from about ten clusters on (``_percentiles``).

    ``share``: the values lie in [0, 1]. If then all clusters agree, no resample differs, and the bootstrap's
    interval would have no width; the exact bound for this number of clusters is used instead.
    """
    data = np.asarray(values, dtype=np.float64)
    value = mean(data)
    sums = _cluster_sums(np.stack([data, np.ones(len(data))], axis=1), clusters)
    if not len(sums) or np.ptp(sums[:, 0] / sums[:, 1]) < 1e-12:
        return _of_equal_clusters(value, len(sums), share, level)
    drawn, rest = _draw(sums, resamples, seed), sums.sum(0) - sums
    without = rest[:, 0] / rest[:, 1]
    return _percentiles(value, drawn[:, 0] / drawn[:, 1], level, len(sums), without)


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
    """The same for a metric of column sums: F1 of confusion counts, BLEU of n-gram counts, ECE of bins.

    ``items`` [n, K]; ``metric`` takes sums [..., K] and returns [...]. Such a metric may be biased on resamples (the
    distance of two means grows with their noise), so the resamples give the width and the estimate the centre.
    """
    items = np.asarray(items, dtype=np.float64)
    value, sums = float(metric(items.sum(0))), _cluster_sums(items, clusters)
    drawn = np.asarray(metric(_draw(sums, resamples, seed)), dtype=np.float64) if len(sums) > 1 else np.zeros(0)
    without = np.asarray(metric(sums.sum(0) - sums), dtype=np.float64)
    return _centred(value, drawn, len(sums), share, level, without if np.isfinite(without).all() else None)


def function_interval(
    metric: Callable[[np.ndarray], float],
    clusters: Sequence[Hashable],
    *,
    share: bool = False,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The same for any other metric: ``metric`` takes item indices (with repetitions) and returns a number."""
    where: dict[str, list[int]] = {}
    for i, cluster in enumerate(clusters):
        where.setdefault(str(cluster), []).append(i)
    members = [np.array(where[name]) for name in sorted(where)]  # by name, so the order of items does not matter
    rng = np.random.default_rng(seed)
    value, drawn = float(metric(np.arange(len(clusters)))), []
    for _ in range(resamples if len(members) > 1 else 0):
        picked = rng.integers(len(members), size=len(members))
        drawn.append(float(metric(np.concatenate([members[i] for i in picked]))))
    return _centred(value, np.array(drawn), len(members), share, level)


def _centred(
    value: float, drawn: np.ndarray, clusters: int, share: bool, level: float, without: np.ndarray | None = None
) -> Interval:
    drawn = drawn[np.isfinite(drawn)]  # a resample may have nothing that the metric could divide by
    if len(drawn) < 2 or np.ptp(drawn) < 1e-12:
        return _of_equal_clusters(value, clusters, share, level)
    centred = drawn - mean(drawn) + value
    return _percentiles(value, np.clip(centred, 0, 1) if share else centred, level, clusters, without)


def _percentiles(value: float, drawn: np.ndarray, level: float, clusters: int, without: np.ndarray | None = None) -> Interval:
    """Percentiles that correct two errors of the plain ones, which cover 86 % instead of 95 % at six clusters
    (docs/metrics.md).

    They lie outwards as Student's t is wider than the normal, and by √(G/(G−1)) for the variance of G clusters (Hesterberg,
    arXiv:1411.5279, section 3.2), and are shifted for skewness by the acceleration of BCa (Efron 1987), from the metric
    ``without`` each cluster [G]; its bias correction is the acceleration too, as it is in the limit for a mean. Where clusters
    weigh unequally there are fewer of them in effect (Carter, Schnepel & Steigerwald 2017): as many as would give normal
    influences their kurtosis.
    """
    shift, effective = 0.0, float(clusters)
    if without is not None:
        off = without.mean() - without
        largest = float(np.abs(off).max())
        if largest > 0:
            off = off / largest
            spread = (off**2).sum()
            shift = float((off**3).sum() / (6 * spread**1.5))
            normal = 3 * (clusters - 1) / (clusters + 1)  # expected of a sample's kurtosis
            effective = min(effective, max(float(normal * spread**2 / (off**4).sum()), 2.0))
    edge = math.sqrt(effective / (effective - 1)) * student_quantile(effective - 1, (1 - level) / 2)
    tails = []
    for z in (edge + shift, shift - edge):
        room = 1 - shift * z
        tails.append(normal_cdf(shift + z / room) if room > 0 else float(z > 0))
    low, high = np.quantile(drawn, tails)
    return Interval(value, float(low), float(high))


def _of_equal_clusters(value: float, clusters: int, share: bool, level: float) -> Interval:
    if not clusters:
        return Interval(value, math.nan, math.nan)
    if share and 0 <= value <= 1:
        return Interval(value, *clopper_pearson(value, clusters, level))
    return Interval(value, math.nan, math.nan) if clusters < 2 else Interval(value, value, value)


@dataclass(frozen=True)
class Spread:
    """The same number again over prompts or over training seeds: no interval, since these are few and not drawn."""

    n: int
    mean: float
    low: float  # the lowest and the highest
    high: float
    deviation: float  # standard deviation, n − 1 below; NaN of one


def spread(values: Sequence[float]) -> Spread:
    """Number, mean, lowest, highest and standard deviation of values. Raises ValueError for none."""
    if not len(values):
        raise ValueError("the spread of no values")
    deviation = float(np.std(np.asarray(values, dtype=np.float64), ddof=1)) if len(values) > 1 else math.nan
    return Spread(len(values), mean(values), float(min(values)), float(max(values)), deviation)


@dataclass(frozen=True)
class PairedTest:
    """The difference of two models on the same items, with its p-value."""

    difference: float  # mean of a − b
    low: float
    high: float
    p: float


def paired_test(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, clusters: Sequence[Hashable], *, seed: int = 0
) -> PairedTest:
    """Do a and b, values [n] of the same items, differ in the mean? Two-sided; signs are flipped by cluster.

    All sign patterns if they are few, otherwise 10,000 random ones with p = (1 + k) / (1 + N), never 0.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    sums = _cluster_sums(difference[:, None], clusters)[:, 0]
    interval = mean_interval(difference, clusters, share=False, seed=seed)
    return PairedTest(interval.value, interval.low, interval.high, sign_flip_p(sums, seed=seed))


def sign_flip_p(sums: np.ndarray, *, seed: int = 0) -> float:
    """Two-sided p of the sum of independent, under the null symmetric, ``sums`` [G]."""
    sums = sums[sums != 0]  # a cluster without a difference has no sign to flip
    bound = abs(math.fsum(sums)) * (1 - 1e-9)
    if len(sums) <= EXACT_CLUSTERS:
        bits = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        return float((np.abs((1 - 2 * bits) @ sums) >= bound).mean()) if len(sums) else 1.0
    _, first, count = np.unique(np.abs(sums).round(9), return_index=True, return_counts=True)
    if len(first) > BUNDLES:  # enough that their sum is normal
        return max(math.erfc(bound / math.sqrt(2 * math.fsum(sums**2))), 1 / (1 + DRAWS))
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(DRAWS // CHUNK):  # of c equal ones, a binomial number is flipped
        signs = count - 2 * rng.binomial(count, 0.5, size=(CHUNK, len(count)))
        hits += int((np.abs(signs @ np.abs(sums[first])) >= bound).sum())
    return (1 + hits) / (1 + DRAWS)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given (Holm 1979)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected
