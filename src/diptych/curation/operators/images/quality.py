"""Quality measures from pixels, and hashes that identify copies (``data.hashes``), as operators.

Shapes: N pictures, each uint8 [height, width, 3]; L luminance, float32 [height, width], 0..255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from diptych.curation.operators.base import Columns, Operator, arrays
from diptych.data.hashes.perceptual import colours, phashes, pixel_hash

SIDE = 256  # pixels: larger pictures are scaled to this length, so that measures of all sizes are comparable


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
