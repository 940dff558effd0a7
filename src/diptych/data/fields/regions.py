"""Boxes with phrases: any number per sample."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.core.batch import Regions
from diptych.core.sample import Region, Sample, flat
from diptych.data.fields.base import Context, Draw, Field
from diptych.data.fields.text import tokenized, valid
from diptych.data.source import BrokenItem

if TYPE_CHECKING:
    import pyarrow as pa

Box = tuple[float, float, float, float]


def cropped(box: Box, height: int, width: int) -> Box | None:
    """A box of a picture as shares of the picture's central square, which is what a model sees; None if less than a quarter of the
    box is inside.
    """
    side = min(height, width)
    x0, y0 = (width - side) / 2, (height - side) / 2
    left, right = (np.clip((edge - x0) / side, 0, 1) for edge in (box[0], box[2]))
    top, bottom = (np.clip((edge - y0) / side, 0, 1) for edge in (box[1], box[3]))
    area = (box[2] - box[0]) * (box[3] - box[1])
    if area <= 0 or (right - left) * (bottom - top) * side**2 < area / 4:
        return None
    return float(left), float(top), float(right), float(bottom)


class RegionsField(Field):
    """A list of ``Region`` → ``Regions`` with owner rows. Boxes follow the central crop; where the image is cropped or flipped
    at random they are refused (``Loader``).
    """

    kind = "regions"
    inner = {"phrases": "text"}  # noqa: RUF012 - never changed

    def __init__(self, name: str, tokenizer: Any):
        super().__init__(name)
        self.tokenizer = tokenizer

    @classmethod
    def build(cls, name: str, context: Context) -> RegionsField:
        """The field of this name for a loader."""
        return cls(name, context.tokenizer)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> list[Region]:
        """A sample's value as it is kept until it is collated: decoded, at the model's size, augmented."""
        regions: list[Region] = sample.fields.get(self.name, [])
        if sample.image is None or not regions:
            raise BrokenItem(sample.id, f"no {self.name}")
        height, width = sample.image.shape[:2]
        seen = [Region(box, r.phrase) for r in regions if (box := cropped(r.box, height, width)) is not None]
        if not seen:
            raise BrokenItem(sample.id, f"no {self.name} within the central square")
        return seen

    def collate(self, rows: Sequence[Draw]) -> Regions:
        """A batch of it; None if no sample has any."""
        import torch

        regions, owners = flat([row.fitted[self.name] for row in rows])
        owner = torch.tensor(owners)
        phrases = tokenized(self.tokenizer, [r.phrase for r in regions], owner=owner)
        return Regions(torch.tensor([r.box for r in regions], dtype=torch.float32), phrases, owner)

    @classmethod
    def schema(cls) -> dict[str, pa.DataType]:
        """Arrow columns of a packed value, by name; the value's presence is a column of the shard."""
        import pyarrow as pa

        return {"boxes": pa.list_(pa.list_(pa.float64(), 4)), "phrases": pa.list_(pa.string())}

    @classmethod
    def pack(cls, value: list[Region], scale: Any, store: Any) -> dict[str, Any]:
        """A value as a row of these columns."""
        return {"boxes": [list(r.box) for r in value], "phrases": [valid(r.phrase) for r in value]}

    @classmethod
    def unpack(cls, row: Mapping[str, Any], load: Any) -> list[Region]:
        """The value again."""
        return [Region(tuple(box), phrase) for box, phrase in zip(row["boxes"], row["phrases"], strict=True)]

    @classmethod
    def scaled(cls, value: list[Region], x: float, y: float) -> list[Region]:
        """The value where the sample's image is ``x`` times as wide and ``y`` times as high; for fields in pixels."""
        if x == y == 1:
            return value
        return [Region((r.box[0] * x, r.box[1] * y, r.box[2] * x, r.box[3] * y), r.phrase) for r in value]

    @classmethod
    def blank(cls, value: list[Region]) -> list[Region]:
        """A value of the same shape that says nothing: the blind control."""
        return [Region(r.box, "") for r in value]

    @classmethod
    def draw(cls, value: list[Region]) -> list[Any]:
        """What to show a person: pictures (uint8 arrays) and lines of text, in order."""
        return [f"{r.phrase} [{', '.join(f'{edge:.0f}' for edge in r.box)}]" for r in value]
