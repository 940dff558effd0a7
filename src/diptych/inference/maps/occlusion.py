"""The map of any model that scores: how much the score falls when a part of the picture is covered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diptych.core.capabilities import Image, Model
from diptych.inference.maps.base import Maps
from diptych.inference.maps.geometry import Box, view_of

GRID = 7  # places per side


class OcclusionMaps(Maps):
    """model: anything that scores. grid: places per side; each is covered, with half of its neighbours, by the picture's mean
    colour (Zeiler & Fergus 2014, section 4.2).
    """

    methods = ("occlusion",)

    def __init__(self, model: Model, grid: int = GRID):
        self.model, self.name, self.grid = model, model.name, grid

    def view(self, height: int, width: int) -> Box:
        """All of the picture."""
        return view_of(height, width, "squash")

    def score(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        """How well text i fits picture i, float32 [n]."""
        return np.asarray(self.model.score(images, texts, np.stack([np.arange(len(images))] * 2, 1)))

    def _grids(self, images: Sequence[Image], texts: Sequence[str], method: str) -> list[np.ndarray]:
        return [self._one(image, text) for image, text in zip(images, texts, strict=True)]

    def _one(self, image: Image, text: str) -> np.ndarray:
        covered = [image]
        height, width = image.shape[:2]
        colour = image.reshape(-1, 3).mean(0).round().astype(np.uint8)
        for row in range(self.grid):
            for column in range(self.grid):
                changed = image.copy()
                top, bottom = (_edge(row, side, self.grid, height) for side in (-0.5, 1.5))
                left, right = (_edge(column, side, self.grid, width) for side in (-0.5, 1.5))
                changed[top:bottom, left:right] = colour
                covered.append(changed)
        pairs = np.stack([np.arange(len(covered)), np.zeros(len(covered), dtype=np.int64)], 1)
        scores = np.asarray(self.model.score(covered, [text], pairs), dtype=np.float32)
        fall: np.ndarray = (scores[0] - scores[1:]).reshape(self.grid, self.grid)
        return fall


def _edge(place: int, offset: float, grid: int, length: int) -> int:
    return int(np.clip(round((place + offset) / grid * length), 0, length))
