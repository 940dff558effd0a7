"""Selective prediction: answering only above a confidence (El-Yaniv & Wiener 2010; Whitehead et al., arXiv:2204.13631).

``confidence`` float [N], higher is more certain; ``credit`` float [N] in [0, 1]. A confidence that is not finite counts as the
lowest. Items of equal confidence are answered together, so the order of items does not matter.
"""

from __future__ import annotations

import numpy as np

from diptych.benchmarks.metrics.ranking import lowest_if_not_finite
from diptych.benchmarks.statistics import mean


def _groups(confidence: np.ndarray, credit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct confidences in descending order, with the number of items and the summed error of each."""
    credit = np.asarray(credit, dtype=np.float64)
    level, where, count = np.unique(-lowest_if_not_finite(confidence), return_inverse=True, return_counts=True)
    return -level, count, np.bincount(where.ravel(), 1 - credit, minlength=len(count))


def risk_coverage(confidence: np.ndarray, credit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverages 1/N..1 and the risk (mean error of the answered items) at each; within a tie its expected value; float [N] each."""
    _, count, error = _groups(confidence, credit)
    answered = np.arange(1, count.sum() + 1)
    risks = np.cumsum(np.repeat(error / count, count)) / answered
    risks[: count[0] if len(count) else 0] = error[:1] / count[:1]  # without rounding error
    return answered / len(answered), risks


def area_under_risk(confidence: np.ndarray, credit: np.ndarray) -> float:
    """Mean of the risk over the coverages 1/N..1 (AURC); a constant confidence gets exactly the error rate."""
    return mean(risk_coverage(confidence, credit)[1])


def coverage_at_risk(confidence: np.ndarray, credit: np.ndarray, risk: float) -> float:
    """C@r: the largest coverage with a risk of at most ``risk``, never splitting a group of tied confidences."""
    _, count, error = _groups(confidence, credit)
    answered = np.cumsum(count)
    good = np.cumsum(error) <= risk * answered + 1e-9
    return float(answered[good][-1] / answered[-1]) if good.any() else 0.0


def effective_reliability(confidence: np.ndarray, credit: np.ndarray, threshold: float, cost: float) -> np.ndarray:
    """Φ_c of each item, float [N]: its credit if answered and above 0, −``cost`` if answered and 0, else 0.

    An item is answered if its confidence is at least ``threshold``.
    """
    credit = np.asarray(credit, dtype=np.float64)
    answered = lowest_if_not_finite(confidence) >= threshold
    return np.where(answered, np.where(credit > 0, credit, -cost), 0.0)


def best_threshold(confidence: np.ndarray, credit: np.ndarray, cost: float) -> float:
    """The threshold with the highest mean Φ_c, to be chosen on a validation split; the highest of several; ∞: never answer."""
    level, where = np.unique(lowest_if_not_finite(confidence), return_inverse=True)
    gain = np.bincount(where.ravel(), effective_reliability(confidence, credit, -np.inf, cost), minlength=len(level))
    total = np.concatenate([[0.0], np.cumsum(gain[::-1])])  # abstain always, then one more group at a time
    best = int(np.flatnonzero(total >= total.max() - 1e-12)[0])
    return float("inf") if best == 0 else float(level[::-1][best - 1])
