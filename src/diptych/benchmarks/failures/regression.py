"""Scalable probing: which features of items go with a model's scores, all of them in one regression, with intervals and the false
discovery rate under control (after Castro, Ignat & Mihalcea 2023, Scalable Performance Analysis for Vision-Language Models,
arXiv:2305.18786).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.benchmarks.statistics import codes
from diptych.core.errors import DiptychError
from diptych.core.special import student_cdf, student_quantile

RATE = 0.05  # of the features that are called related, at most this share is expected to be wrong


@dataclass(frozen=True)
class Coefficient:
    """How much the score changes with one standard deviation of a feature, all others equal. p: two-sided; q: the false discovery
    rate at which it would be called related (Benjamini & Hochberg 1995).
    """

    feature: str
    value: float
    low: float
    high: float
    p: float
    q: float

    @property
    def related(self) -> bool:
        """Whether it is called related to the score."""
        return self.q <= RATE


def regress(names: Sequence[str], features: np.ndarray, scores: np.ndarray, clusters: Sequence[Hashable]) -> list[Coefficient]:
    """Ordinary least squares of scores [n] on standardised features [n, K] and a constant, with errors that may differ between
    items and go together within clusters (Liang & Zeger 1986; with the usual correction for few clusters). Strongest first.

    Features without a spread, and those that the ones before them determine, are left out. DiptychError if there are too few
    clusters for the features.
    """
    kept = _independent(features)
    names, x = [names[i] for i in kept], features[:, kept]
    x = (x - x.mean(0)) / x.std(0)
    n, k = len(x), x.shape[1] + 1
    which = codes(clusters)
    groups = int(which.max()) + 1
    if groups <= k + 1:
        raise DiptychError(f"{groups} independent items are too few for {k - 1} features; give at least {k + 2}")
    design = np.concatenate([np.ones((n, 1)), x], 1)
    bread = np.linalg.inv(design.T @ design)
    weights = bread @ design.T @ scores
    sums = np.zeros((groups, k))
    np.add.at(sums, which, design * (scores - design @ weights)[:, None])
    spread = bread @ (sums.T @ sums) @ bread * groups / (groups - 1) * (n - 1) / (n - k)
    errors = np.sqrt(np.maximum(np.diag(spread), 0))[1:]
    edge = student_quantile(groups - 1, 0.975)
    values = weights[1:]
    ps = [min(1.0, 2 * student_cdf(groups - 1, -abs(v / e))) if e > 0 else 1.0 for v, e in zip(values, errors, strict=True)]
    qs = benjamini_hochberg(ps)
    found = [
        Coefficient(name, float(v), float(v - edge * e), float(v + edge * e), p, q)
        for name, v, e, p, q in zip(names, values, errors, ps, qs, strict=True)
    ]
    return sorted(found, key=lambda c: (c.p, -abs(c.value)))


def _independent(features: np.ndarray) -> list[int]:
    """The columns that vary and are no combination of earlier ones."""
    kept: list[int] = []
    basis = np.ones((len(features), 1)) / math.sqrt(len(features))
    for i in range(features.shape[1]):
        column = features[:, i] - features[:, i].mean()
        size = float(np.linalg.norm(column))
        rest = column - basis @ (basis.T @ column)
        if size > 1e-12 and float(np.linalg.norm(rest)) > 1e-6 * size:
            kept.append(i)
            basis = np.concatenate([basis, (rest / np.linalg.norm(rest))[:, None]], 1)
    return kept


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """The false discovery rate at which each would be a discovery, in the order given (Benjamini & Hochberg 1995)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i], reverse=True)
    result, least = [0.0] * len(ps), 1.0
    for rank, i in enumerate(order):
        least = min(least, ps[i] * len(ps) / (len(ps) - rank))
        result[i] = least
    return result
