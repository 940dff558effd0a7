"""What the tasks share that choose by score: some images and some texts, and which text is true of which image.

A record a block. Ties are shared, so a scorer without opinion lands on chance. Blind: grey images. Shuffled: the images
of another block. Shortest, longest: the text with the fewest or the most words, whatever the image shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.metrics.ranking import lowest_if_not_finite
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import mean
from diptych.benchmarks.tasks.base import Items, Progress, not_finite, shares
from diptych.benchmarks.tasks.published import Shown, pixels
from diptych.core.capabilities import Image, Model
from diptych.data.source import Source


@dataclass
class Block:
    id: str
    cluster: str
    images: list[Shown]
    texts: list[str]
    fits: np.ndarray  # bool [images, texts]
    slices: dict[str, str] = field(default_factory=dict)


class Asked:
    """Images, texts and pairs gathered for one call; no pair twice."""

    def __init__(self) -> None:
        self.images: list[Image] = []
        self.texts: list[str] = []
        self.pairs: list[tuple[int, int]] = []
        self._image: dict[object, int] = {}
        self._text: dict[str, int] = {}
        self._pair: dict[tuple[int, int], int] = {}

    def block(self, images: list[Image], captions: list[str]) -> np.ndarray:
        """Where the scores [images, captions] will be found."""
        rows = [self._add(self._image, id(image), self.images, image) for image in images]
        columns = [self._add(self._text, caption, self.texts, caption) for caption in captions]
        return np.array([[self._add(self._pair, (r, c), self.pairs, (r, c)) for c in columns] for r in rows])

    def scores(self, model: Model) -> np.ndarray:
        return np.asarray(model.score(self.images, self.texts, np.array(self.pairs)))

    @staticmethod
    def _add(known: dict, key: object, values: list, value: object) -> int:
        if key not in known:
            known[key] = len(values)
            values.append(value)
        return known[key]


@lru_cache(maxsize=64)
def grey(shape: tuple[int, ...]) -> Image:
    """The same grey image for all of a size, so that it is asked about once."""
    return blank(np.empty(shape, dtype=np.uint8))


def best_text(scores: np.ndarray, fits: np.ndarray) -> float:
    """Mean over the images of P(a fitting text is the best, ties in random order)."""
    scores = lowest_if_not_finite(scores)
    top = scores == scores.max(1, keepdims=True)
    return mean(((top & fits).sum(1) / top.sum(1))[fits.any(1)])


def best_image(scores: np.ndarray, fits: np.ndarray) -> float:
    return best_text(np.asarray(scores).T, np.asarray(fits).T)


@dataclass(frozen=True)
class Choosing:
    name: str = "choosing"
    needs: tuple[str, ...] = ("score",)
    file: str = ""  # the benchmark's own file; "": blocks from the data
    images: str = ""  # the directory of its pictures
    n: int = 0  # so many blocks; 0: all
    batch: int = 64
    seed: int = 0

    def items(self, source: Source) -> Items:
        raise NotImplementedError

    def credit(self, scores: np.ndarray, fits: np.ndarray) -> dict[str, float]:
        """What scores [images, texts] earn."""
        raise NotImplementedError

    def chance(self, fits: np.ndarray) -> dict[str, float]:
        """The mean credit of random scores; that of equal ones, unless a task has more to say."""
        return self.credit(np.zeros(fits.shape), fits)

    def run(self, model: Model, items: list[Block], records: Records, progress: Progress | None = None) -> None:
        others = self._others(items)
        for start in range(0, len(items), self.batch):
            part = [i for i in range(start, min(start + self.batch, len(items))) if items[i].id not in records]
            asked, plans = Asked(), []
            loaded: dict[str, Image] = {}  # a file that several blocks share is read, and encoded, once

            def load(block: Block, loaded: dict[str, Image] = loaded) -> list[Image]:
                return [
                    loaded.setdefault(s, pixels(s, block.id)) if isinstance(s, str) else pixels(s, block.id) for s in block.images
                ]

            for i in part:
                block, other = items[i], others.get(items[i].id)
                own = load(block)
                blind = asked.block([grey(image.shape) for image in own], block.texts)
                shuffled = asked.block(load(other), block.texts) if other else None
                plans.append((block, asked.block(own, block.texts), blind, shuffled))
            if plans:
                scores = asked.scores(model)
                records.add(
                    self.judge(self.record(b, scores[own], scores[blind], None if other is None else scores[other]))
                    for b, own, blind, other in plans
                )
            if progress and part:
                progress(f"{self.name} {part[-1] + 1}/{len(items)}")

    def _others(self, items: Sequence[Block]) -> dict[str, Block]:
        """For each block another of other images and as many of them; none where there is no such."""
        alike: dict[int, list[Block]] = {}
        for block in items:
            alike.setdefault(len(block.images), []).append(block)
        found = {}
        for blocks in alike.values():
            order = derangement(len(blocks), np.unique([b.cluster for b in blocks], return_inverse=True)[1], self.seed)
            if order is not None:
                found.update({block.id: blocks[i] for block, i in zip(blocks, order, strict=True)})
        return found

    def record(self, block: Block, scores: np.ndarray, blind: np.ndarray, shuffled: np.ndarray | None) -> Record:
        return {
            "item": block.id,
            "cluster": block.cluster,
            "slices": block.slices,
            "texts": block.texts,
            "fits": block.fits.astype(int),
            "scores": scores,
            "blind_scores": blind,
            "shuffled_scores": shuffled,
        }

    # --- from records alone ---

    def judge(self, record: Record) -> Record:
        """The record with credits, from its scores."""
        fits = np.array(record["fits"], dtype=bool)
        words = np.tile([float(len(text.split())) for text in record["texts"]], (len(fits), 1))
        scores = {
            "correct": record["scores"],
            "blind": record["blind_scores"],
            "shuffled": record["shuffled_scores"],
            "shortest": -words if fits.shape[1] > 1 else None,
            "longest": words if fits.shape[1] > 1 else None,
        }
        own = np.asarray(_floats(record["scores"]))
        found = {look: self.credit(np.asarray(_floats(s)), fits) for look, s in scores.items() if s is not None}
        tied = int(self._ties(own))
        return {
            **record,
            **found,
            "chance": self.chance(fits),
            "ties": dict.fromkeys(found["correct"], tied),
            "nans": not_finite(own),
        }

    def _ties(self, scores: np.ndarray) -> int:
        """Images whose best text is not alone at the top."""
        scores = lowest_if_not_finite(scores)
        return int(((scores == scores.max(1, keepdims=True)).sum(1) > 1).sum()) if scores.shape[1] > 1 else 0

    def summarise(self, records: list[Record]) -> list[Result]:
        return shares(self.name, [self.judge(r) for r in records])

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        from diptych.benchmarks.tasks.base import credits

        return credits([self.judge(r) for r in records])


def _floats(scores: object) -> np.ndarray:
    return np.array(scores, dtype=object).astype(np.float64) if not isinstance(scores, np.ndarray) else scores
