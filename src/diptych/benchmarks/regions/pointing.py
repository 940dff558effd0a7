"""The pointing game: does the highest point of a map lie on what the phrase says? (Zhang et al., arXiv:1608.00507)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from diptych.benchmarks.regions.answers import Answer
from diptych.benchmarks.regions.boxes import filled
from diptych.benchmarks.regions.items import Query
from diptych.benchmarks.regions.refer import RegionTask


@dataclass(frozen=True)
class Pointing(RegionTask):
    """One point for each phrase: the maximum of the heat map, else the middle of the mask's pixels or of the box. A hit lies on the
    exact mask where there is one, else in the box; tolerance: pixels by which it may miss (15 in the first papers).

    Chance: a point drawn anywhere in the picture.
    """

    name: str = "pointing"
    tolerance: float = 0.0

    metrics: ClassVar[tuple[str, ...]] = ("hits",)
    single: ClassVar[bool] = False

    def credit(self, query: Query, answer: Answer) -> dict[str, float]:
        """1 if the point is on the target; of several equal maxima their mean."""
        points = points_of(answer)
        if not len(points):
            return {"hits": 0.0}
        return {"hits": float(np.mean([_hit(self._target(query), x, y, self.tolerance) for x, y in points]))}

    def _target(self, query: Query) -> np.ndarray:
        return target(query)

    def without_model(self, query: Query) -> dict[str, dict[str, float]]:
        """The middle of the picture, the middle of the largest region, and any point."""
        own = super().without_model(query)
        share = _near(self._target(query), self.tolerance).mean()
        return {"centre": own["centre"], "largest": own["largest"], "random": {"hits": float(share)}}


def target(query: Query) -> np.ndarray:
    """The pixels that a phrase means, bool [height, width]: of masks where there are any, else of boxes."""
    height, width = query.image.shape[:2]
    result = np.zeros((height, width), bool)
    for box, mask in zip(query.boxes, query.masks, strict=True):
        result |= filled(box, height, width) if mask is None else np.asarray(mask, bool)
    return result


def points_of(answer: Answer) -> np.ndarray:
    """Where an answer points, float [n, 2] of x, y in pixels: several points if a map has several equal maxima, none if it says
    nothing.
    """
    if answer.heat is not None and np.isfinite(answer.heat).any():
        heat = np.where(np.isfinite(answer.heat), answer.heat, -np.inf)
        rows, columns = np.nonzero(heat == heat.max())
        return np.stack([columns + 0.5, rows + 0.5], 1)
    if answer.box is not None:
        return np.array([[(answer.box[0] + answer.box[2]) / 2, (answer.box[1] + answer.box[3]) / 2]])
    if answer.mask is not None and answer.mask.any():
        rows, columns = np.nonzero(answer.mask)
        return np.array([[columns.mean() + 0.5, rows.mean() + 0.5]])
    return np.empty((0, 2))


def _hit(mask: np.ndarray, x: float, y: float, tolerance: float) -> bool:
    height, width = mask.shape
    if not (0 <= x <= width and 0 <= y <= height):
        return False
    if not tolerance:
        return bool(mask[min(int(y), height - 1), min(int(x), width - 1)])
    rows, columns = np.nonzero(mask)
    return bool(len(rows)) and bool(((columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2).min() <= tolerance**2)


def _near(mask: np.ndarray, tolerance: float) -> np.ndarray:
    """Pixels from which a point counts as a hit."""
    if not tolerance:
        return mask
    height, width = mask.shape
    return np.array([[_hit(mask, x + 0.5, y + 0.5, tolerance) for x in range(width)] for y in range(height)])
