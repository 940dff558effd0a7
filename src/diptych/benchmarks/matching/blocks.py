"""The base of benchmarks that score some images against some texts: a block, and which text is true of which image.

One record per block. Ties are shared, so equal scores get exactly chance. Controls: blind, grey images; shuffled, the images of
another block; shortest and longest, the text with the fewest or the most words, regardless of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from diptych.benchmarks.base import Items, Progress, count_not_finite
from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.metrics.ranking import lowest_if_not_finite
from diptych.benchmarks.pictures import ImageRef, load_image
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import credits, shares
from diptych.benchmarks.statistics import mean
from diptych.core.capabilities import Image, Model, sides_of
from diptych.core.words import count_words
from diptych.data.source import Source

TO_IMAGE = "_to_image"  # ends the names of scores by which images are chosen, in records
KEPT = {"correct": "scores", "blind": "blind_scores", "shuffled": "shuffled_scores"}


@dataclass
class Block:
    """Images and texts that are scored against each other."""

    id: str
    cluster: str
    images: list[ImageRef]
    texts: list[str]
    fits: np.ndarray  # bool [images, texts]
    slices: dict[str, str] = field(default_factory=dict)


class Sides(NamedTuple):
    """Scores by which texts are chosen for images, and those by which images are chosen for texts; None: the same."""

    to_text: np.ndarray
    to_image: np.ndarray | None

    def at(self, places: np.ndarray) -> Sides:
        """Those of the pairs at these places."""
        return Sides(self.to_text[places], None if self.to_image is None else self.to_image[places])


class Batch:
    """Images, texts and pairs gathered for one call of ``score``; no pair twice."""

    def __init__(self) -> None:
        self.images: list[Image] = []
        self.texts: list[str] = []
        self.pairs: list[tuple[int, int]] = []
        self._image: dict[object, int] = {}
        self._text: dict[str, int] = {}
        self._pair: dict[tuple[int, int], int] = {}

    def add(self, images: list[Image], captions: list[str]) -> np.ndarray:
        """The positions in ``scores`` of these images with these captions; int [images, captions]."""
        rows = [self._index(self._image, id(image), self.images, image) for image in images]
        columns = [self._index(self._text, caption, self.texts, caption) for caption in captions]
        return np.array([[self._index(self._pair, (r, c), self.pairs, (r, c)) for c in columns] for r in rows])

    def scores(self, model: Model) -> Sides:
        """The scores of all pairs, float [P]."""
        to_text, to_image = sides_of(model, self.images, self.texts, np.array(self.pairs))
        return Sides(to_text, None if to_image is to_text else to_image)

    @staticmethod
    def _index(known: dict[Any, int], key: object, values: list[Any], value: object) -> int:
        if key not in known:
            known[key] = len(values)
            values.append(value)
        return known[key]


@lru_cache(maxsize=64)
def grey(shape: tuple[int, ...]) -> Image:
    """The same grey image object for all images of a size, so that it is scored once."""
    return blank(np.empty(shape, dtype=np.uint8))


def best_text(scores: np.ndarray, fits: np.ndarray) -> float:
    """The mean over images of the probability that a fitting text scores highest if ties are broken at random; [images, texts]
    both."""
    scores = lowest_if_not_finite(scores)
    top = scores == scores.max(1, keepdims=True)
    return mean(((top & fits).sum(1) / top.sum(1))[fits.any(1)])


def best_image(scores: np.ndarray, fits: np.ndarray) -> float:
    """The same over texts: the probability that a fitting image scores highest."""
    return best_text(np.asarray(scores).T, np.asarray(fits).T)


def word_counts(texts: Sequence[str]) -> np.ndarray:
    """The lengths in words (``core.words``), for the controls shortest and longest; float [texts]."""
    return np.array(count_words(texts), dtype=np.float64)


@dataclass(frozen=True)
class MatchingTask:
    """Base class of tasks that score: scoring, controls, records."""

    name: str = "matching"
    needs: tuple[str, ...] = ("score",)
    file: str = ""  # the benchmark's own file; "": blocks from the data
    images: str = ""  # the directory of its images
    n: int = 0  # the number of blocks; 0: all
    batch: int = 64
    seed: int = 0

    def items(self, source: Source) -> Items:
        """The blocks."""
        raise NotImplementedError

    def credit(self, scores: np.ndarray, fits: np.ndarray, to_image: np.ndarray | None = None) -> dict[str, float]:
        """{metric: credit in [0, 1]} of scores [images, texts]. to_image: the scores by which images are chosen for texts, of
        models that have others for it.
        """
        raise NotImplementedError

    def chance(self, fits: np.ndarray, two_sided: bool = False) -> dict[str, float]:
        """The mean credit of random scores: that of equal scores, unless a benchmark overrides it."""
        return self.credit(np.zeros(fits.shape), fits)

    def ties(self, scores: np.ndarray, fits: np.ndarray, to_image: np.ndarray | None = None) -> dict[str, int]:
        """{metric: ties}: how many images have their highest score with several texts."""
        finite = lowest_if_not_finite(scores)
        tied = int(((finite == finite.max(1, keepdims=True)).sum(1) > 1).sum()) if scores.shape[1] > 1 else 0
        return dict.fromkeys(self.credit(scores, fits), tied)

    def run(self, model: Model, items: list[Block], records: Records, progress: Progress | None = None) -> None:
        """One record per block, with its scores [images, texts], the scores of grey images and those of another block's images."""
        others = self._others(items)
        for start in range(0, len(items), self.batch):
            part = [i for i in range(start, min(start + self.batch, len(items))) if items[i].id not in records]
            batch, places = Batch(), []
            loaded: dict[str, Image] = {}  # a file that several blocks share is read, and encoded, once

            def load(block: Block, loaded: dict[str, Image] = loaded) -> list[Image]:
                """The images of a block, uint8 [H, W, 3] each."""
                images = []
                for image in block.images:
                    if not isinstance(image, str):
                        images.append(load_image(image, block.id))
                        continue
                    if image not in loaded:
                        loaded[image] = load_image(image, block.id)
                    images.append(loaded[image])
                return images

            for i in part:
                block, other = items[i], others.get(items[i].id)
                images = load(block)
                blind = batch.add([grey(image.shape) for image in images], block.texts)
                shuffled = batch.add(load(other), block.texts) if other else None
                places.append((block, batch.add(images, block.texts), blind, shuffled))
            if places:
                scores = batch.scores(model)
                records.add(
                    self.with_credits(self.record(b, scores.at(own), scores.at(blind), None if other is None else scores.at(other)))
                    for b, own, blind, other in places
                )
            if progress and part:
                progress(f"{self.name} {part[-1] + 1}/{len(items)}")

    def _others(self, items: Sequence[Block]) -> dict[str, Block]:
        """For each block another one with other images and as many of them; blocks without such another are left out."""
        by_size: dict[int, list[Block]] = {}
        for block in items:
            by_size.setdefault(len(block.images), []).append(block)
        others = {}
        for blocks in by_size.values():
            order = derangement(len(blocks), np.unique([b.cluster for b in blocks], return_inverse=True)[1], self.seed)
            if order is not None:
                others.update({block.id: blocks[i] for block, i in zip(blocks, order, strict=True)})
        return others

    def record(self, block: Block, scores: Sides, blind: Sides, shuffled: Sides | None) -> Record:
        """What is kept of a block: its texts and all scores; those that choose images under names of their own, if they differ."""
        sides = {"scores": scores, "blind_scores": blind, "shuffled_scores": shuffled}
        return {
            "item": block.id,
            "cluster": block.cluster,
            "slices": block.slices,
            "texts": block.texts,
            "fits": block.fits.astype(int),
            **{name: None if of is None else of.to_text for name, of in sides.items()},
            **{name + TO_IMAGE: of.to_image for name, of in sides.items() if of is not None and of.to_image is not None},
        }

    # --- from records alone ---

    def with_credits(self, record: Record) -> Record:
        """The record with the credits of its scores and of the controls."""
        fits = np.array(record["fits"], dtype=bool)
        words = np.tile(word_counts(record["texts"]), (len(fits), 1))
        several = fits.shape[1] > 1
        scores = {
            **{condition: (record[key], record.get(key + TO_IMAGE)) for condition, key in KEPT.items()},
            "shortest": (-words if several else None, None),
            "longest": (words if several else None, None),
        }
        own, more = _floats(record["scores"]), _to_image(record.get("scores" + TO_IMAGE))
        return {
            **record,
            **{c: self.credit(_floats(s), fits, **_to_image(other)) for c, (s, other) in scores.items() if s is not None},
            "chance": self.chance(fits, **({"two_sided": True} if more else {})),
            "ties": self.ties(own, fits, **more),
            "nans": count_not_finite(own),
        }

    def summarise(self, records: list[Record]) -> list[Result]:
        """The share of credits per metric, with the controls and the slices of the records."""
        return shares(self.name, [self.with_credits(r) for r in records])

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        """{metric: {item: credit}}: what a paired test compares."""
        return credits([self.with_credits(r) for r in records])


def _to_image(scores: object) -> dict[str, np.ndarray]:
    """An argument for ``credit``, which benchmarks of one's own need only take if the model has such scores."""
    return {} if scores is None else {"to_image": _floats(scores)}


def _floats(scores: object) -> np.ndarray:
    """Scores as float64; null is NaN."""
    return scores if isinstance(scores, np.ndarray) else np.array(scores, dtype=object).astype(np.float64)
