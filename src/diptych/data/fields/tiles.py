"""Pictures of any shape, cut into tiles."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from diptych.core.batch import Images
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.augment import augmenter
from diptych.data.fields.base import Context, Draw, stacked
from diptych.data.fields.image import ImageField
from diptych.data.image import resize
from diptych.data.source import BrokenItem
from diptych.data.tiles.batch import Tiles
from diptych.data.tiles.grid import GRIDS, Grid, Tiled, cut
from diptych.data.tiles.native import Fitting

if TYPE_CHECKING:
    from diptych.config.recipe import FieldSpec

TILES, NATIVE = "tiles", "native"
Fit = Literal["pad", "stretch"]


class TilesField(ImageField):
    """uint8 [height, width, 3] → ``Tiles``: the whole picture and the tiles of the grid that fits its shape best, each as large as
    the model's images. Declared as ``data.fields: {image: {kind: tiles}}``; the images of ``turns`` are then cut, too.

    grids: those to choose from, rows and columns. fit: ``pad``: a picture keeps its shape, with black around it; ``stretch``: it is
    deformed to fill its grid (Monkey). Pictures are neither cropped nor flipped.
    """

    def __init__(self, name: str, size: int, augment: Any = "none", *, grids: list[Grid] | None = None, fit: Fit = "pad"):
        super().__init__(name, size, "none")
        self.cutting = Cutting(size, grids, fit)
        if augmenter(augment, size).draws:
            raise DiptychError(f"data.augment: pictures in tiles (data.fields.{name}.kind: tiles) are read whole; set it to none")

    @classmethod
    def build(cls, name: str, context: Context) -> TilesField:
        """The field of this name for a loader."""
        return cls(name, context.image_size, context.augment, **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> Tiled:  # type: ignore[override]
        """A sample's value as it is kept until it is collated: decoded and cut."""
        image = sample.fields.get(self.name)
        if image is None:
            raise BrokenItem(sample.id, f"no {self.name}")
        return self.cutting(image)

    def collate(self, rows: Sequence[Draw]) -> Tiles:
        """A batch of it."""
        return self.cutting.stacked([row.fitted[self.name] for row in rows])

    def memory(self) -> int:
        """Roughly how many bytes one fitted value takes."""
        return 3 * self.size**2 * (1 + max(r * c for r, c in self.cutting.grids))


class Cutting:
    """How a model's pictures are cut. size: the side of a tile in pixels; grids, fit: as of the field."""

    def __init__(self, size: int, grids: Sequence[Grid] | None = None, fit: Fit = "pad"):
        self.size, self.stretched = size, fit == "stretch"
        self.grids = GRIDS if grids is None else tuple((int(r), int(c)) for r, c in grids)
        if not self.grids or any(min(grid) < 1 for grid in self.grids):
            raise DiptychError(f"data.fields, kind tiles: grids are rows and columns of at least 1, got {list(self.grids)}")

    def __call__(self, image: np.ndarray) -> Tiled:
        """A picture, uint8 [H, W, 3], in tiles."""
        return cut(image, self.size, self.grids, self.stretched)

    def stacked(self, pictures: Sequence[Tiled]) -> Tiles:
        """These pictures as one batch."""
        return Tiles.of(pictures)


class Preparing(Protocol):
    """How the pictures of a recipe are prepared if not as squares of one size."""

    def __call__(self, image: np.ndarray) -> Any:
        """A picture, uint8 [H, W, 3], as it is kept until a batch is made."""

    def stacked(self, pictures: Sequence[Any]) -> Images:
        """These pictures as one batch."""


def preparing_of(own: Mapping[str, str | FieldSpec], size: int) -> Preparing | None:
    """How a recipe that declares these fields (``data.fields``) prepares its pictures; None: as squares of one size."""
    declared = own.get("image")
    kind = declared if isinstance(declared, str) or declared is None else declared.kind
    options = {} if isinstance(declared, str) or declared is None else declared.options
    if kind == NATIVE:
        return Fitting(**options)
    return Cutting(size, **options) if kind == TILES else None


def cutting_of(own: Mapping[str, str | FieldSpec], size: int) -> Cutting | None:
    """How such a recipe cuts its pictures into tiles; None: it does not."""
    found = preparing_of(own, size)
    return found if isinstance(found, Cutting) else None


def collated_pictures(images: Sequence[np.ndarray], size: int, own: Any) -> Images:
    """Pictures, uint8 [H, W, 3], as a model of a recipe that declares the fields ``own`` reads them. size: of its images."""
    preparing = preparing_of(own, size)
    if preparing is None:
        return Images(stacked([resize(image, size) for image in images]))
    return preparing.stacked([preparing(image) for image in images])
