"""Numbers from pixels: what is wrong with a picture, and hashes by which copies are found.

Shapes: N pictures, each uint8 [height, width, 3]; L luminance, float32 [height, width], 0..255.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa

from diptych.curation.operators.base import Columns, Operator, arrays

SIDE = 256  # pixels: quality is measured on pictures no longer than this, so that the numbers of large and small ones compare
_HASH_SIDE, _KEPT = 32, 8


@dataclass(frozen=True, kw_only=True)
class ImageQuality(Operator):
    """Dark, light, blurred, empty or grey: one number for each, measured on the picture scaled to at most 256 pixels.

    brightness: mean luminance, 0 black … 1 white. contrast: its standard deviation, 0 … 0.5. sharpness: variance of the Laplacian of the
    luminance (0..255). blur: 0 sharp … 1 blurred, whatever the picture shows (Crete et al. 2007, "The blur effect"). entropy: of the luminance's
    histogram in 64 steps, 0 … 6 bits. saturation: mean of (max − min) of the channels, 0 grey … 1.
    """

    name = "image_quality"
    inputs = ("pixels",)
    outputs = {  # noqa: RUF012 - declared, never changed
        name: pa.float32() for name in ("brightness", "contrast", "sharpness", "blur", "entropy", "saturation")
    }

    def compute(self, batch: pa.RecordBatch) -> Columns:
        rows = np.array([quality(picture) for picture in arrays(batch["pixels"])], np.float32)
        return dict(zip(self.outputs, rows.T, strict=True))


@dataclass(frozen=True, kw_only=True)
class ImageHash(Operator):
    """``pixel_hash``: equal for equal decoded pictures, whatever their files. ``phash``: 64 bits, near for pictures that look alike."""

    name = "image_hash"
    inputs = ("pixels",)
    outputs = {"pixel_hash": pa.binary(16), "phash": pa.uint64()}  # noqa: RUF012 - declared, never changed

    def compute(self, batch: pa.RecordBatch) -> Columns:
        pictures = arrays(batch["pixels"])
        return {"pixel_hash": pa.array([pixel_hash(p) for p in pictures], pa.binary(16)), "phash": phashes(pictures)}


def pixel_hash(picture: np.ndarray) -> bytes:
    """16 bytes of BLAKE2b over shape and pixels."""
    shape = b"%d %d:" % picture.shape[:2]
    return hashlib.blake2b(np.ascontiguousarray(picture).data, digest_size=16, key=shape).digest()


def phashes(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """64-bit perceptual hashes, uint64 [N] (Zauner 2010): which of the 8 × 8 lowest frequencies of the picture at 32 × 32 pixels are
    above their median. The formula of ``imagehash.phash``, first bit highest.
    """
    from PIL import Image

    if not len(pictures):
        return np.empty(0, np.uint64)
    size, filter_ = (_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS
    small = np.stack([np.asarray(Image.fromarray(p).convert("L").resize(size, filter_)) for p in pictures]).astype(np.float64)
    wave = _cosines()
    low = (wave @ small @ wave.T).reshape(len(small), -1)  # [N, 64]
    low[np.abs(low) < 1e-6] = 0  # an even picture has no frequencies, only rounding errors
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


@cache
def _cosines() -> np.ndarray:
    """The lowest rows of the type-II discrete cosine transform, float64 [8, 32]."""
    k, x = np.arange(_KEPT)[:, None], np.arange(_HASH_SIDE)[None]
    return 2 * np.cos(np.pi * k * (2 * x + 1) / (2 * _HASH_SIDE))


def quality(picture: np.ndarray) -> tuple[float, float, float, float, float, float]:
    """brightness, contrast, sharpness, blur, entropy, saturation of one picture."""
    from PIL import Image

    image = Image.fromarray(picture)
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=None)
    rgb = np.asarray(image)
    light = np.asarray(image.convert("L"))
    share = np.bincount(light.ravel() >> 2, minlength=64) / light.size
    share = share[share > 0]
    entropy = max(0.0, -float((share * np.log2(share)).sum()))
    luminance = light.astype(np.float32)
    red, green, blue = (rgb[..., c] for c in range(3))  # a reduction over three channels is ten times slower
    saturation = (
        float((np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)).mean(dtype=np.float64)) / 255
    )
    return (
        float(luminance.mean(dtype=np.float64)) / 255,
        float(luminance.std(dtype=np.float64)) / 255,
        _laplacian_variance(luminance),
        blur_effect(luminance),
        entropy,
        saturation,
    )


def _laplacian_variance(light: np.ndarray) -> float:
    if min(light.shape) < 3:
        return 0.0
    centre = light[1:-1, 1:-1]
    return float((light[:-2, 1:-1] + light[2:, 1:-1] + light[1:-1, :-2] + light[1:-1, 2:] - 4 * centre).var(dtype=np.float64))


def blur_effect(light: np.ndarray, width: int = 9) -> float:
    """How little a picture changes when it is blurred again (Crete, Dolmiere, Ladret & Nicolas 2007); the blurrier of the two axes.

    ``light`` [height, width]. 1 for an even picture, and for one too small to tell.
    """
    if min(light.shape) <= width:
        return 1.0
    from scipy.ndimage import uniform_filter1d

    worst, half = 0.0, width // 2
    for axis in (0, 1):
        again = uniform_filter1d(light, width, axis=axis)
        inner = slice(half, light.shape[axis] - half)  # where the window lies within the picture
        sharp, soft = (np.abs(np.diff(x[inner] if axis == 0 else x[:, inner], axis=axis)) for x in (light, again))
        total = float(sharp.sum(dtype=np.float64))
        lost = float(np.maximum(sharp - soft, 0).sum(dtype=np.float64))
        worst = max(worst, (total - lost) / total if total > 0 else 1.0)
    return worst
