"""Crops and captions: each region cut out of its picture, against the phrases of the picture's other regions and against wrong
versions of its own (after DCI's crop-caption matching, Urbanek et al., arXiv:2312.08578).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable
from diptych.benchmarks.matching.blocks import Block, MatchingTask, best_image, best_text
from diptych.benchmarks.records import Record
from diptych.benchmarks.regions.items import SMALL, leak_notes, mark_leaks, with_regions
from diptych.core.capabilities import Image
from diptych.core.sample import Box, Region
from diptych.data.source import Problem, Source


@dataclass(frozen=True)
class Crops(MatchingTask):
    """``crop-to-text``: the phrase of a crop among those of the picture's regions; ``text-to-crop``: the reverse; ``negatives``: a
    crop's phrase must score higher than every wrong version of it.

    n: pictures. margin: added on each side, as a share of the box's. least: pixels of the shorter side below which a crop is left
    out. train: as for the other tasks.
    """

    name: str = "crops"
    n: int = 100
    margin: float = 0.1
    least: int = 4
    train: str = ""
    train_limit: int = 20_000

    metrics: ClassVar[tuple[str, ...]] = ("crop-to-text", "text-to-crop", "negatives")

    def items(self, source: Source) -> Items:
        """A block of all crops and phrases for each picture, and one for each crop with wrong versions."""
        problems: list[Problem] = []
        blocks: list[Block] = []
        pictures: dict[str, _Whole] = {}
        for sample, regions in with_regions(source, problems):
            assert sample.image is not None
            first: dict[str, tuple[int, Region]] = {}
            for place, region in regions:
                first.setdefault(region.phrase, (place, region))
            cut = {place: _cut(sample.image, region.box, self.margin) for place, region in first.values()}
            kept = [(place, region) for place, region in first.values() if min(cut[place].shape[:2]) >= self.least]
            if len(kept) > 1:
                images, texts = [cut[place] for place, _ in kept], [region.phrase for _, region in kept]
                blocks.append(Block(f"{sample.id}/all", sample.id, list(images), texts, np.eye(len(kept), dtype=bool)))
            for place, region in kept:
                if region.negatives:
                    fits = np.zeros((1, 1 + len(region.negatives)), bool)
                    fits[0, 0] = True
                    area = (region.box[2] - region.box[0]) * (region.box[3] - region.box[1])
                    size = "small" if area < SMALL * sample.image.shape[0] * sample.image.shape[1] else "large"
                    texts = [region.phrase, *region.negatives]
                    blocks.append(Block(f"{sample.id}#{place}", sample.id, [cut[place]], texts, fits, {"size": size}))
            pictures[sample.id] = _Whole(sample.id, sample.image)
            if len(pictures) == self.n:
                break
        if not blocks:
            raise NotApplicable("the source has no picture with two regions, and no phrase with wrong versions")
        mark_leaks(pictures.values(), self.train, self.train_limit)
        for block in blocks:
            block.slices |= pictures[block.cluster].slices
        return Items(blocks, problems)

    def credit(self, scores: np.ndarray, fits: np.ndarray, to_image: np.ndarray | None = None) -> dict[str, float]:
        """The credits of a block; of one crop alone ``negatives``."""
        if len(fits) == 1:
            return {"negatives": best_text(scores, fits)}
        other = scores if to_image is None else to_image
        return {"crop-to-text": best_text(scores, fits), "text-to-crop": best_image(other, fits)}

    def notes(self, records: Sequence[Record]) -> list[str]:
        """Leaks."""
        return leak_notes(records, self.train)


def _cut(image: Image, box: Box, margin: float) -> Image:
    """The pixels of a box with a margin, at least one."""
    height, width = image.shape[:2]
    x, y = (box[2] - box[0]) * margin, (box[3] - box[1]) * margin
    left, top = max(0, int(box[0] - x)), max(0, int(box[1] - y))
    right, bottom = min(width, int(np.ceil(box[2] + x))), min(height, int(np.ceil(box[3] + y)))
    return np.ascontiguousarray(image[top : max(bottom, top + 1), left : max(right, left + 1)])


@dataclass
class _Whole:
    """A picture by its cluster, as ``mark_leaks`` reads it."""

    cluster: str
    image: Image
    slices: dict[str, str] = field(default_factory=dict)
