"""Masks as files hold them: polygons, run lengths (plain and compressed), numbers of segments in a picture.

A source lists outlines, which are small, and draws them as masks when a sample is read. An outline that could not be drawn is
refused when it is listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np

from diptych.core.sample import Box, Region
from diptych.data.regions.conventions import Convention
from diptych.data.regions.placement import usable


@runtime_checkable
class Outline(Protocol):
    """A mask that is drawn when it is needed."""

    def draw(self, height: int, width: int) -> np.ndarray | None:
        """bool [height, width] of a picture; None if the outline is of a picture of another size."""
        ...


@dataclass(frozen=True)
class Polygons:
    """Corners x0, y0, x1, y1 … of each part, in pixels."""

    parts: tuple[tuple[float, ...], ...]

    def draw(self, height: int, width: int) -> np.ndarray:
        """Pixels with their centre inside any of the parts (even-odd rule within a part); the pixel in the middle if there are
        none.
        """
        mask = np.zeros((height, width), bool)
        for part in self.parts:
            mask |= inside(np.reshape(part, (-1, 2)), height, width)
        if not mask.any() and height and width:
            corners = np.concatenate([np.reshape(part, (-1, 2)) for part in self.parts])
            x, y = corners.mean(0)
            mask[min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1)] = True
        return mask


@dataclass(frozen=True)
class ColumnRuns:
    """COCO's run lengths: of a mask of ``size`` (height, width), column by column, beginning with zeros."""

    counts: tuple[int, ...]
    size: tuple[int, int]

    def draw(self, height: int, width: int) -> np.ndarray | None:
        """The mask; None for a picture of another size."""
        if (height, width) != self.size:
            return None
        return np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts).reshape(width, height).T


@dataclass(frozen=True)
class Segment:
    """The pixels of one number in a picture of numbers: red + 256 · green + 65,536 · blue (COCO panoptic)."""

    url: str
    number: int

    def draw(self, height: int, width: int) -> np.ndarray | None:
        """The mask; None for a picture of another size, or one that cannot be read."""
        numbers = segments(self.url)
        return None if numbers is None or numbers.shape != (height, width) else numbers == self.number


@dataclass(frozen=True)
class EncodedPicture:
    """A mask as a picture file in base64; pixels above 0 belong to it (DCI)."""

    data: str

    def draw(self, height: int, width: int) -> np.ndarray | None:
        """The mask; None for a picture of another size, or one that cannot be read."""
        import base64
        import io

        from PIL import Image

        try:
            with Image.open(io.BytesIO(base64.b64decode(self.data.rpartition(",")[2])), formats=("PNG", "WEBP", "JPEG")) as picture:
                if picture.size != (width, height):
                    return None
                return np.asarray(np.asarray(picture.convert("L") if picture.mode not in ("1", "L", "I") else picture) > 0)
        except (ValueError, OSError, SyntaxError):
            return None


@lru_cache(maxsize=4)  # the segments of a picture are drawn one after the other
def segments(url: str) -> np.ndarray | None:
    """The numbers of a picture of segments, int32 [height, width]; None if it cannot be read."""
    from diptych.data.image import decode
    from diptych.data.source import BrokenItem
    from diptych.data.storage import files

    try:
        rgb = decode(files.read(url), url).astype(np.int32)
    except (BrokenItem, OSError):
        return None
    return np.asarray(rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2])


@dataclass(frozen=True)
class Declared:
    """A box (four numbers) or a point (two) in a convention that needs the picture's size."""

    numbers: tuple[float, ...]
    convention: Convention


def drawn(regions: Sequence[Any], height: int | None, width: int | None, wrong: Callable[[int, str], None]) -> list[Any]:
    """Regions of a picture of that size: outlines drawn as masks, and declared boxes and points in pixels. wrong(number, reason) is
    called for a region with a box that cannot be used, which is left out. Without a size (None) there are no masks, and no regions
    with declared boxes.
    """
    result = []
    for number, r in enumerate(regions, 1):
        if not isinstance(r, Region) or (not isinstance(r.mask, Outline) and not isinstance(r.box, Declared)):
            result.append(r)
        elif height is None or width is None:
            result += [] if isinstance(r.box, Declared) else [r._replace(mask=None)]
        else:
            try:
                box, point = _in_pixels(r, height, width)
            except ValueError as error:
                wrong(number, str(error))
                continue
            mask = r.mask.draw(height, width) if isinstance(r.mask, Outline) else r.mask
            result.append(r._replace(box=box, point=point, mask=mask))
    return result


def _in_pixels(region: Region, height: int, width: int) -> tuple[Box, Any]:
    point: Any = region.point
    if isinstance(point, Declared):
        point = point.convention.point(point.numbers, height, width)
    box: Any = region.box
    if not isinstance(box, Declared):
        return box, point
    if not box.numbers:  # a point alone
        return around(point, height, width), point
    return usable(box.convention.box(box.numbers, height, width), height, width), point


def around(point: Sequence[float], height: float, width: float) -> Box:
    """The pixel that holds a point, as a box: what is known of a region of which only a point is. ValueError for one outside."""
    left, top = math.floor(point[0]), math.floor(point[1])
    if not (0 <= point[0] <= width and 0 <= point[1] <= height):
        raise ValueError(f"a point outside the picture of {width:g} × {height:g} pixels: {list(point)}")
    left, top = min(left, int(width) - 1), min(top, int(height) - 1)
    return float(left), float(top), left + 1.0, top + 1.0


def inside(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels with their centre inside a polygon [n, 2] of x, y by the even-odd rule: bool [height, width]."""
    crossings = np.zeros((height, width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        rows = np.arange(max(0, math.ceil(y0 - 0.5)), min(height, math.ceil(y1 - 0.5)))  # centres with y0 ≤ y < y1
        if not len(rows):
            continue
        at = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        first = np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)  # the first centre to the right of the edge
        np.add.at(crossings, (rows, first), 1)
    return np.asarray(np.cumsum(crossings[:, :width], axis=1) % 2 == 1)


def outline_of(given: Any, size: tuple[Any, Any]) -> Outline | None:
    """An outline from COCO's ``segmentation``: polygons, or run lengths as numbers or compressed. size: the picture's height and
    width. None if there is none. ValueError says what is wrong.
    """
    if given in (None, [], {}):
        return None
    if isinstance(given, Mapping):
        return _runs_of(given, size)
    parts = given if isinstance(given, list) and given and isinstance(given[0], list) else [given]
    checked = []
    for part in parts:
        if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
            raise ValueError("segmentation: a polygon needs three corners or more, as x, y, x, y …")
        try:
            numbers = tuple(float(n) for n in part)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("segmentation: corners of a polygon that are no numbers") from None
        if not all(map(math.isfinite, numbers)):
            raise ValueError("segmentation: corners of a polygon that are not finite")
        checked.append(numbers)
    return Polygons(tuple(checked))


def _runs_of(given: Mapping[str, Any], size: tuple[Any, Any]) -> ColumnRuns:
    counts, own = given.get("counts"), given.get("size")
    if not isinstance(own, (list, tuple)) or len(own) != 2 or not all(isinstance(n, int) and n >= 0 for n in own):
        raise ValueError("segmentation: run lengths need size: [height, width]")
    if isinstance(counts, str):
        counts = decompressed(counts)
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise ValueError("segmentation: counts must be lengths, or a text of compressed lengths")
    if sum(counts) != own[0] * own[1]:
        raise ValueError(f"segmentation: runs of {sum(counts)} pixels for {own[0]} × {own[1]}")
    if all(isinstance(side, int) for side in size) and tuple(own) != tuple(size):
        raise ValueError(f"segmentation: of {own[0]} × {own[1]} pixels, the picture has {size[0]} × {size[1]}")
    return ColumnRuns(tuple(counts), (own[0], own[1]))


def decompressed(text: str) -> list[int]:
    """The lengths that COCO's compressed text holds: six bits a character, of which one says whether the number goes on; from the
    third on each is the difference from the one two places before. ValueError for other texts.
    """
    counts: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            if at >= len(text):
                raise ValueError("segmentation: compressed lengths that end within a number")
            bits = ord(text[at]) - 48
            if not 0 <= bits < 64:
                raise ValueError(f"segmentation: the character {text[at]!r} in compressed lengths")
            value |= (bits & 31) << shift
            shift, at, more = shift + 5, at + 1, bool(bits & 32)
            if not more and bits & 16:
                value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    if any(n < 0 for n in counts):
        raise ValueError("segmentation: negative lengths")
    return counts
