"""Recall at K with ties shared: the expected value if tied items were put in random order.

Q queries, M candidates. A score that is not finite counts as the lowest, tied with other such scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def lowest_if_not_finite(scores: np.ndarray) -> np.ndarray:
    """float64 of the same shape; NaN and ±inf become −inf."""
    scores = np.asarray(scores, dtype=np.float64)
    return np.where(np.isfinite(scores), scores, -np.inf)


def shared_credits(credits: np.ndarray) -> np.ndarray:
    """Whether each credit is the share of a tie, which is neither 0 nor 1; bool of the same shape."""
    return (credits > 0) & (credits < 1)


def standing(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each query's best positive: how many candidates score above it, how many are tied with it (itself included), and how many
    of these are positive; int [Q] each, from scores [Q, M] and bool [Q, M]. Raises ValueError for a query without a positive."""
    scores, positive = lowest_if_not_finite(scores), np.asarray(positive, dtype=bool)
    if not positive.any(axis=1).all():
        raise ValueError("every query needs a positive")
    best = np.where(positive, scores, -np.inf).max(axis=1, keepdims=True)
    tied = scores == best
    return (scores > best).sum(1), tied.sum(1), (tied & positive).sum(1)


def recall_at(k: int, above: np.ndarray, tied: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Credit [Q]: P(a positive is in the top k), where ``slots`` of the tied places fall within it:
    1 − C(tied − hits, slots) / C(tied, slots)."""
    slots = np.clip(k - above, 0, tied)
    miss = np.ones(len(tied))
    for j in range(k):
        drawn = j < slots
        miss = np.where(drawn, miss * np.maximum(tied - hits - j, 0) / np.maximum(tied - j, 1), miss)
    return np.where(hits == 1, slots / tied, 1 - miss)  # the plain quotient has no rounding error


def expected_rank(above: NDArray[np.int64], tied: NDArray[np.int64], hits: NDArray[np.int64]) -> np.ndarray:
    """Mean rank of the best positive if ties are in random order, from 1; float [Q]."""
    return above + (tied + 1) / (hits + 1)


def undecided(k: int, above: NDArray[np.int64], tied: NDArray[np.int64], hits: NDArray[np.int64]) -> np.ndarray:
    """Whether the cut at k falls into a tie between positives and others; int [Q] of 0 and 1."""
    return ((tied > hits) & (above < k) & (k < above + tied)).astype(np.int64)
