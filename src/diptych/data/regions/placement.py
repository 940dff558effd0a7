"""Which part of a picture becomes the square that a model reads, and where boxes, points and masks lie in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diptych.core.sample import Box, Point

LEAST = 0.25  # share of a box's area that must be inside the square


class Placement(NamedTuple):
    """The part of a picture, in its pixels, that is resized to the square, and whether it is then mirrored."""

    left: float
    top: float
    width: float
    height: float
    flip: bool = False

    def box(self, box: Sequence[float], least: float = LEAST) -> Box | None:
        """A box in pixels → left, top, right, bottom as shares of the square; None if less than ``least`` of its area is inside."""
        left, right = (min(max((edge - self.left) / self.width, 0.0), 1.0) for edge in (box[0], box[2]))
        top, bottom = (min(max((edge - self.top) / self.height, 0.0), 1.0) for edge in (box[1], box[3]))
        area = (box[2] - box[0]) * (box[3] - box[1])
        if area <= 0 or (right - left) * (bottom - top) * self.width * self.height < area * least or right <= left or bottom <= top:
            return None
        if self.flip:
            left, right = 1 - right, 1 - left
        return float(left), float(top), float(right), float(bottom)

    def back(self, box: Sequence[float]) -> Box:
        """Shares of the square → pixels of the picture: the inverse of ``box`` for a box that is inside."""
        left, top, right, bottom = box
        if self.flip:
            left, right = 1 - right, 1 - left
        x, y = (self.left + self.width * left, self.left + self.width * right), (self.top, self.height)
        return x[0], y[0] + y[1] * top, x[1], y[0] + y[1] * bottom

    def point(self, point: Sequence[float]) -> Point | None:
        """A point in pixels → x, y as shares of the square; None if it is outside."""
        x, y = (point[0] - self.left) / self.width, (point[1] - self.top) / self.height
        if not (0 <= x <= 1 and 0 <= y <= 1):
            return None
        return (1 - x if self.flip else x), y

    def mask(self, mask: np.ndarray, size: int) -> np.ndarray:
        """A mask bool [height, width] of the picture → bool [size, size] of the square: pixels of which half or more is covered.
        A mask with a part inside that covers half of no pixel keeps the pixels that it covers most.
        """
        from PIL import Image

        box = (self.left, self.top, self.left + self.width, self.top + self.height)
        bytes_ = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
        share = np.asarray(bytes_.resize((size, size), Image.Resampling.BILINEAR, box=box))
        most = int(share.max())
        seen = share >= min(128, most) if most else np.zeros((size, size), bool)
        return np.ascontiguousarray(seen[:, ::-1]) if self.flip else seen

    def flipped(self) -> Placement:
        """The same part, mirrored."""
        return self._replace(flip=not self.flip)


def central(height: int, width: int) -> Placement:
    """The central square, which models read unless training crops at random."""
    side = min(height, width)
    return Placement((width - side) / 2, (height - side) / 2, side, side)


def whole(height: int, width: int) -> Placement:
    """The whole picture, squashed to a square."""
    return Placement(0, 0, width, height)


def usable(box: Any, height: float | None = None, width: float | None = None) -> Box:
    """A box as four floats, cut to the picture. height, width: of the picture; None: not known, nothing is cut.

    ValueError says what is wrong with a box that cannot be used: not four finite numbers, right of or below its own end, without
    area, or outside the picture.
    """
    try:
        edges = [float(edge) for edge in box]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"a box given as {type(box).__name__}; expected [left, top, right, bottom]") from None
    if len(edges) != 4 or not all(map(math.isfinite, edges)):
        raise ValueError(f"a box of {len(edges)} numbers, {edges}; expected four")
    left, top, right, bottom = edges
    if right <= left or bottom <= top:
        raise ValueError(f"an empty box: {edges}")
    if width is not None:
        left, right = (min(max(edge, 0.0), float(width)) for edge in (left, right))
    if height is not None:
        top, bottom = (min(max(edge, 0.0), float(height)) for edge in (top, bottom))
    if right <= left or bottom <= top:
        raise ValueError(f"a box outside the picture of {width:g} × {height:g} pixels: {edges}")
    return left, top, right, bottom
