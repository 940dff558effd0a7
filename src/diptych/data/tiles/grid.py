"""Which grid of tiles fits a picture best, how the picture is cut, and which of its patches are left without the padding.

LLaVA-NeXT (Liu et al. 2024, "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge"), with the details of transformers'
``LlavaNextForConditionalGeneration``, which the tests compare with. S: the side of a tile in pixels; g: its side in patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

Grid = tuple[int, int]  # rows and columns
GRIDS: tuple[Grid, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # those of LLaVA-NeXT, in its order
NEWLINE = -1  # in a reading order: the learned vector that ends a row of patches


class Tiled(NamedTuple):
    """A picture as a model reads it."""

    tiles: np.ndarray  # uint8 [1 + rows · columns, S, S, 3]: the whole picture at the size of a tile, then the tiles row by row
    grid: Grid
    size: tuple[int, int]  # height and width of the picture, in pixels; of one that is stretched, as it is then


def best_grid(height: int, width: int, grids: Sequence[Grid], side: int) -> Grid:
    """The grid in which most pixels of a picture are left; of several, the one with the least that is empty; of these, the first.

    height and width of the picture and side of a tile, in pixels.
    """
    best, most, least = grids[0], 0, math.inf
    for rows, columns in grids:
        high, wide = rows * side, columns * side
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), height * width)
        empty = high * wide - kept
        if kept > most or (kept == most and empty < least):
            best, most, least = (rows, columns), kept, empty
    return best


def inside(height: int, width: int, high: int, wide: int) -> tuple[int, int]:
    """The height and width of a picture scaled to fit into ``high`` × ``wide`` pixels, its shape kept."""
    across, down = wide / width, high / height
    if across < down:
        return min(math.ceil(height * across), high), wide
    return high, min(math.ceil(width * down), wide)


def cut(image: np.ndarray, side: int, grids: Sequence[Grid], stretched: bool = False) -> Tiled:
    """A picture, uint8 [H, W, 3], as tiles of ``side`` pixels: the whole of it deformed to a square, then the tiles of the best
    grid, in which it is centred on black with its shape kept, or which it fills (``stretched``). Bicubic, antialiased.
    """
    from PIL import Image

    height, width = image.shape[:2]
    rows, columns = best_grid(height, width, grids, side)
    high, wide = rows * side, columns * side
    new_high, new_wide = (high, wide) if stretched else inside(height, width, high, wide)
    canvas = np.zeros((high, wide, 3), np.uint8)
    top, left = (high - new_high) // 2, (wide - new_wide) // 2
    canvas[top : top + new_high, left : left + new_wide] = _resized(Image.fromarray(image), new_high, new_wide)
    tiles = canvas.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(rows * columns, side, side, 3)
    whole = _resized(Image.fromarray(image), side, side)
    return Tiled(np.concatenate([whole[None], tiles]), (rows, columns), (high, wide) if stretched else (height, width))


def _resized(image: Any, height: int, width: int) -> np.ndarray:
    from PIL import Image

    same = image.size == (width, height)
    return np.array(image if same else image.resize((width, height), Image.Resampling.BICUBIC))


def unpadded(size: tuple[int, int], high: int, wide: int) -> tuple[slice, slice]:
    """The rows and columns of a map of ``high`` × ``wide`` patches that a picture takes, without the padding around it.

    size: height and width of the picture.
    """
    height, width = size
    if width / height > wide / high:
        padding = (high - int(round(height * (wide / width), 7))) // 2
        return slice(padding, high - padding), slice(0, wide)
    padding = (wide - int(round(width * (high / height), 7))) // 2
    return slice(0, high), slice(padding, wide - padding)


@lru_cache(4096)
def reading_order(size: tuple[int, int], grid: Grid, side: int) -> np.ndarray:
    """The patches of a picture in the order in which a language model reads them, int64 [n]: those of the whole picture, then the
    rows of the large map of all tiles without its padding, each followed by ``NEWLINE``.

    A patch is tile · side² + row · side + column; side: patches of a tile. Tile 0 is the whole picture.
    """
    rows, columns = grid
    each = side * side
    large = (each + np.arange(rows * columns * each)).reshape(rows, columns, side, side)
    large = large.swapaxes(1, 2).reshape(rows * side, columns * side)[unpadded(size, rows * side, columns * side)]
    ended = np.pad(large, ((0, 0), (0, 1)), constant_values=NEWLINE)
    order = np.concatenate([np.arange(each), ended.reshape(-1)])
    order.flags.writeable = False
    return order


def one_tile(side: int) -> np.ndarray:
    """The reading order of a picture that is not cut into tiles: its patches and one ``NEWLINE``."""
    return np.append(np.arange(side * side), NEWLINE)
