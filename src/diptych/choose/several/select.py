"""The one rule of selection, for several labels: settings, probabilities and thresholds come from training pictures that were left
out. As ``choose.select``, with mean average precision in place of balanced accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diptych.benchmarks.metrics.several import mean_average_precision
from diptych.choose.select import FOLDS
from diptych.choose.several.data import folds_of
from diptych.choose.ways import Support, Way
from diptych.core.errors import DiptychError
from diptych.inference.several.model import probabilities_of

FEWEST = 5  # pictures with a label, for a threshold of its own


@dataclass(frozen=True)
class Calibration:
    """From scores to probabilities and labels. slope: of all labels; offsets, thresholds [L]."""

    slope: float
    offsets: np.ndarray
    thresholds: np.ndarray

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """float64 [N, L]"""
        return probabilities_of(scores, self.slope, self.offsets)

    def given(self, scores: np.ndarray) -> np.ndarray:
        """Which labels each picture gets, bool [N, L]."""
        result: np.ndarray = self.probabilities(scores) >= self.thresholds
        return result

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"slope": self.slope, "offsets": self.offsets.tolist(), "thresholds": self.thresholds.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """From what ``to_dict`` gave."""
        return cls(data["slope"], np.array(data["offsets"]), np.array(data["thresholds"]))


@dataclass(frozen=True)
class SeveralChoice:
    """What cross-validation chose for a way.

    score: mean average precision out of fold, where the settings for each fold were chosen on the other folds; NaN if nothing could
    be left out. scores: of each training picture by heads of the chosen settings that never saw it [N, L]; of a way that learns
    from no pictures by its one head. calibration: from these. loss: their mean −log probability over all decisions.
    """

    settings: dict[str, Any]
    score: float
    scores: np.ndarray
    calibration: Calibration
    loss: float
    tried: list[dict[str, Any]] = field(default_factory=list)
    folds: int = 0


def choose_several(
    way: type[Way], support: Support, groups: np.ndarray, settings: Mapping[str, Any] | None = None, folds: int = FOLDS
) -> SeveralChoice:
    """Settings of a way by cross-validation: the highest mean average precision over the pictures left out, then the first of the
    grid. settings: these, not a choice.

    Where nothing can be left out, the first setting, and a calibration by scores of the pictures that it learned from. DiptychError
    if no picture has a label.
    """
    targets = np.asarray(support.y, dtype=bool)
    if not targets.any():
        raise DiptychError("none of these training pictures has a label")
    grid = [dict(settings)] if settings else [dict(s) for s in way.grid(support)]
    fold = folds_of(targets, groups, folds, support.seed) if way.needs_images else np.full(len(targets), -1)
    if (fold < 0).all():
        grid = grid[:1] if way.needs_images else grid
        scores = np.stack(way.logits_of(grid, support, support.x)).astype(np.float64)
        left_out = not way.needs_images
    else:
        scores = np.zeros((len(grid), *targets.shape))
        for k in range(fold.max() + 1):
            inside = support.rows(np.flatnonzero(fold != k))
            for out, of in zip(scores, way.logits_of(grid, inside, support.x[fold == k]), strict=True):
                out[fold == k] = of
        left_out = True
    values = [_precision(of, targets) for of in scores]
    best = int(np.argmax(np.round(values, 12)))
    chosen = scores[best]
    calibration = calibrate(chosen, targets)
    score = float("nan")
    if left_out:
        honest = chosen.copy()
        for k in range(fold.max() + 1) if len(grid) > 1 and fold.max() > 0 else ():
            rows = fold != k
            honest[~rows] = scores[int(np.argmax(np.round([_precision(of[rows], targets[rows]) for of in scores], 12)))][~rows]
        score = _precision(honest, targets)
    tried = [{**s, "precision": v} for s, v in zip(grid, values, strict=True)]
    return SeveralChoice(grid[best], score, chosen, calibration, log_loss(calibration, chosen, targets), tried, int(fold.max() + 1))


def _precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean average precision; 0 where every label is had by all or by none."""
    value, _ = mean_average_precision(scores, targets)
    return 0.0 if np.isnan(value) else value


def log_loss(calibration: Calibration, scores: np.ndarray, targets: np.ndarray) -> float:
    """The mean −log probability of what is so, over pictures and labels, in nats."""
    p = calibration.probabilities(scores).clip(1e-12, 1 - 1e-12)
    return float(-np.where(targets, np.log(p), np.log(1 - p)).mean())


def calibrate(scores: np.ndarray, targets: np.ndarray) -> Calibration:
    """Probabilities and thresholds from scores [N, L] of pictures with known labels."""
    slope, offsets = platt(scores, targets)
    p = probabilities_of(scores, slope, offsets)
    common = best_threshold(p.ravel(), targets.ravel())
    own = [
        best_threshold(p[:, label], targets[:, label]) if FEWEST <= n <= len(targets) - FEWEST else common
        for label, n in enumerate(targets.sum(0))
    ]
    return Calibration(slope, offsets, np.array(own))


def platt(scores: np.ndarray, targets: np.ndarray, steps: int = 50) -> tuple[float, np.ndarray]:
    """Slope and offsets [L] of the probabilities 1 / (1 + exp(−(slope · score + offset))) with the least loss, by Newton's method.

    Platt 1999 (Probabilistic outputs for support vector machines), with his targets (n⁺ + 1) / (n⁺ + 2) and 1 / (n⁻ + 2) in place
    of 1 and 0, so that the values are finite. One slope for all labels, since some have few pictures. A slope below 0, of scores
    that say nothing, becomes 0: then a probability is the label's share.
    """
    s = np.clip(np.asarray(scores, dtype=np.float64), -1e3, 1e3)
    n, has = len(s), np.asarray(targets, dtype=np.float64)
    positives = has.sum(0)
    goal = np.where(has > 0, (positives + 1) / (positives + 2), 1 / (n - positives + 2))
    centre, width = s.mean(0), float((s - s.mean(0)).std()) or 1.0
    z = (s - centre) / width
    slope, offsets = 1.0, np.log(goal.mean(0) / (1 - goal.mean(0)))

    def loss(a: float, b: np.ndarray) -> float:
        """The cross-entropy with the goals."""
        return float((np.logaddexp(0, a * z + b) - goal * (a * z + b)).sum())

    now = loss(slope, offsets)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(slope * z + offsets, -700, 700)))
        error, weight = p - goal, p * (1 - p) + 1e-12
        # The Hessian is an arrow: a diagonal for the offsets, and one row for the slope.
        down, row, corner = weight.sum(0), (weight * z).sum(0), float((weight * z * z).sum())
        rest = corner - float((row**2 / down).sum())
        gradient = float((error * z).sum()) - float((row * error.sum(0) / down).sum())
        change = gradient / max(rest, 1e-9)
        changes = (error.sum(0) - row * change) / down
        size = 1.0
        while size > 1e-6 and loss(slope - size * change, offsets - size * changes) > now:
            size /= 2
        slope, offsets = slope - size * change, offsets - size * changes
        before, now = now, loss(slope, offsets)
        if before - now < 1e-10 * abs(before):
            break
    if slope < 0:
        slope, offsets = 0.0, np.log(goal.mean(0) / (1 - goal.mean(0)))
    return slope / width, offsets - slope / width * centre


def best_threshold(p: np.ndarray, has: np.ndarray) -> float:
    """The threshold with the highest F1 of the decisions p ≥ threshold; halfway between two neighbours of p. 0.5 where nothing has
    the label. p, has [n].
    """
    if not has.any():
        return 0.5
    order = np.argsort(-p, kind="stable")
    values, hits = p[order], np.cumsum(has[order])
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + has.sum())
    ends = np.append(values[1:] < values[:-1], True)  # a threshold cannot come between equal values
    best = int(np.argmax(np.where(ends, f1, -1)))
    below = values[best + 1] if best + 1 < len(p) else 0.0
    return float((values[best] + below) / 2)
