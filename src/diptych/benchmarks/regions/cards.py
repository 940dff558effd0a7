"""How does a model write boxes? Test cards of coloured shapes, and the convention that explains its answers.

A model that writes text says where the shapes of some cards are. Its numbers are read in every known convention
(``data.regions.conventions``); the one with the largest mean overlap with the true boxes is named, if it explains them and no other
explains them nearly as well. Cards are wide, high and square, and shapes lie off both diagonals, so that orders and frames differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from diptych.benchmarks.base import Items, Progress
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.regions.answers import PROMPT, numbers_of
from diptych.benchmarks.regions.boxes import iou
from diptych.benchmarks.results import of_credits
from diptych.core.capabilities import Image, Model
from diptych.core.sample import Box
from diptych.data.regions.conventions import Convention, every
from diptych.data.source import Source

SIZES = ((360, 640), (640, 400), (480, 480), (300, 720)) * 2  # height and width of the cards
COLOURS = {"red": (214, 40, 40), "blue": (40, 90, 214), "green": (40, 150, 70), "yellow": (240, 200, 40)}
SHAPES = ("rectangle", "ellipse", "triangle")
EXPLAINS = 0.5  # mean overlap from which on a convention explains the answers
AHEAD = 0.05  # by which it must be ahead of conventions that mean something else; or by two standard errors over the shapes
USUAL = (0, 1, 1000, 100, 999, 1024)  # scales, the commonest first: of several that mean the same the first is named
SAME = 0.97  # mean overlap of two conventions' readings from which on they mean the same


class Shown(NamedTuple):
    """A shape on a card."""

    image: Image
    phrase: str
    box: Box


def cards(seed: int = 0) -> list[Shown]:
    """Shapes on cards, three a card, each in its own colour."""
    rng = np.random.default_rng(seed)
    result = []
    for height, width in SIZES:
        image = np.full((height, width, 3), 236, np.uint8)
        shapes, colours = rng.permutation(len(SHAPES)), rng.permutation(len(COLOURS))
        columns = rng.permutation(3)
        made = []
        for k in range(3):
            w, h = (int(width * rng.uniform(0.14, 0.26)), int(height * rng.uniform(0.2, 0.38)))
            left = int(width * (columns[k] / 3) + rng.uniform(0.01, 0.06) * width)
            top = int(rng.uniform(0.03, 0.97 - h / height) * height)
            name = list(COLOURS)[colours[k]]
            _paint(image, SHAPES[shapes[k]], COLOURS[name], left, top, w, h)
            made.append((f"the {name} {SHAPES[shapes[k]]}", (float(left), float(top), float(left + w), float(top + h))))
        result += [Shown(image, phrase, box) for phrase, box in made]
    return result


def _paint(image: np.ndarray, shape: str, colour: tuple[int, int, int], left: int, top: int, width: int, height: int) -> None:
    """A shape that fills its box from edge to edge."""
    y, x = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None] + 0.5) / width
    if shape == "ellipse":
        mask = (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25
    elif shape == "triangle":
        mask = np.abs(x - 0.5) <= y / 2
    else:
        mask = np.ones((height, width), bool)
    image[top : top + height, left : left + width][np.broadcast_to(mask, (height, width))] = colour


class Reading(NamedTuple):
    """How well a convention explains the answers: the mean overlap of the boxes that it reads with the true ones."""

    convention: Convention
    overlap: float


class Revealed(NamedTuple):
    """The convention that explains a model's answers, those that mean the same for these numbers, and all readings, the best first.
    named: None if none explains them, or several do that mean different boxes. answered: answers with four numbers.
    """

    named: Convention | None
    same: tuple[Convention, ...]
    readings: tuple[Reading, ...]
    answered: int

    def sentence(self) -> str:
        """The finding in words."""
        best = self.readings[0]
        if self.named is None and best.overlap >= EXPLAINS:
            several = " or ".join(str(r.convention) for r in self.readings if best.overlap - r.overlap < AHEAD)
            return f"its boxes may be {several}: the answers do not tell them apart"
        if self.named is None:
            return (
                f"no known convention explains its answers: the best, {best.convention}, has a mean overlap of {best.overlap:.2f}"
            )
        also = f" (as well as {', '.join(map(str, self.same))})" if self.same else ""
        return f"it writes boxes as {self.named}{also}: mean overlap {best.overlap:.2f}; give ?convention={self.named}"


def reveal(shown: Sequence[Shown], answers: Sequence[Sequence[float] | None]) -> Revealed:
    """The convention of answers: four numbers for each shape, or None."""
    pairs = [(s, list(a)) for s, a in zip(shown, answers, strict=True) if a is not None and len(a) == 4]
    readings = []
    boxes: dict[Convention, list[Box]] = {}
    overlaps: dict[Convention, np.ndarray] = {}
    for how in every():
        boxes[how] = [how.box(a, *s.image.shape[:2]) for s, a in pairs]
        overlaps[how] = np.array([iou(box, s.box) for box, (s, _) in zip(boxes[how], pairs, strict=True)])
        readings.append(Reading(how, float(overlaps[how].sum()) / len(shown)))
    readings.sort(key=lambda r: -r.overlap)  # of equal ones the plainest first
    best = readings[0]
    same = [r.convention for r in readings[1:] if pairs and _alike(boxes[best.convention], boxes[r.convention]) >= SAME]
    rivals = [r.convention for r in readings[1:] if r.convention not in same]
    clear = best.overlap >= EXPLAINS and all(_ahead(overlaps[best.convention], overlaps[rival]) for rival in rivals)
    plainest, *others = sorted([best.convention, *same], key=lambda how: (how.padded, USUAL.index(how.scale)))
    return Revealed(plainest if clear else None, tuple(others), tuple(readings), len(pairs))


def _ahead(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether overlaps of one convention are clearly larger than those of another, over the same shapes."""
    difference = a - b
    error = float(difference.std(ddof=1)) / len(difference) ** 0.5 if len(difference) > 1 else np.inf
    return bool(difference.mean() >= min(AHEAD, max(2 * error, 0.01)))


def _alike(a: Sequence[Box], b: Sequence[Box]) -> float:
    return float(np.mean([iou(x, y) for x, y in zip(a, b, strict=True)]))


@dataclass(frozen=True)
class BoxConvention:
    """In which convention a writing model gives boxes. The result ``overlap`` is the mean overlap under the best convention; its
    note names it. prompt: with {phrase}, in the model's own words where it was trained on some.
    """

    name: str = "box-convention"
    needs: tuple[str, ...] = ("generate",)
    file: str = "cards"  # no data is needed
    prompt: str = PROMPT
    seed: int = 0

    metrics: ClassVar[tuple[str, ...]] = ("overlap",)

    def items(self, source: Source) -> Items:
        """The shapes of the cards."""
        return Items(cards(self.seed))

    def run(self, model: Model, items: list[Shown], records: Records, progress: Progress | None = None) -> None:
        """One record for each shape: the model's text and its first four numbers."""
        texts = model.generate([s.image for s in items], [self.prompt.format(phrase=s.phrase) for s in items], max_tokens=64)
        for number, (s, text) in enumerate(zip(items, texts, strict=True)):
            found = numbers_of(text)
            size = list(s.image.shape[:2])
            numbers = found[0] if found else None
            kept: Record = {"item": str(number), "cluster": f"{size[0]} × {size[1]}", "phrase": s.phrase, "size": size}
            records.add([{**kept, "truth": list(s.box), "answer": text, "numbers": numbers, "unparsed": numbers is None}])

    def summarise(self, records: list[Record]) -> list[Result]:
        """The mean overlap under the best convention; controls: under the next that means something else, and of equal answers."""
        if not records:
            return []
        found = self._revealed(records)
        how = found.named or found.readings[0].convention
        overlaps = [0.0 if r["numbers"] is None else iou(how.box(r["numbers"], *r["size"]), r["truth"]) for r in records]
        rival = next((r.overlap for r in found.readings if r.convention not in (how, *found.same)), 0.0)
        unread = sum(bool(r["unparsed"]) for r in records)
        clusters = [r["item"] for r in records]
        return [of_credits(self.name, "overlap", overlaps, clusters, controls={"next_convention": rival}, unparsed=unread)]

    def notes(self, records: Sequence[Record]) -> list[str]:
        """The convention in words."""
        return [self._revealed(records).sentence()] if records else []

    def _revealed(self, records: Sequence[Record]) -> Revealed:
        shown = [Shown(np.broadcast_to(np.uint8(0), (*r["size"], 3)), r["phrase"], tuple(r["truth"])) for r in records]
        return reveal(shown, [r["numbers"] for r in records])


def revealed_by(model: Any, prompt: str = PROMPT, seed: int = 0) -> Revealed:
    """The convention of a model that writes boxes, from its answers about the cards."""
    shown = cards(seed)
    texts = model.generate([s.image for s in shown], [prompt.format(phrase=s.phrase) for s in shown], max_tokens=64)
    return reveal(shown, [found[0] if (found := numbers_of(text)) else None for text in texts])
