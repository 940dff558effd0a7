"""One picture per sample."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diptych.core.batch import Images
from diptych.core.sample import Sample, flat
from diptych.data.augment import augmenter
from diptych.data.fields.base import Context, Draw, Field, grey, stacked, words_of_sides
from diptych.data.source import BrokenItem

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


class ImageField(Field):
    """uint8 [height, width, 3] → ``Images``, one per sample."""

    kind = "image"

    def __init__(self, name: str, size: int, augment: Any = "none"):
        super().__init__(name)
        self.size, self.augment = size, augmenter(augment, size)
        self.drawn, self.moves = self.augment.draws, self.augment.moves

    @classmethod
    def build(cls, name: str, context: Context) -> ImageField:
        """The field of this name for a loader."""
        return cls(name, context.image_size, context.augment)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> np.ndarray:
        """A sample's value as it is kept until it is collated: decoded, at the model's size, augmented."""
        image = sample.fields.get(self.name)
        if image is None:
            raise BrokenItem(sample.id, f"no {self.name}")
        return self.augment(image, rng(), words_of_sides(sample, self.sides))

    def collate(self, rows: Sequence[Draw]) -> Images:
        """A batch of it; None if no sample has any."""
        return Images(stacked([row.fitted[self.name] for row in rows]))

    def memory(self) -> int:
        """Roughly how many bytes one fitted value takes."""
        return 3 * self.size**2

    @classmethod
    def schema(cls) -> dict[str, pa.DataType]:
        """Arrow columns of a packed value, by name; the value's presence is a column of the shard."""
        import pyarrow as pa

        return {
            "image": pa.large_binary(),
            "height": pa.int32(),
            "width": pa.int32(),
            "source_height": pa.int32(),
            "source_width": pa.int32(),
        }

    @classmethod
    def pack(
        cls, value: Any, scale: Callable[[np.ndarray], np.ndarray], store: Callable[[np.ndarray], bytes | None]
    ) -> dict[str, Any]:
        """A value as a row of these columns."""
        image = scale(value)
        sizes = dict(zip(("height", "width", "source_height", "source_width"), (*image.shape[:2], *value.shape[:2]), strict=True))
        return {"image": store(image), **sizes}

    @classmethod
    def unpack(cls, row: Mapping[str, Any], load: Callable[[bytes | None, int, int], np.ndarray]) -> Any:
        """The value again."""
        return load(row["image"], row["height"], row["width"])

    @classmethod
    def blank(cls, value: Any) -> Any:
        """A value of the same shape that says nothing: the blind control."""
        return grey(value)

    @classmethod
    def draw(cls, value: Any) -> list[Any]:
        """What to show a person: pictures (uint8 arrays) and lines of text, in order."""
        return [value]


class ViewsField(ImageField):
    """Several augmented views of ``image`` → ``Images`` with owner rows: those of a sample follow each other."""

    derived = True

    def __init__(self, name: str, size: int, augment: Any = "none"):
        super().__init__(name, size, augment)
        self.moves = False  # the field ``image`` stays as it is

    @classmethod
    def build(cls, name: str, context: Context) -> ViewsField:
        """The field of this name for a loader."""
        return cls(name, context.image_size, context.views)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> list[np.ndarray]:  # type: ignore[override]
        """A sample's value as it is kept until it is collated: decoded, at the model's size, augmented."""
        if sample.image is None:
            raise BrokenItem(sample.id, "no image")
        return self.augment.views(sample.image, rng(), sample.captions)

    def collate(self, rows: Sequence[Draw]) -> Images:
        """A batch of it; None if no sample has any."""
        import torch

        views, owners = flat([row.fitted[self.name] for row in rows])
        return Images(stacked(views), torch.tensor(owners))

    def memory(self) -> int:
        """Roughly how many bytes one fitted value takes."""
        return super().memory() * self.augment.spec.views

    @classmethod
    def schema(cls) -> dict[str, pa.DataType]:
        """Arrow columns of a packed value, by name; the value's presence is a column of the shard."""
        return {}  # made of the image
