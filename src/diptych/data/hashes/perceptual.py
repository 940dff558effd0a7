"""Hashes of pictures that find copies: of all pixels, of their low frequencies, of their colours.

Shapes: N pictures, each uint8 [height, width, 3].
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import numpy as np

_HASH_SIDE, _KEPT = 32, 8
_FIELDS = 4  # of ``colours``, in each direction


def pixel_hash(picture: np.ndarray) -> bytes:
    """16 bytes of BLAKE2b over shape and pixels."""
    shape = b"%d %d:" % picture.shape[:2]
    return hashlib.blake2b(np.ascontiguousarray(picture).data, digest_size=16, key=shape).digest()


def phashes(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """64-bit perceptual hashes, uint64 [N] (Zauner 2010).

    A bit is set for each of the 8 × 8 lowest frequencies of the picture at 32 × 32 pixels that is above their median; as in
    ``imagehash.phash``, first bit highest.
    """
    from PIL import Image

    if not len(pictures):
        return np.empty(0, np.uint64)
    size, filter_ = (_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS
    small = np.stack([np.asarray(Image.fromarray(p).convert("L").resize(size, filter_)) for p in pictures]).astype(np.float64)
    wave = _cosines()
    low = (wave @ small @ wave.T).reshape(len(small), -1)  # [N, 64]
    low[np.abs(low) < 1e-6] = 0  # a uniform picture has no frequencies, only rounding errors
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


@cache
def _cosines() -> np.ndarray:
    """The lowest rows of the type-II discrete cosine transform, float64 [8, 32]."""
    k, x = np.arange(_KEPT)[:, None], np.arange(_HASH_SIDE)[None]
    return 2 * np.cos(np.pi * k * (2 * x + 1) / (2 * _HASH_SIDE))


def colours(picture: np.ndarray) -> bytes:
    """The mean colour of each of 4 × 4 fields, row by row, a byte for each channel."""
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((_FIELDS, _FIELDS), Image.Resampling.BOX)).tobytes()


def hue_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The largest difference of colour in any field, 0 … 1, float [N]; of lightness none. a, b: ``colours``, uint8 [N, 48]."""
    plain = [x.reshape(len(x), -1, 3).astype(np.float32) / 255 for x in (a, b)]
    chroma = [x - x.mean(2, keepdims=True) for x in plain]
    result: np.ndarray = np.abs(chroma[0] - chroma[1]).max((1, 2), initial=0)
    return result
