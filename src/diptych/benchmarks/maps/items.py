"""Pictures with a phrase, the exact mask of what it means, and a phrase for something else in the same picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.core.capabilities import Image
from diptych.core.errors import DiptychError
from diptych.core.sample import Region, Sample
from diptych.data.sources import open_source

SCENES = "scenes:small?masks=1"  # whatever a model was trained on: masks are exact, and no model has seen the test split

TRIES = 20  # samples looked at for each item that is wanted


@dataclass(frozen=True)
class Item:
    """A pair of a picture and a phrase. scene: items of the same one are not independent."""

    scene: str
    image: Image
    text: str
    other: str  # true of another part of the picture: the wrong caption
    mask: np.ndarray  # bool [height, width]


def mask_of(region: Region, image: Image) -> np.ndarray:
    """The region's mask; its box where it has none. bool [height, width]."""
    if region.mask is not None:
        return np.asarray(region.mask, dtype=bool)
    inside = np.zeros(image.shape[:2], dtype=bool)
    left, top, right, bottom = (round(edge) for edge in region.box)
    inside[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
    return inside


def items_from(sample: Sample) -> list[Item]:
    """One item for each region of a picture that shows at least two things; else none."""
    image, regions = sample.image, sample.fields.get("regions", [])
    if image is None:
        return []
    found = []
    for i, region in enumerate(regions):
        others = [r.phrase for r in [*regions[i + 1 :], *regions[:i]] if r.phrase != region.phrase]
        mask = mask_of(region, image)
        if others and mask.any():
            found.append(Item(sample.id, image, region.phrase, others[0], mask))
    return found


def open_items(n: int, address: str = SCENES, split: str = "test", start: int = 0) -> list[Item]:
    """At least n items (all of the last scene), from the sample ``start`` on. DiptychError if there are fewer than two."""
    source: Any = open_source(address)
    source = source.split(split) if hasattr(source, "split") else source
    found: list[Item] = []
    for index in range(start, min(len(source), start + TRIES * n)):
        if len(found) >= n:
            break
        found += items_from(source[index])
    if len(found) < 2:
        raise DiptychError(f"{address}: no pictures with at least two regions that have different phrases")
    return found
