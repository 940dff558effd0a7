"""Textured backgrounds: pale, so that objects of every colour are easy to see, and made of integers, so that they are exact.

A texture is twice as wide and high as a scene; each scene shows a part of it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BASES = {
    "grass": (184, 206, 156),
    "sand": (226, 208, 168),
    "water": (174, 204, 220),
    "snow": (234, 239, 243),
    "wood": (210, 184, 150),
    "stone": (190, 190, 188),
    "bricks": (212, 172, 156),
    "paper": (240, 234, 216),
    "cloth": (208, 196, 216),
    "tiles": (194, 214, 208),
}
KINDS = tuple(BASES)
VARIANTS = 4  # textures of each kind


def _noise(random: np.random.RandomState, across: int, down: int, width: int) -> NDArray[np.int32]:
    """Smooth noise with ``across`` × ``down`` knots, int -128..127, [width, width]."""
    knots = random.randint(0, 256, (max(2, down), max(2, across))).astype(np.uint8)
    return np.asarray(Image.fromarray(knots).resize((width, width), Image.Resampling.BICUBIC)).astype(np.int32) - 128


def _relief(kind: str, random: np.random.RandomState, width: int) -> np.ndarray:
    """Brightness of a texture relative to its base colour, int [width, width]."""
    y, x = np.mgrid[0:width, 0:width]
    unit = max(4, width // 8)  # a quarter of the scene
    fine, coarse = _noise(random, width // 2, width // 2, width), _noise(random, 7, 7, width)
    if kind == "grass":
        return _noise(random, width // 2, width // 6, width) // 5 + coarse // 8
    if kind == "sand":
        return fine // 8 + coarse // 9
    if kind == "water":
        wave: NDArray[np.int64] = np.abs((y + coarse // 16) % unit - unit // 2) * 40 // unit
        return wave - 10 + coarse // 14
    if kind == "snow":
        return coarse // 12 + fine // 24
    if kind == "wood":
        plank = y // unit
        seam = (y % unit == 0) | ((x + plank * 37) % (5 * unit) == 0)
        wood: np.ndarray = _noise(random, 6, width // 2, width) // 7 + random.randint(-9, 10, 64)[plank] - 26 * seam
        return wood
    if kind == "stone":
        return (coarse // 24) * 3 + _noise(random, 16, 16, width) // 12 + fine // 14
    if kind == "bricks":
        row = 2 * y // unit
        shifted = x + (row % 2) * (unit // 2)
        tone = random.randint(-12, 13, (64, 64))[row, shifted // unit]
        return np.where((2 * y % unit < 2) | (shifted % unit == 0), 20, tone + fine // 20)
    if kind == "paper":
        return fine // 22 + coarse // 26
    if kind == "cloth":
        cloth: np.ndarray = 9 * ((x // (unit // 2)) % 2) + 9 * ((y // (unit // 2)) % 2) - 9 + fine // 22
        return cloth
    assert kind == "tiles", kind
    tone = random.randint(-8, 9, (64, 64))[y // unit, x // unit]
    return np.where((x % unit == 0) | (y % unit == 0), -24, tone + coarse // 20)


@lru_cache(maxsize=8)
def textures(size: int) -> dict[str, list[np.ndarray]]:
    """Kind to its variants, each uint16 [2·size, 2·size, 3] with values 0..255."""
    bank = {}
    for number, (kind, base) in enumerate(BASES.items()):
        random = np.random.RandomState(1000 + number)  # the one NumPy generator with a guaranteed stream
        bank[kind] = [
            np.clip(np.array(base) + random.randint(-8, 9, 3) + _relief(kind, random, 2 * size)[..., None], 0, 255).astype(
                np.uint16
            )
            for _ in range(VARIANTS)
        ]
    return bank
