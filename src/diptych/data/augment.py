"""Augmentation of training images, by ``config/augment.py``. Every function is pure: its randomness comes from the given generator.

Operations take and return float32 images [height, width, 3] in [0, 1], RGB. Their definitions are those of torchvision's v2
transforms for float images: within 2e-6, or 1e-4 where grey levels enter, since torchvision writes 0.2989 for 0.299. An augmented
image is rounded to uint8 once, at the end; torchvision, given uint8, rounds down after each operation.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from diptych.config.augment import Augment, Bounds, Chance, read_augment
from diptych.core.registry import check_options, resolve
from diptych.data.image import random_part, resize, resize_part
from diptych.data.regions.placement import Placement, central

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Operation = Callable[[np.ndarray, random.Random], np.ndarray]
GREY = np.array((0.299, 0.587, 0.114), np.float32)  # luma of ITU-R BT.601

# --- Which captions speak of left or right ---

# English, German, French and Spanish, as whole words. Other senses count too (a right answer): the image is then not flipped.
_SIDES = re.compile(
    r"\b(?:(?:left|right)(?:s|most|wards?|hand(?:ed|er)?)?"
    r"|(?:links|rechts)\w*|(?:link|recht)(?:e[mnrs]?)(?:hand)?"
    r"|gauch(?:e|es|er|ers|ère|ères)|droit(?:e|es|s|ier|iers|ière|ières)?"
    r"|izquierd[oa]s?|derech[oa]s?|zurd[oa]s?|diestr[oa]s?)\b",
    re.IGNORECASE,
)


def speaks_of_sides(captions: Sequence[str]) -> bool:
    """Whether any caption has a word for left or right in English, German, French or Spanish.

    Text in other languages is not recognised. Signs, letters and faces within the image are not recognised either, although a flip
    mirrors them.
    """
    return any(_SIDES.search(caption) for caption in captions)


# --- Operations with their parameters given ---


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """factor · image, clipped to [0, 1]. factor 0: black; 1: no change."""
    return np.clip(image * np.float32(factor), 0, 1)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """factor · image + (1 − factor) · the mean grey level of the image, clipped to [0, 1]."""
    return _blend(image, np.float32((image @ GREY).mean(dtype=np.float64)), factor)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """factor · image + (1 − factor) · its grey levels, clipped to [0, 1]. factor 0: grey."""
    return _blend(image, (image @ GREY)[..., None], factor)


def _blend(image: np.ndarray, other: np.ndarray | np.float32, factor: float) -> np.ndarray:
    return np.clip(np.float32(factor) * image + np.float32(1 - factor) * other, 0, 1)


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    """The hue of HSV shifted by a share of the colour circle (0.5: the complementary colour); value and saturation stay."""
    r, g, b = (np.ascontiguousarray(image[..., i]) for i in range(3))  # whole planes: five times as fast as pixels of three
    value, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    chroma = value - low
    divisor = np.where(chroma > 0, chroma, np.float32(1))
    sextant = np.where(value == r, g - b, np.where(value == g, b - r, r - g)) / divisor  # has no effect where chroma is 0
    sextant += np.where(value == r, np.float32(0), np.where(value == g, np.float32(2), np.float32(4)))
    turned = np.empty(image.shape, np.float32)
    for i, offset in enumerate((5, 3, 1)):
        k = sextant + np.float32(6 * shift + offset)
        k -= 6 * np.floor(k / 6)
        turned[..., i] = value - chroma * np.clip(np.minimum(k, 4 - k), 0, 1)
    return turned


def grey(image: np.ndarray) -> np.ndarray:
    """0.299 R + 0.587 G + 0.114 B in all three channels."""
    return np.repeat((image @ GREY)[..., None], 3, axis=-1)


def gaussian_blur(image: np.ndarray, sigma: float, radius: int) -> np.ndarray:
    """Convolved in both directions with exp(−x² / 2σ²), x = −radius … radius, normalised to a sum of 1. Edges are reflected.

    sigma and radius in pixels. The radius is cut to the image's shorter side minus 1.
    """
    radius = min(radius, min(image.shape[:2]) - 1)
    height, width = image.shape[:2]
    rows = _blurring(height, sigma, radius) @ image.reshape(height, -1)  # [H, W · 3]
    columns = np.ascontiguousarray(rows.reshape(image.shape).swapaxes(0, 1)).reshape(width, -1)  # [W, H · 3]
    blurred = (_blurring(width, sigma, radius) @ columns).reshape(width, height, 3)
    return np.ascontiguousarray(blurred.swapaxes(0, 1))


def _blurring(n: int, sigma: float, radius: int) -> np.ndarray:
    """The convolution along n pixels as a matrix, float32 [n, n]. One matrix product is faster than a loop over the kernel."""
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    sources = np.abs(np.arange(n)[:, None] + offsets)  # reflected at the first pixel
    sources = np.where(sources >= n, 2 * (n - 1) - sources, sources)  # and at the last
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], sources), kernel / kernel.sum())
    return matrix.astype(np.float32)


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """1 − x for pixels x ≥ threshold / 255, channel by channel."""
    return np.where(image >= np.float32(threshold / 255), 1 - image, image)


# --- Operations that draw their parameters ---


class Jitter:
    """With chance ``p``, each operation of a strength above 0, in random order (``config.augment.Jitter``)."""

    moves = False

    def __init__(
        self,
        *,
        brightness: Annotated[float, Field(ge=0)] = 0.0,
        contrast: Annotated[float, Field(ge=0)] = 0.0,
        saturation: Annotated[float, Field(ge=0)] = 0.0,
        hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
        p: Chance = 1.0,
    ):
        self.strengths = (brightness, contrast, saturation)
        self.hue, self.p = hue, p

    def __call__(self, image: np.ndarray, rng: random.Random) -> np.ndarray:
        if rng.random() >= self.p:
            return image
        chosen: list[tuple[Callable[[np.ndarray, float], np.ndarray], float]] = [
            (operation, rng.uniform(max(0.0, 1 - strength), 1 + strength))
            for operation, strength in zip((brightness, contrast, saturation), self.strengths, strict=True)
            if strength
        ]
        if self.hue:
            chosen.append((hue, rng.uniform(-self.hue, self.hue)))
        rng.shuffle(chosen)
        for operation, parameter in chosen:
            image = operation(image, parameter)
        return image


class Grey:
    """``grey`` with chance ``p``."""

    moves = False

    def __init__(self, *, p: Chance = 0.2):
        self.p = p

    def __call__(self, image: np.ndarray, rng: random.Random) -> np.ndarray:
        return grey(image) if rng.random() < self.p else image


class Blur:
    """``gaussian_blur`` with chance ``p``; the kernel spans a tenth of the image's height, as in SimCLR."""

    moves = False

    def __init__(self, *, p: Chance = 0.5, sigma: Bounds = (0.1, 2.0)):
        self.p, self.sigma = p, sigma

    def __call__(self, image: np.ndarray, rng: random.Random) -> np.ndarray:
        if rng.random() >= self.p:
            return image
        return gaussian_blur(image, rng.uniform(*self.sigma), max(1, len(image) // 20))


class Solarize:
    """``solarize`` with chance ``p``."""

    moves = False

    def __init__(self, *, p: Chance = 0.2, threshold: Annotated[float, Field(ge=0, le=256)] = 128.0):
        self.p, self.threshold = p, threshold

    def __call__(self, image: np.ndarray, rng: random.Random) -> np.ndarray:
        return solarize(image, self.threshold) if rng.random() < self.p else image


# Kinds for ``also``; others: package.module:Class, built with the options and called as (image, rng) → image. One that leaves every
# pixel at its place says so by ``moves = False``; boxes of regions stay right then.
OPERATIONS: Mapping[str, Any] = {"jitter": Jitter, "grey": Grey, "blur": Blur, "solarize": Solarize}


class Augmenter:
    """Crop or central square, flip, then the operations of ``Augment`` in its order.

    spec: the checked settings. size: side of the output in pixels.
    draws: whether anything is random; if not, the output of an image is always the same and may be cached.
    moves: whether an operation of ``also`` may put pixels elsewhere than ``place`` says, so that boxes would be wrong.
    """

    def __init__(self, spec: Augment, size: int):
        self.spec, self.size = spec, size
        self.operations: list[Operation] = []
        if spec.jitter:
            self.operations.append(Jitter(**dict(spec.jitter)))
        if spec.grey:
            self.operations.append(Grey(p=spec.grey))
        if spec.blur:
            self.operations.append(Blur(**dict(spec.blur)))
        if spec.solarize:
            self.operations.append(Solarize(**dict(spec.solarize)))
        for i, own in enumerate(spec.also):
            cls = resolve(own.kind, OPERATIONS, "augmentation")
            self.operations.append(cls(**check_options(cls, own.options, f"data.augment.also.{i}")))
        self.draws = bool(spec.crop or spec.flip or self.operations)
        self.moves = any(getattr(operation, "moves", True) for operation in self.operations)

    def __call__(self, image: np.ndarray, rng: random.Random, captions: Sequence[str] = ()) -> np.ndarray:
        """One view: uint8 [H, W, 3] → uint8 [size, size, 3].

        rng: seeded for this sample; the result depends on nothing else. The number of draws does not depend on ``captions``.
        captions: all captions of the sample; if one speaks of left or right (``speaks_of_sides``), the image is not flipped.
        """
        place = self.place(image.shape[0], image.shape[1], rng, captions)
        whole = place[:4] == central(*image.shape[:2])[:4]
        image = resize(image, self.size) if whole else resize_part(image, self.size, *place[:4])
        if place.flip:
            image = np.ascontiguousarray(image[:, ::-1])
        if not self.operations:
            return image
        before = floats = image.astype(np.float32) / np.float32(255)
        for operation in self.operations:
            floats = operation(floats, rng)
        return image if floats is before else np.rint(np.clip(floats, 0, 1) * 255).astype(np.uint8)

    def place(self, height: int, width: int, rng: random.Random, captions: Sequence[str] = ()) -> Placement:
        """Where pixels of a picture go, by the same draws as ``__call__`` makes first: with an equal ``rng``, boxes follow."""
        crop, place = self.spec.crop, central(height, width)
        if crop and (part := random_part(height, width, rng, crop.scale, crop.ratio)) is not None:
            place = Placement(*part)
        mirror = bool(self.spec.flip) and rng.random() < self.spec.flip and not speaks_of_sides(captions)
        return place.flipped() if mirror else place

    def views(self, image: np.ndarray, rng: random.Random, captions: Sequence[str] = ()) -> list[np.ndarray]:
        """``spec.views`` views, drawn one after the other as by ``__call__``, so the first is what ``__call__`` returns."""
        return [self(image, rng, captions) for _ in range(self.spec.views)]


def augmenter(spec: Augment | str | Mapping[str, Any], size: int) -> Augmenter:
    """The augmenter for ``spec``: a checked setting, the name of a preset, or plain data. size: side of the output in pixels.

    Raises DiptychError for an unknown kind or option.
    """
    return Augmenter(spec if isinstance(spec, Augment) else read_augment(spec), size)


def mixup(
    images: Tensor, alpha: float, generator: torch.Generator | None = None, per_sample: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Each image mixed with another of the batch (Zhang et al. 2018, arXiv:1710.09412): λ · images + (1 − λ) · images[permutation].

    images: [B, …], uint8 or float. alpha: λ is drawn from Beta(alpha, alpha); 0: λ is 1, no mixing.
    generator: on the CPU; None: torch's own. per_sample: a λ for each image; otherwise one for the batch.

    Returns the mixed images in the dtype of ``images`` (uint8 is rounded), the permutation int64 [B] and λ float32 [B], all on the
    device of ``images``. A loss over targets y is λ · loss(y) + (1 − λ) · loss(y[permutation]). Raises ValueError for alpha < 0.
    """
    import torch

    if alpha < 0 or not math.isfinite(alpha):
        raise ValueError(f"mixup: alpha is {alpha}; expected 0 or more")
    n = len(images)
    permutation = torch.randperm(n, generator=generator)
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    drawn = np.random.default_rng(seed).beta(alpha, alpha, n if per_sample else 1) if alpha else np.ones(1)
    lam = torch.from_numpy(np.broadcast_to(drawn, n).astype(np.float32)).to(images.device)
    permutation = permutation.to(images.device)
    if not alpha:
        return images, permutation, lam
    share = lam.view(n, *[1] * (images.ndim - 1))
    floats = images if images.is_floating_point() else images.float()
    mixed = floats * share.to(floats.dtype) + floats[permutation] * (1 - share).to(floats.dtype)
    return (mixed if images.is_floating_point() else mixed.round().to(images.dtype)), permutation, lam
