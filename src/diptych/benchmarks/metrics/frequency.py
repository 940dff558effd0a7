"""How often a concept was in the training data, and how well it is known (Udandarao et al., arXiv:2404.04125).

``counts`` int [C], how often each concept occurred; ``accuracy`` float [C].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bin:
    low: float  # occurrences: low <= count < high
    high: float
    concepts: int
    frequency: float  # geometric mean of the counts in it
    accuracy: float  # mean over the concepts in it


def log_bins(counts: np.ndarray, accuracy: np.ndarray, per_decade: int = 2) -> list[Bin]:
    """Concepts in bins of equal width in log10; empty bins and concepts that never occurred are left out."""
    counts, accuracy = _checked(counts, accuracy)
    logs = np.log10(np.where(counts > 0, counts, 1))
    which = np.floor(logs * per_decade + 1e-9).astype(int)
    found = []
    for b in np.unique(which[counts > 0]):
        mine = (which == b) & (counts > 0)
        found.append(
            Bin(
                10 ** (b / per_decade),
                10 ** ((b + 1) / per_decade),
                int(mine.sum()),
                float(10 ** logs[mine].mean()),
                float(accuracy[mine].mean()),
            )
        )
    return found


def correlation(counts: np.ndarray, accuracy: np.ndarray) -> float:
    """Pearson's r of log10(count) and accuracy over the concepts that occurred; NaN where either does not vary."""
    counts, accuracy = _checked(counts, accuracy)
    x, y = np.log10(counts[counts > 0]), accuracy[counts > 0]
    return _pearson(x, y)


def rank_correlation(counts: np.ndarray, accuracy: np.ndarray) -> float:
    """Spearman's ρ over all concepts, those that never occurred included; ties get their mean rank."""
    counts, accuracy = _checked(counts, accuracy)
    return _pearson(_ranks(counts), _ranks(accuracy))


def binned_correlation(counts: np.ndarray, accuracy: np.ndarray, per_decade: int = 2) -> float:
    """Pearson's r over the bins, as the paper draws it. Binning hides the scatter: quote it beside the raw one."""
    bins = log_bins(counts, accuracy, per_decade)
    return _pearson(np.log10([b.frequency for b in bins]), np.array([b.accuracy for b in bins]))


def slope(counts: np.ndarray, accuracy: np.ndarray) -> float:
    """Least squares: what ten times the data adds to the accuracy (the log-linear law)."""
    counts, accuracy = _checked(counts, accuracy)
    x, y = np.log10(counts[counts > 0]), accuracy[counts > 0]
    if len(x) < 2 or np.ptp(x) == 0:
        return float("nan")
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def _checked(counts: np.ndarray, accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts, accuracy = np.asarray(counts, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if counts.shape != accuracy.shape:
        raise ValueError(f"{len(counts)} counts but {len(accuracy)} accuracies")
    if (counts < 0).any():
        raise ValueError("a count below 0")
    return counts, accuracy


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 3 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def _ranks(x: np.ndarray) -> np.ndarray:
    _, which, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[which.ravel()]
