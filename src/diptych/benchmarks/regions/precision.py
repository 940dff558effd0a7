"""Average precision of boxes as COCO measures it (Lin et al., arXiv:1405.0312): 101 recall levels, overlaps of .5 to .95.

Boxes of one name are taken in the order of their scores, those of all pictures together. Each takes the true box of its picture
with which it overlaps most among those that are still free, if the overlap is enough; then it is right, else wrong. Precision at a
recall level is the highest at that recall or above; their mean over the levels 0, .01 … 1 is the average precision of the name.
Names without a true box do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diptych.benchmarks.regions.boxes import ious

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
LEVELS = np.linspace(0, 1, 101)
MOST = 100  # boxes of one name in one picture that count


class Found(NamedTuple):
    """The boxes of one name, in the order of their scores, over all pictures. picture: int [D]; right: bool [T, D] at each
    threshold; truths: int [pictures], true boxes in each.
    """

    picture: np.ndarray
    right: np.ndarray
    truths: np.ndarray


def matched(
    boxes: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    thresholds: Sequence[float] = THRESHOLDS,
) -> Found:
    """Which boxes of one name are right: for each picture its boxes [d, 4], scores [d] and true boxes [t, 4]."""
    pictures, values, right = [], [], []
    for number, (found, score, true) in enumerate(zip(boxes, scores, truths, strict=True)):
        order = np.argsort(-np.asarray(score, np.float64), kind="mergesort")[:MOST]
        overlap = ious(np.reshape(found, (-1, 4))[order], true)
        flags = np.zeros((len(thresholds), len(order)), bool)
        for t, least in enumerate(thresholds):
            free = np.ones(overlap.shape[1], bool)
            for d, row in enumerate(overlap):
                open_ = np.where(free, row, -1.0)
                if len(open_) and open_.max() >= min(least, 1 - 1e-10):
                    free[int(len(open_) - 1 - np.argmax(open_[::-1]))] = False  # of equal ones the last, as COCO's toolbox
                    flags[t, d] = True
        pictures += [number] * len(order)
        values += np.asarray(score, np.float64)[order].tolist()
        right.append(flags)
    order = np.argsort(-np.array(values), kind="mergesort")
    flags = np.concatenate(right, 1) if right else np.zeros((len(thresholds), 0), bool)
    return Found(np.array(pictures, np.int64)[order], flags[:, order], np.array([len(t) for t in truths], np.int64))


def average_precision(found: Found, times: np.ndarray | None = None) -> np.ndarray:
    """Average precision at each threshold, float [T]; NaN without a true box. times: how often each picture counts, int [pictures]
    (resamples); None: once.
    """
    times = np.ones(len(found.truths), np.int64) if times is None else times
    total = int((found.truths * times).sum())
    if not total:
        return np.full(len(found.right), np.nan)
    weight = times[found.picture]
    hits, misses = np.cumsum(found.right * weight, 1), np.cumsum(~found.right * weight, 1)
    recall, precision = hits / total, hits / np.maximum(hits + misses, np.finfo(float).tiny)
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    result = np.zeros(len(found.right))
    for t, (r, p) in enumerate(zip(recall, precision, strict=True)):
        at = np.searchsorted(r, LEVELS, side="left")
        result[t] = np.append(p, 0.0)[np.minimum(at, len(p))].mean() if len(p) else 0.0
    return result


def mean_average_precision(all_: Sequence[Found], times: np.ndarray | None = None) -> np.ndarray:
    """The mean over names with a true box, at each threshold: float [T]; NaN if there is no such name."""
    values = np.array([average_precision(found, times) for found in all_]).reshape(len(all_), -1)
    known = ~np.isnan(values).any(1)
    return values[known].mean(0) if known.any() else np.full(values.shape[1], np.nan)
