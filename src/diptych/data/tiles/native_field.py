"""Pictures of any shape, whole and at their own size."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field as Limit

from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.augment import augmenter
from diptych.data.fields.base import Context, Draw
from diptych.data.fields.image import ImageField
from diptych.data.source import BrokenItem
from diptych.data.tiles.native import Fitting, Native


class NativeField(ImageField):
    """uint8 [height, width, 3] → ``Native``, for a tower that reads pictures of any size (``parts.vision.kind: native``). Declared
    as ``data.fields: {image: {kind: native}}``; so are the images of ``turns`` then.

    multiple: of which the sides are multiples, in pixels: a patch of the tower times the patches that its connector joins. least,
    most: pixels of a picture. Pictures are neither cropped nor flipped.
    """

    def __init__(
        self,
        name: str,
        size: int,
        augment: Any = "none",
        *,
        multiple: Annotated[int, Limit(ge=1)] = 16,
        least: Annotated[int, Limit(ge=1)] = 1024,
        most: Annotated[int, Limit(ge=1)] = 65536,
    ):
        super().__init__(name, size, "none")
        self.fitting = Fitting(multiple, least, most)
        if augmenter(augment, size).draws:
            raise DiptychError(
                f"data.augment: pictures at their own size (data.fields.{name}.kind: native) are read whole; set it to none"
            )

    @classmethod
    def build(cls, name: str, context: Context) -> NativeField:
        """The field of this name for a loader."""
        return cls(name, context.image_size, context.augment, **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> np.ndarray:
        """A sample's value as it is kept until it is collated: decoded and scaled."""
        image = sample.fields.get(self.name)
        if image is None:
            raise BrokenItem(sample.id, f"no {self.name}")
        return self.fitting(image)

    def collate(self, rows: Sequence[Draw]) -> Native:
        """A batch of it."""
        return self.fitting.stacked([row.fitted[self.name] for row in rows])

    def memory(self) -> int:
        """Roughly how many bytes one fitted value takes."""
        return 3 * self.fitting.most
