"""Boxes with phrases: any number per sample."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field as Limit

from diptych.core.batch import Regions
from diptych.core.sample import Box, Region, Sample, flat
from diptych.data.augment import augmenter
from diptych.data.fields.base import Context, Draw, Field, words_of_sides
from diptych.data.fields.text import tokenized, valid
from diptych.data.regions.placement import usable
from diptych.data.regions.runs import from_runs, to_runs
from diptych.data.source import BrokenItem, Problem

if TYPE_CHECKING:
    import pyarrow as pa

MOST, WRONG = 4, 5  # independent streams of random numbers: which regions, and which of their negatives


class RegionsField(Field):
    """A list of ``Region`` → ``Regions`` with owner rows. Boxes, masks and points follow the crop and the flip of the image; one
    that cannot be used is recorded as a problem, and the sample's others are kept.

    masks, points: whether a batch has them. negatives: at most how many wrong versions of each phrase a batch has, drawn at random.
    most: regions a sample, drawn at random where it has more; 0: all.
    """

    kind = "regions"
    inner = {"phrases": "text", "negatives": "text"}  # noqa: RUF012 - never changed
    added = {3: ("region_masks", "region_negatives", "region_points")}  # noqa: RUF012 - never changed

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        size: int = 224,
        augment: Any = "none",
        *,
        masks: bool = False,
        points: bool = False,
        negatives: Annotated[int, Limit(ge=0)] = 0,
        most: Annotated[int, Limit(ge=0)] = 0,
    ):
        super().__init__(name)
        self.tokenizer, self.size, self.augment = tokenizer, size, augmenter(augment, size)
        self.masks, self.points, self.negatives, self.most = masks, points, negatives, most
        self.drawn, self.sides = self.augment.draws, (name,)

    @classmethod
    def build(cls, name: str, context: Context) -> RegionsField:
        """The field of this name for a loader."""
        return cls(name, context.tokenizer, context.image_size, context.augment, **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> list[Region]:
        """The sample's regions that are seen in the square: boxes and points as shares of it, masks at its size. Empty if a random
        crop shows none.
        """
        regions: list[Region] = sample.fields.get(self.name, [])
        if sample.image is None or not regions:
            raise BrokenItem(sample.id, f"no {self.name}")
        height, width = sample.image.shape[:2]
        place = self.augment.place(height, width, rng(), words_of_sides(sample, self.sides))
        seen, wrong = [], 0
        for number, region in enumerate(regions, 1):
            try:
                box = place.box(usable(region.box, height, width))
                mask = self._mask(region, height, width, place)
            except ValueError as error:
                self.note(Problem(f"{sample.id}, region {number}", str(error)))
                wrong += 1
                continue
            if box is None or (mask is not None and not mask.any()):
                continue
            point = None if region.point is None else place.point(region.point)
            seen.append(Region(box, region.phrase, mask, region.negatives, point))
        if wrong == len(regions):
            raise BrokenItem(sample.id, f"no {self.name} that can be used")
        if not seen and not self.drawn:  # another random crop may show some
            raise BrokenItem(sample.id, f"no {self.name} within the square")
        return seen

    def _mask(self, region: Region, height: int, width: int, place: Any) -> np.ndarray | None:
        """The region's mask in the square, if masks are wanted and it has one. ValueError for one of another size."""
        if not self.masks or region.mask is None:
            return None
        if np.shape(region.mask) != (height, width):
            raise ValueError(f"a mask of shape {list(np.shape(region.mask))} for a picture of {height} × {width}")
        mask: np.ndarray = place.mask(np.asarray(region.mask, bool), self.size)
        return mask

    def collate(self, rows: Sequence[Draw]) -> Regions | None:
        """The regions of all samples, those of a sample together; None if none is seen."""
        import torch

        regions, owners = flat([self._chosen(row) for row in rows])
        if not regions:
            return None
        owner = torch.tensor(owners)
        phrases = tokenized(self.tokenizer, [r.phrase for r in regions], owner=owner)
        result = Regions(torch.tensor([r.box for r in regions], dtype=torch.float32), phrases, owner)
        if self.masks:
            result.masks = torch.from_numpy(np.stack([filled(r, self.size) if r.mask is None else r.mask for r in regions]))
        if self.points:
            result.points = torch.tensor([centre(r.box) if r.point is None else r.point for r in regions], dtype=torch.float32)
        if self.negatives:
            drawn = [row.stream(WRONG) for row in rows]
            wrong, of = flat([some(r.negatives, self.negatives, drawn[i]) for r, i in zip(regions, owners, strict=True)])
            result.negatives = tokenized(self.tokenizer, wrong, owner=torch.tensor(of)) if wrong else None
        return result

    def _chosen(self, row: Draw) -> list[Region]:
        return some(row.fitted[self.name], self.most, row.stream(MOST)) if self.most else row.fitted[self.name]

    def memory(self) -> int:
        """Roughly how many bytes one fitted value takes."""
        return 8 * self.size**2 if self.masks else 0

    @classmethod
    def schema(cls) -> dict[str, pa.DataType]:
        """Arrow columns of a packed value, by name; the value's presence is a column of the shard."""
        import pyarrow as pa

        texts, floats = pa.list_(pa.string()), pa.list_(pa.float64())
        return {
            "boxes": pa.list_(pa.list_(pa.float64(), 4)),
            "phrases": texts,
            "region_masks": pa.list_(pa.list_(pa.int32())),
            "region_negatives": pa.list_(texts),
            "region_points": pa.list_(floats),
        }

    @classmethod
    def pack(cls, value: list[Region], scale: Any, store: Any) -> dict[str, Any]:
        """A value as a row of these columns. Masks as run lengths; no mask and no point are empty lists."""
        return {
            "boxes": [list(r.box) for r in value],
            "phrases": [valid(r.phrase) for r in value],
            "region_masks": [[] if r.mask is None else to_runs(r.mask) for r in value],
            "region_negatives": [list(map(valid, r.negatives)) for r in value],
            "region_points": [list(r.point or ()) for r in value],
        }

    @classmethod
    def unpack(cls, row: Mapping[str, Any], load: Any) -> list[Region]:
        """The value again."""
        plain = [Region(tuple(box), phrase) for box, phrase in zip(row["boxes"], row["phrases"], strict=True)]
        try:
            more = zip(plain, row["region_masks"], row["region_negatives"], row["region_points"], strict=True)
        except KeyError:  # packed by a version that knew boxes and phrases alone
            return plain
        return [
            r._replace(mask=from_runs(runs) if runs else None, negatives=tuple(wrong), point=tuple(point) if point else None)
            for r, runs, wrong, point in more
        ]

    @classmethod
    def scaled(cls, value: list[Region], x: float, y: float) -> list[Region]:
        """The value where the sample's image is ``x`` times as wide and ``y`` times as high; for fields in pixels."""
        if x == y == 1:
            return value
        return [
            r._replace(
                box=(r.box[0] * x, r.box[1] * y, r.box[2] * x, r.box[3] * y),
                point=None if r.point is None else (r.point[0] * x, r.point[1] * y),
                mask=None if r.mask is None else resized(r.mask, x, y),
            )
            for r in value
        ]

    @classmethod
    def blank(cls, value: list[Region]) -> list[Region]:
        """A value of the same shape that says nothing: the blind control. Boxes, masks and points stay."""
        return [r._replace(phrase="", negatives=()) for r in value]

    @classmethod
    def draw(cls, value: list[Region]) -> list[Any]:
        """What to show a person: pictures (uint8 arrays) and lines of text, in order."""
        return [f"{r.phrase} [{', '.join(f'{edge:.0f}' for edge in r.box)}]" for r in value]


def some(values: Sequence[Any], most: int, rng: random.Random) -> list[Any]:
    """At most ``most`` of the values, drawn at random, in their order."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in sorted(rng.sample(range(len(values)), most))]


def centre(box: Box) -> tuple[float, float]:
    """The middle of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def filled(region: Region, size: int) -> np.ndarray:
    """The box of a region, in shares, as a mask bool [size, size]: pixels with their centre inside, at least one."""
    centres = (np.arange(size) + 0.5) / size
    left, top, right, bottom = region.box
    inside = []
    for low, high in ((top, bottom), (left, right)):
        line = (low <= centres) & (centres <= high)
        line[min(int((low + high) / 2 * size), size - 1)] = True
        inside.append(line)
    return inside[0][:, None] & inside[1][None]


def resized(mask: np.ndarray, x: float, y: float) -> np.ndarray:
    """A mask of a picture that becomes ``x`` times as wide and ``y`` times as high: pixels of which half is covered."""
    from PIL import Image

    height, width = mask.shape
    size = (max(1, round(width * x)), max(1, round(height * y)))
    share = np.asarray(Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.BOX))
    return np.asarray(share >= min(128, int(share.max()) or 1))
