"""How images are augmented in training: a preset's name, or one key per operation. ``data/augment.py`` applies it.

augment: simclr
augment: {preset: simclr, flip: 0, views: 2}
augment: {crop: {scale: [0.6, 1]}, jitter: {brightness: 0.4, p: 0.8}, also: [{kind: "package.module:Class", p: 0.5}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from diptych.config.typed import Kind, Strict, check
from diptych.core.errors import nearest

Chance = Annotated[float, Field(ge=0, le=1)]


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError("expected two positive numbers, the lower one first")
    return bounds


def _share(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[1] > 1:
        raise ValueError("expected shares of the image's area, at most 1")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_ordered)]


class Crop(Strict):
    """A random part of the image, resized to the model's size (Szegedy et al. 2015, arXiv:1409.4842)."""

    scale: Annotated[Bounds, AfterValidator(_share)] = (0.6, 1.0)  # share of the image's area, drawn uniformly
    ratio: Bounds = (3 / 4, 4 / 3)  # width to height, drawn uniformly on a logarithmic scale


class Jitter(Strict):
    """Random brightness, contrast, saturation and hue, in random order (Howard 2013, arXiv:1312.5402).

    The first three are half-widths: a factor is drawn uniformly from [max(0, 1 − x), 1 + x]. hue: a shift is drawn uniformly from
    [−hue, hue], in turns of the colour circle. 0 leaves an operation out.
    """

    brightness: Annotated[float, Field(ge=0)] = 0.0
    contrast: Annotated[float, Field(ge=0)] = 0.0
    saturation: Annotated[float, Field(ge=0)] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    p: Chance = 1.0  # of the whole; its parts are then all applied


class Blur(Strict):
    """A Gaussian blur."""

    p: Chance = 0.5
    sigma: Bounds = (0.1, 2.0)  # pixels of the resized image, drawn uniformly


class Solarize(Strict):
    """Pixels at or above the threshold are inverted."""

    p: Chance = 0.2
    threshold: Annotated[float, Field(ge=0, le=256)] = 128.0  # of 0 to 255; 256: none


class Operation(Kind):
    """``kind``: a name in ``data.augment.OPERATIONS``, or ``package.module:Class``; and the options of that kind."""


class Augment(Strict):
    """The operations in the order in which they are applied; what is left out is not applied.

    A string is the name of a preset. ``preset`` in a mapping gives the values of the keys that the mapping leaves out.
    """

    crop: Crop | None = None  # None: the central square
    flip: Chance = 0.0  # horizontal; never where a caption of the sample speaks of left or right
    jitter: Jitter | None = None
    grey: Chance = 0.0
    blur: Blur | None = None
    solarize: Solarize | None = None
    also: list[Operation] = Field(default=[])
    views: Annotated[int, Field(ge=1)] = 1  # independently augmented copies of each image; several only in ``data.views``

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"preset": data}
        if isinstance(data, dict) and "preset" in data:
            name = data["preset"]
            if name not in PRESETS:
                raise ValueError(f"there is no preset '{name}'{nearest(str(name), PRESETS)}")
            data = {**PRESETS[name], **{key: value for key, value in data.items() if key != "preset"}}
        if isinstance(data, dict) and "mixup" in data:
            if data["mixup"]:
                raise ValueError(
                    "mixup changes what a loss compares, so it is no augmentation: leave it out. InfoNCE has it as an option "
                    "(objectives: {info_nce: {mixup: 0.1}}); for other losses, mix the batch in an objective of your own by "
                    "diptych.data.augment.mixup"
                )
            data = {key: value for key, value in data.items() if key != "mixup"}  # earlier versions wrote it into saved recipes
        return data


# simclr: Chen et al. 2020 (arXiv:2002.05709), appendix A, for ImageNet. The colour strength s is 1: jitter of 0.8 s in brightness,
# contrast and saturation, 0.2 s in hue. They use s = 0.5 for CIFAR-10, without the blur:
# {preset: simclr, jitter: {brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1, p: 0.8}, blur: null}
PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "crop": {"crop": {"scale": (0.6, 1.0)}},
    "simclr": {
        "crop": {"scale": (0.08, 1.0)},
        "flip": 0.5,
        "jitter": {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "p": 0.8},
        "grey": 0.2,
        "blur": {"p": 0.5, "sigma": (0.1, 2.0)},
    },
}


def read_augment(spec: str | Mapping[str, Any], where: str = "augment") -> Augment:
    """A preset's name or plain data, checked. Raises DiptychError, with messages that begin with ``where``."""
    return check(Augment, {"preset": spec} if isinstance(spec, str) else dict(spec), where)
