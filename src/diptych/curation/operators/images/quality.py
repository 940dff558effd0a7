"""Quality measures from pixels, and hashes that identify copies.

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

SIDE = 256  # pixels: larger pictures are scaled to this length, so that measures of all sizes are comparable
_HASH_SIDE, _KEPT = 32, 8
_FIELDS = 4  # of ``colours``, in each direction


@dataclass(frozen=True, kw_only=True)
class ImageQuality(Operator):
    """Measures for dark, light, blurred, empty or grey pictures, on the picture scaled to at most 256 pixels.

    brightness: mean luminance, 0 black … 1 white. contrast: its standard deviation, 0 … 0.5. sharpness: variance of the Laplacian
    of the luminance (0..255). blur: 0 sharp … 1 blurred, largely independent of the content (Crete et al. 2007, "The blur effect").
    entropy: of the luminance's histogram in 64 steps, 0 … 6 bits. saturation: mean of (max − min) of the channels, 0 grey … 1.
    """

    name = "image_quality"
    version = 2  # exact sums; version 1 rounded blur to about seven digits
    inputs = ("pixels",)
    outputs = {  # noqa: RUF012 - declared, never changed
        name: pa.float32() for name in ("brightness", "contrast", "sharpness", "blur", "entropy", "saturation")
    }

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        rows = np.array([quality(picture) for picture in arrays(batch["pixels"])], np.float32)
        return dict(zip(self.outputs, rows.T, strict=True))


@dataclass(frozen=True, kw_only=True)
class ImageHash(Operator):
    """``pixel_hash``: equal for equal decoded pictures in any files. ``phash``: 64 bits, close for similar pictures."""

    name = "image_hash"
    inputs = ("pixels",)
    outputs = {"pixel_hash": pa.binary(16), "phash": pa.uint64()}  # noqa: RUF012 - declared, never changed

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        pictures = arrays(batch["pixels"])
        return {"pixel_hash": pa.array([pixel_hash(p) for p in pictures], pa.binary(16)), "phash": phashes(pictures)}


@dataclass(frozen=True, kw_only=True)
class ImageColours(Operator):
    """``colours``: the mean red, green and blue of 4 × 4 fields, 48 bytes, for ``near_image``: pHash sees no colour."""

    name = "image_colours"
    inputs = ("pixels",)
    outputs = {"colours": pa.binary(48)}  # noqa: RUF012 - declared, never changed

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        return {"colours": pa.array([colours(picture) for picture in arrays(batch["pixels"])], pa.binary(48))}


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


def quality(picture: np.ndarray) -> tuple[float, float, float, float, float, float]:
    """brightness, contrast, sharpness, blur, entropy, saturation of one picture; exact, since sums are of integers."""
    from PIL import Image, ImageChops

    image = Image.fromarray(picture)
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=None)
    red, green, blue = image.split()
    highest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    lowest = ImageChops.darker(ImageChops.darker(red, green), blue)
    saturation, _, _ = _moments(ImageChops.subtract(highest, lowest).histogram())
    grey = image.convert("L")
    brightness, contrast, entropy = _moments(grey.histogram())
    light = np.asarray(grey).astype(np.int16)
    return brightness, contrast, _laplacian_variance(light), blur_effect(light), entropy, saturation


def _moments(histogram: Sequence[int]) -> tuple[float, float, float]:
    """Mean and standard deviation, as shares of 255, and entropy in bits in 64 steps, of a ``histogram`` of 256 counts."""
    counts = np.array(histogram)
    value, n = np.arange(256), int(counts.sum())
    first, second = int(counts @ value), int(counts @ value**2)
    share = counts.reshape(64, 4).sum(1) / n
    share = share[share > 0]
    return first / n / 255, (n * second - first**2) ** 0.5 / n / 255, max(0.0, -float((share * np.log2(share)).sum()))


def _laplacian_variance(light: np.ndarray) -> float:
    if min(light.shape) < 3:
        return 0.0
    edges = light[:-2, 1:-1] + light[2:, 1:-1] + light[1:-1, :-2] + light[1:-1, 2:]
    edges -= 4 * light[1:-1, 1:-1]
    flat: np.ndarray = edges.ravel().astype(np.float64)
    return float(flat @ flat) / flat.size - (float(flat.sum()) / flat.size) ** 2


def blur_effect(light: np.ndarray, width: int = 9) -> float:
    """The blur effect, 0 … 1: how little a picture changes when it is blurred again, the larger value of the two axes.

    Crete, Dolmiere, Ladret & Nicolas 2007. light: [height, width], signed. width: of the blur, odd. 1 for a uniform picture and for
    one smaller than the window. Neighbours of a running mean differ by the two values that enter and leave its window, divided by
    ``width``, so no picture is actually blurred.
    """
    if min(light.shape) <= width:
        return 1.0
    worst, half = 0.0, width // 2
    for x in (light, light.T):
        sharp = np.abs(x[half + 1 : -half] - x[half : -half - 1])
        total = float(sharp.sum(dtype=np.int64 if sharp.dtype.kind == "i" else np.float64))
        lost = float(np.maximum(width * sharp - np.abs(x[width:] - x[:-width]), 0).sum(dtype=np.float64)) / width
        worst = max(worst, (total - lost) / total if total > 0 else 1.0)
    return worst
