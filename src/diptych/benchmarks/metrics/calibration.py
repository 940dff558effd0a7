"""Calibration: are answers with a confidence of 80 % right in 80 % of the cases? ``confidence`` and ``credit``: float [N] in [0,
1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15


@dataclass(frozen=True)
class Bin:
    """A range of confidence: its bounds, items, mean confidence and accuracy."""

    low: float  # the bin holds low < confidence <= high; the first one also 0
    high: float
    n: int
    confidence: float  # means; NaN in an empty bin
    accuracy: float


def bin_sums(confidence: np.ndarray, credit: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Per item, in the columns of its bin: 1, confidence, credit; float [N, 3 · bins]. ECE is a function of the column sums.

    Raises ValueError if a confidence is not a number in [0, 1].
    """
    confidence, credit = np.asarray(confidence, dtype=np.float64), np.asarray(credit, dtype=np.float64)
    bad = np.flatnonzero(~((confidence >= 0) & (confidence <= 1)))
    if len(bad):
        raise ValueError(f"item {bad[0]}: a confidence lies in [0, 1], got {confidence[bad[0]]}")
    which = bin_of(confidence, bins)
    columns = np.zeros((len(confidence), 3, bins))
    columns[np.arange(len(confidence)), :, which] = np.stack([np.ones(len(confidence)), confidence, credit], axis=1)
    return columns.reshape(len(confidence), 3 * bins)


def bin_of(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Equal-width bins, open below and closed above; int [N]."""
    return np.clip(np.searchsorted(np.arange(1, bins + 1) / bins, confidence, side="left"), 0, bins - 1)


def ece_of_sums(sums: np.ndarray) -> np.ndarray:
    """Expected calibration error of column sums [..., 3 · bins]: Σ over bins n_b/N · |confidence_b − accuracy_b|."""
    count, confidence, credit = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    error: np.ndarray = np.abs(confidence - credit).sum(-1) / np.maximum(count.sum(-1), 1)
    return error


def ece(confidence: np.ndarray, credit: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al., arXiv:1706.04599, eq. 3)."""
    return float(ece_of_sums(bin_sums(confidence, credit, bins).sum(0)))


def brier_items(confidence: np.ndarray, credit: np.ndarray) -> np.ndarray:
    """(confidence − credit)² of each item (Brier 1950, for the answer given); float [N]."""
    return (np.asarray(confidence, dtype=np.float64) - np.asarray(credit, dtype=np.float64)) ** 2


def brier(confidence: np.ndarray, credit: np.ndarray) -> float:
    """The mean of ``brier_items``."""
    return float(brier_items(confidence, credit).mean())


def reliability(confidence: np.ndarray, credit: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The bins of a reliability diagram."""
    count, total, right = bin_sums(confidence, credit, bins).sum(0).reshape(3, bins)
    with np.errstate(invalid="ignore"):
        means, accuracy = total / count, right / count
    return [Bin(b / bins, (b + 1) / bins, int(count[b]), float(means[b]), float(accuracy[b])) for b in range(bins)]
