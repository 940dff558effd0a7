"""Boxes as tasks compare them, and the boxes that need no model: controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diptych.core.sample import Box

OVERLAP = 0.5  # intersection over union from which on a box is right


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom); 0 for boxes without area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    union = area(a) + area(b) - both
    return both / union if union > 0 else 0.0


def ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same of all pairs of boxes [n, 4] and [m, 4]: float64 [n, m]."""
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - both
    return np.asarray(np.divide(both, union, out=np.zeros_like(both), where=union > 0))


def area(box: Sequence[float]) -> float:
    """The area of a box in square pixels; 0 if its edges are in the wrong order."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def around_all(boxes: Sequence[Sequence[float]]) -> Box:
    """The smallest box around several."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def whole(height: int, width: int) -> Box:
    """The box of the whole picture."""
    return 0.0, 0.0, float(width), float(height)


def centre(height: int, width: int) -> Box:
    """The box in the middle, half as wide and half as high as the picture."""
    return width / 4, height / 4, width * 3 / 4, height * 3 / 4


def of_mask(mask: np.ndarray) -> Box:
    """The tight box around a mask with a pixel in it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def filled(box: Sequence[float], height: int, width: int) -> np.ndarray:
    """The pixels with their centre inside a box, bool [height, width]."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    rows, columns = (box[1] <= y) & (y <= box[3]), (box[0] <= x) & (x <= box[2])
    return rows[:, None] & columns[None]
