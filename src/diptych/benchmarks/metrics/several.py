"""Measures of pictures with several labels each: mean average precision, F1 over labels (macro) and over all decisions (micro).

Each gives, next to its value, one number for each picture: the value plus N times its derivative by the weight of the picture
(the infinitesimal jackknife; Efron 1982, chapter 6; Jaeckel 1972). Their mean is the value, and how they vary says how the value
varies over pictures, so that intervals and paired tests of means hold for measures that are no means.

Shapes: N pictures, L labels.
"""

from __future__ import annotations

import numpy as np


def counted_labels(targets: np.ndarray) -> np.ndarray:
    """The labels that some of the pictures have and some have not: others say nothing about a ranking. int [K]."""
    has = np.asarray(targets, dtype=bool)
    return np.flatnonzero(has.any(0) & ~has.all(0))


def average_precision(scores: np.ndarray, has: np.ndarray) -> tuple[float, np.ndarray]:
    """The average precision of one label, and its number for each picture, float64 [N].

    The mean over the pictures with the label of the share with the label among all that score at least as high. scores [N]; has:
    bool [N], at least one.
    """
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(has, dtype=np.float64)
    order = np.argsort(-s, kind="stable")
    s, y = s[order], y[order]
    last = np.searchsorted(-s, -s, side="right") - 1  # the last picture of equal scores: all of them count alike
    first = np.searchsorted(-s, -s, side="left")
    above, counts = np.cumsum(y)[last], last + 1.0
    precision, positives = above / counts, y.sum()
    value = float((y * precision).sum() / positives)

    def from_here(terms: np.ndarray) -> np.ndarray:
        """The sum over the pictures that score at most as high."""
        sums: np.ndarray = np.cumsum(terms[::-1])[::-1][first]
        return sums

    slope = y * (precision - value) + y * from_here(y / counts) - from_here(y * above / counts**2)
    credits = np.empty(len(s))
    credits[order] = value + len(s) * slope / positives
    return value, credits


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean over labels of ``average_precision`` (those of ``counted_labels``; NaN if there are none), and [N]."""
    labels = counted_labels(targets)
    if not len(labels):
        return float("nan"), np.full(len(targets), np.nan)
    found = [average_precision(scores[:, label], targets[:, label]) for label in labels]
    return float(np.mean([value for value, _ in found])), np.mean([credits for _, credits in found], axis=0)


def f1_macro(given: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean over the ``counted_labels`` of 2 TP / (2 TP + FP + FN), and [N]. given, targets: bool [N, L]."""
    labels = counted_labels(targets)
    if not len(labels):
        return float("nan"), np.full(len(targets), np.nan)
    hit = (given & targets)[:, labels].astype(np.float64)
    either = given[:, labels].astype(np.float64) + targets[:, labels]
    total = either.sum(0)
    values = 2 * hit.sum(0) / total
    credits = values + len(hit) * (2 * hit - values * either) / total
    return float(values.mean()), credits.mean(1)


def f1_micro(given: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """2 TP / (2 TP + FP + FN) over all decisions, and [N]; 0 where no label is given and none is right."""
    hit = (given & targets).sum(1).astype(np.float64)
    either = (given.sum(1) + targets.sum(1)).astype(np.float64)
    if not (total := either.sum()):
        return 0.0, np.zeros(len(hit))
    value = 2 * hit.sum() / total
    return float(value), value + len(hit) * (2 * hit - value * either) / total
