"""Means and differences over items and seeds, with their intervals.

Two things vary: the sample of items and the seed of the training. Items and seeds are crossed random effects, and their mean
squares give the variance of the grand mean (two-way layout without replication; Searle, Casella & McCulloch 1992, chapter 4), with
Satterthwaite's degrees of freedom. With one seed only the items vary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from diptych.core.special import normal_cdf, normal_quantile, student_cdf, student_quantile


@dataclass(frozen=True)
class Measured:
    """One measure of one run.

    items: {item: credit} with the mean ``value``, if the measure is a mean over items. clusters: the group of each item, where
    items are not independent. error: the standard error of other measures, if it is known. more: data for figures. range: the least
    and the greatest value that the measure can have; None: no limit. Intervals stay within it.
    """

    value: float
    items: Mapping[str, float] = field(default_factory=dict)
    clusters: Mapping[str, str] = field(default_factory=dict)
    error: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    range: Sequence[float | None] = (None, None)


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference with its 95 % interval; ``low`` is NaN where the spread cannot be known."""

    value: float
    low: float
    high: float
    seeds: int
    items: int  # or clusters; 0: the measure has no items
    error: float = math.nan  # standard error
    freedom: float = math.inf
    spread: float = math.nan  # standard deviation over items of the means over seeds: the unit of the effect size

    def p(self, against: float = 0.0) -> float:
        """The two-sided p-value; NaN where nothing varied."""
        if not self.error > 0:
            return math.nan
        return float(2 * t_below(-abs(self.value - against) / self.error, self.freedom))

    @property
    def effect(self) -> float | None:
        """The effect size: the value divided by the spread over items (Cohen's d for paired samples)."""
        return self.value / self.spread if self.spread > 0 else None


def estimate(runs: Sequence[Measured], minus: Sequence[Measured] | float = 0.0, share: bool = True) -> Estimate:
    """The mean over the seeds of one arm, or its difference from another arm (seeds in the same order) or from a number.

    Its interval ends where the range of the measure ends: that of a share is within [0, 1], that of a difference of shares within
    [−1, 1]. Student's t knows nothing of such limits, and with few seeds or clusters it would go beyond them.
    """
    found = _estimate(runs, minus, share)
    low, high = _limits(runs)
    less, more = (float(minus),) * 2 if isinstance(minus, float | int) else _limits(minus)
    if math.isnan(found.low):
        return found
    return replace(found, low=max(found.low, low - more), high=min(found.high, high - less))


def _limits(runs: Sequence[Measured]) -> tuple[float, float]:
    """The range of the values of an arm."""
    lows, highs = [run.range[0] for run in runs], [run.range[1] for run in runs]
    return (
        min(-math.inf if v is None else v for v in lows),
        max(math.inf if v is None else v for v in highs),
    )


def _estimate(runs: Sequence[Measured], minus: Sequence[Measured] | float, share: bool) -> Estimate:
    if isinstance(minus, float | int):
        return _of([_shifted(run, float(minus)) for run in runs], share)
    if len(runs) != len(minus):
        raise ValueError("both arms need the same seeds")
    if all(a.items and a.items.keys() == b.items.keys() for a, b in zip(runs, minus, strict=True)):
        return _of([_difference(a, b) for a, b in zip(runs, minus, strict=True)], share)
    if any(a.items or b.items for a, b in zip(runs, minus, strict=True)):  # different items cannot be paired
        return _unpaired(_of(runs, share), _of(minus, share))
    errors = [(a.error, b.error) for a, b in zip(runs, minus, strict=True)]
    both = [None if x is None or y is None else math.hypot(x, y) for x, y in errors]
    return _of([Measured(a.value - b.value, error=e) for a, b, e in zip(runs, minus, both, strict=True)], share)


def t_below(t: float, freedom: float) -> float:
    """The probability that Student's t with this freedom is below t."""
    return normal_cdf(t) if math.isinf(freedom) else student_cdf(freedom, t)


def _t_quantile(freedom: float, share: float = 0.975) -> float:
    return normal_quantile(share) if math.isinf(freedom) else student_quantile(freedom, share)


def _shifted(run: Measured, by: float) -> Measured:
    return Measured(run.value - by, {i: v - by for i, v in run.items.items()}, run.clusters, run.error)


def _difference(a: Measured, b: Measured) -> Measured:
    return Measured(a.value - b.value, {i: v - b.items[i] for i, v in a.items.items()}, {**b.clusters, **a.clusters})


def _of(runs: Sequence[Measured], share: bool) -> Estimate:
    value = float(np.mean([run.value for run in runs]))
    if all(run.items for run in runs):
        same = all(run.items.keys() == runs[0].items.keys() for run in runs)
        table = _clustered(runs) if same else None
        if table is not None:
            return _crossed(table, value, share)
    return _of_values(runs, value)


def _clustered(runs: Sequence[Measured]) -> np.ndarray:
    """[seeds, clusters]: the contribution of each cluster to a run's mean, linearised (ratio estimator), with the runs' means."""
    names = list(runs[0].items)
    clusters = {c: i for i, c in enumerate(dict.fromkeys(runs[0].clusters.get(n, n) for n in names))}
    where = np.array([clusters[runs[0].clusters.get(n, n)] for n in names])
    rows = np.array([[run.items[n] for n in names] for run in runs], dtype=np.float64)
    C, N = len(clusters), len(names)
    sums = np.stack([np.bincount(where, row, C) for row in rows])
    sizes = np.bincount(where, minlength=C)
    means = rows.mean(1, keepdims=True)
    result: np.ndarray = sums * C / N - means * (sizes * C / N - 1)
    return result


def _crossed(table: np.ndarray, value: float, share: bool) -> Estimate:
    S, C = table.shape
    grand, of_seed, of_item = table.mean(), table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    spread = float(of_item.std(ddof=1)) if C > 1 else math.nan
    if C < 2:
        return Estimate(value, math.nan, math.nan, S, C)
    items = S * float(((of_item - grand) ** 2).sum()) / (C - 1)
    if S == 1:
        squares, freedom = items, float(C - 1)
    else:
        seeds = C * float(((of_seed - grand) ** 2).sum()) / (S - 1)
        rest = float(((table - of_seed - of_item + grand) ** 2).sum()) / ((S - 1) * (C - 1))
        squares = max(seeds + items - rest, seeds, items)
        parts = seeds**2 / (S - 1) + items**2 / (C - 1) + rest**2 / ((S - 1) * (C - 1))
        freedom = max(squares**2 / parts if parts else float(C - 1), 1.0)
    error = math.sqrt(squares / (S * C))
    half = _t_quantile(freedom) * error
    if error < 1e-12:
        error = 0.0
        half = 3.7 / C if share else 0.0  # all equal: the exact bound for a share without a counterexample
    return Estimate(value, value - half, value + half, S, C, error, freedom, spread)


def _of_values(runs: Sequence[Measured], value: float) -> Estimate:
    """The estimate without common items, from the spread over seeds and the runs' own error, which more seeds do not reduce."""
    S = len(runs)
    own = [run.error for run in runs if run.error is not None and math.isfinite(run.error)]
    shared = float(np.mean(np.square(own))) if len(own) == S else 0.0
    between = float(np.var([run.value for run in runs], ddof=1)) / S if S > 1 else 0.0
    if S == 1 and len(own) < S:
        return Estimate(value, math.nan, math.nan, S, 0)
    total = between + shared
    freedom = total**2 / (between**2 / (S - 1)) if S > 1 and between > 0 else math.inf
    error = math.sqrt(total)
    half = _t_quantile(freedom) * error
    return Estimate(value, value - half, value + half, S, 0, error, freedom)


def _unpaired(a: Estimate, b: Estimate) -> Estimate:
    """Welch's estimate of a difference."""
    value, squares = a.value - b.value, a.error**2 + b.error**2
    if not squares >= 0:
        return Estimate(value, math.nan, math.nan, a.seeds, min(a.items, b.items))
    parts = sum(e.error**4 / e.freedom for e in (a, b) if math.isfinite(e.freedom))
    freedom = squares**2 / parts if parts > 0 else math.inf
    half = _t_quantile(freedom) * math.sqrt(squares)
    spread = math.sqrt((a.spread**2 + b.spread**2) / 2)
    return Estimate(
        value, value - half, value + half, min(a.seeds, b.seeds), min(a.items, b.items), math.sqrt(squares), freedom, spread
    )
