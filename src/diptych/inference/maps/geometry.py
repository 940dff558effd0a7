"""From a map on the grid of patches to the pixels of a picture of any shape, and from there to a box."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

# The share of a map's range above which a pixel belongs to the phrase, by method: chosen once for the best mean overlap with boxes
# on the train split of the built-in world (docs/maps.md), never on the data that a model is judged on.
THRESHOLD = 0.5
THRESHOLDS = {
    "words": 0.8,
    "cross": 0.3,
    "gradient": 0.3,
    "rollout": 0.3,
    "mixture": 0.4,
    "grad-cam": 0.4,
    "legrad": 0.6,
    "dense": 0.7,
}


def view_of(height: int, width: int, how: Literal["crop", "squash"] = "crop", share: float = 1.0) -> Box:
    """The part of a picture that a model reads: its central square (``share`` of it), or all of it."""
    if how == "squash":
        return 0.0, 0.0, float(width), float(height)
    side = min(height, width) * share
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def placed(grid: np.ndarray, height: int, width: int, view: Box) -> np.ndarray:
    """A map [h, w] of the part ``view`` of a picture → float32 [height, width], linear between the middles of the patches. Pixels
    that the model does not read have the map's least value.
    """
    rows, columns = (
        np.clip((np.arange(n) + 0.5 - low) / (high - low) * cells - 0.5, 0, cells - 1)
        for n, low, high, cells in ((height, view[1], view[3], grid.shape[0]), (width, view[0], view[2], grid.shape[1]))
    )
    values = _between(_between(grid.astype(np.float64), rows).T, columns).T
    outside = np.ones((height, width), dtype=bool)
    top, left = (max(0, math.floor(edge + 0.5)) for edge in (view[1], view[0]))
    bottom, right = (math.ceil(edge - 0.5) for edge in (view[3], view[2]))
    outside[top:bottom, left:right] = False
    values[outside] = grid.min()
    return values.astype(np.float32)


def _between(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows of ``values`` at fractional places."""
    low = np.floor(at).astype(int)
    high, part = np.minimum(low + 1, len(values) - 1), (at - low)[:, None]
    result: np.ndarray = values[low] * (1 - part) + values[high] * part
    return result


def box_of(heat: np.ndarray, threshold: float = THRESHOLD) -> Box | None:
    """The box around the connected pixels above the threshold that hold the highest one; None for a map without a difference."""
    least, most = float(heat.min()), float(heat.max())
    if not most > least:
        return None
    part = connected(heat >= least + threshold * (most - least), int(heat.argmax()))
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def connected(mask: np.ndarray, start: int) -> np.ndarray:
    """The pixels of a mask that are connected with one of them by their sides: bool [H, W]. start: its place in the flat mask."""
    part = np.zeros(mask.shape, dtype=bool)
    part.flat[start] = True
    size = 0
    while (grown := int(part.sum())) > size:
        size = grown
        wide = part.copy()
        wide[1:] |= part[:-1]
        wide[:-1] |= part[1:]
        wide[:, 1:] |= part[:, :-1]
        wide[:, :-1] |= part[:, 1:]
        part = wide & mask
    return part


def square(tokens: np.ndarray) -> np.ndarray:
    """[N] → [h, h], row by row. ValueError if N is no square."""
    side = math.isqrt(len(tokens))
    if side * side != len(tokens):
        raise ValueError(f"{len(tokens)} patches are no square")
    return np.asarray(tokens, dtype=np.float32).reshape(side, side)
