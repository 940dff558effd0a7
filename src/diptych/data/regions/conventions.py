"""How files and models write boxes: the order of the numbers and what they count.

Diptych's own is ``xyxy`` in pixels. Others are recognised by declaration alone, ``?convention=xywh/1000``: an order, and after the
slash the number that stands for the whole width or height (no slash: pixels). ``benchmarks/regions/cards.py`` finds out which one a
foreign model uses.

| order | numbers |
|---|---|
| ``xyxy`` | left, top, right, bottom |
| ``xywh`` | left, top, width, height |
| ``yxyx`` | top, left, bottom, right |
| ``center`` | x and y of the centre, width, height |

``@padded`` after it: shares are of a square as long as the longer side, with the picture in its middle (LLaVA, Shikra).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import Box

ORDERS = ("xyxy", "xywh", "yxyx", "center")
SCALES = (0, 1, 100, 999, 1000, 1024)
PADDED = "@padded"
_OTHER_NAMES = {"ltrb": "xyxy", "ltwh": "xywh", "cxcywh": "center", "tlbr": "yxyx"}


class Convention(NamedTuple):
    """order: one of ``ORDERS``; scale: what stands for the whole side, 0: numbers are pixels; padded: of a padded square."""

    order: str = "xyxy"
    scale: int = 0
    padded: bool = False

    def __str__(self) -> str:
        return f"{self.order}{f'/{self.scale}' if self.scale else ''}{PADDED if self.padded else ''}"

    def box(self, numbers: Sequence[float], height: float, width: float) -> Box:
        """Four numbers → left, top, right, bottom in pixels of a picture. ValueError unless there are four finite numbers."""
        try:
            values = [float(n) for n in numbers]
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"a box given as {type(numbers).__name__}; expected four numbers") from None
        if len(values) != 4 or not all(map(math.isfinite, values)):
            raise ValueError(f"a box of {len(values)} numbers, {values}; expected four")
        a, b, c, d = values
        if self.order == "xywh":
            a, b, c, d = a, b, a + c, b + d
        elif self.order == "yxyx":
            a, b, c, d = b, a, d, c
        elif self.order == "center":
            a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
        x, y, left, top = self._frame(height, width)
        return a * x - left, b * y - top, c * x - left, d * y - top

    def point(self, numbers: Sequence[float], height: float, width: float) -> tuple[float, float]:
        """Two numbers → x, y in pixels of a picture. ValueError unless there are two finite numbers."""
        values = [float(n) for n in numbers]
        if len(values) != 2 or not all(map(math.isfinite, values)):
            raise ValueError(f"a point of {len(values)} numbers, {values}; expected two")
        if self.order == "yxyx":
            values = values[::-1]
        x, y, left, top = self._frame(height, width)
        return values[0] * x - left, values[1] * y - top

    def numbers(self, box: Sequence[float], height: float, width: float) -> list[float]:
        """A box in pixels as this convention writes it: the inverse of ``box``."""
        x, y, left, top = self._frame(height, width)
        a, b, c, d = (box[0] + left) / x, (box[1] + top) / y, (box[2] + left) / x, (box[3] + top) / y
        if self.order == "xywh":
            return [a, b, c - a, d - b]
        if self.order == "yxyx":
            return [b, a, d, c]
        return [(a + c) / 2, (b + d) / 2, c - a, d - b] if self.order == "center" else [a, b, c, d]

    def _frame(self, height: float, width: float) -> tuple[float, float, float, float]:
        """Pixels of one unit along x and y, and the padding on the left and above."""
        side = max(height, width)
        left, top = ((side - width) / 2, (side - height) / 2) if self.padded else (0.0, 0.0)
        if not self.scale:
            return 1.0, 1.0, left, top
        return (side if self.padded else width) / self.scale, (side if self.padded else height) / self.scale, left, top


PIXELS = Convention()


def convention(text: str, where: str = "convention") -> Convention:
    """The convention of a name such as ``xywh``, ``xyxy/1000`` or ``xyxy/1@padded``. DiptychError for another name."""
    name, padded = text.removesuffix(PADDED), text.endswith(PADDED)
    order, _, scale = name.partition("/")
    order = _OTHER_NAMES.get(order, order)
    if order not in ORDERS:
        raise DiptychError(f"{where}: '{text}': no order '{order}'{nearest(order, ORDERS)}")
    if scale and scale not in map(str, SCALES[1:]):
        raise DiptychError(f"{where}: '{text}': expected /1, /100, /999, /1000 or /1024 after the order, or nothing for pixels")
    return Convention(order, int(scale or 0), padded)


def every(padded: bool = True) -> list[Convention]:
    """All conventions, the plainest first. padded: those of padded squares too."""
    frames = (False, True) if padded else (False,)
    return [Convention(order, scale, frame) for frame in frames for scale in SCALES for order in ORDERS]
