"""Referring: the box of what a phrase says (RefCOCO: Yu et al., arXiv:1608.00272; phrases: Plummer et al., arXiv:1505.04870).

A query is right if the intersection over union of the model's one box and the true one is .5 or more. One box a query: a rule that
takes the best of several boxes, or of several readings of the numbers, is won by who writes many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diptych.benchmarks.base import Items, Progress, batch_for
from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.regions.answers import PROMPT, Answer, ask, written_by
from diptych.benchmarks.regions.boxes import OVERLAP, around_all, centre, iou, whole
from diptych.benchmarks.regions.items import Query, leak_notes, mark_leaks, queries
from diptych.benchmarks.regions.scored import results_of
from diptych.benchmarks.results import credits
from diptych.core.capabilities import Model
from diptych.core.sample import Box
from diptych.data.source import Source

Credit = Callable[[Box | None], dict[str, float]]


@dataclass(frozen=True)
class RegionTask:
    """Base class of tasks with one answer for each phrase.

    n: queries. train: the address of training data against which pictures are checked for near-duplicates; train_limit: how many of
    its samples are read. convention, prompt: of a model that writes boxes as text. controls: also ask about a grey picture, and
    about the phrase of another picture, which takes three times as long.
    """

    name: str = "regions"
    needs: tuple[str, ...] = ("locate|generate",)
    n: int = 200
    batch: int = 32
    seed: int = 0
    train: str = ""
    train_limit: int = 20_000
    convention: str = ""
    prompt: str = PROMPT
    controls: bool = True

    single: ClassVar[bool] = True

    def items(self, source: Source) -> Items:
        """n queries. Raises NotApplicable for a source without regions."""
        found = queries(source, self.n, single=self.single)
        return Items(mark_leaks(found, self.train, self.train_limit), found.problems)

    def run(self, model: Model, items: list[Query], records: Records, progress: Progress | None = None) -> None:
        """One record for each query."""
        written = written_by(model, self.convention, self.name)
        others = self._others(items) if self.controls else None
        size = batch_for(model, self.batch)
        for start in range(0, len(items), size):
            part = [i for i in range(start, min(start + size, len(items))) if items[i].id not in records]
            if not part:
                continue
            chosen = [items[i] for i in part]
            images, phrases = [q.image for q in chosen], [q.phrase for q in chosen]
            own = ask(model, images, phrases, written, self.prompt)
            blind = ask(model, [blank(image) for image in images], phrases, written, self.prompt) if self.controls else []
            shuffled = []
            if others is not None:
                shuffled = ask(model, images, [items[others[i]].phrase for i in part], written, self.prompt)
            for k, q in enumerate(chosen):
                more = {"blind": blind[k]} if blind else {}
                more |= {"shuffled": shuffled[k]} if shuffled else {}
                records.add([self.record(q, own[k], more)])
            if progress:
                progress(f"{self.name} {part[-1] + 1}/{len(items)}")

    def _others(self, items: Sequence[Query]) -> list[int] | None:
        order = derangement(len(items), np.unique([q.phrase for q in items], return_inverse=True)[1], self.seed)
        return None if order is None else order.tolist()

    def record(self, query: Query, own: Answer, more: dict[str, Answer]) -> Record:
        """What is kept of a query: the answer, its credit, and the credits of the controls."""
        return {
            "item": query.id,
            "cluster": query.cluster,
            "phrase": query.phrase,
            "truth": [list(box) for box in query.boxes],
            "box": None if own.box is None else list(own.box),
            "score": own.score,
            "by": own.by,
            "slices": query.slices,
            **({"answer": own.text, "unparsed": own.box is None, "more_boxes": own.more} if own.by == "text" else {}),
            "correct": self.credit(query, own),
            **{name: self.credit(query, answer) for name, answer in more.items()},
            **self.without_model(query),
        }

    def credit(self, query: Query, answer: Answer) -> dict[str, float]:
        """{metric: credit of an answer in [0, 1]}."""
        raise NotImplementedError

    def without_model(self, query: Query) -> dict[str, dict[str, float]]:
        """The credits of boxes that need no model; of ``random`` the mean over the boxes of all regions of the picture."""
        height, width = query.image.shape[:2]
        largest = max(query.all, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
        fixed = {"centre": centre(height, width), "whole": whole(height, width), "largest": largest}
        drawn = [self.credit(query, Answer(box)) for box in query.all]
        return {
            **{name: self.credit(query, Answer(box)) for name, box in fixed.items()},
            "random": {m: float(np.mean([d[m] for d in drawn])) for m in drawn[0]},
        }

    def summarise(self, records: list[Record]) -> list[Result]:
        """Each metric with its controls and slices."""
        return results_of(self.name, records)

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        """{metric: {item: credit}}: what a paired test compares."""
        return credits(records)

    def notes(self, records: Sequence[Record]) -> list[str]:
        """By what the model says where things are, superfluous boxes, and leaks."""
        notes = leak_notes(records, self.train)
        if by := sorted({r["by"] for r in records if r.get("by")} - {"box", "text"}):
            notes.append(f"the model has no boxes of its own: they are those of {', '.join(by)}")
        if more := sum(r.get("more_boxes", 0) for r in records):
            notes.append(f"answers hold {more} boxes beyond the first; these do not count")
        return notes


@dataclass(frozen=True)
class Refer(RegionTask):
    """Referring expressions: accuracy at an intersection over union of .5, and the mean intersection over union."""

    name: str = "refer"
    overlap: float = OVERLAP

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "iou")

    def credit(self, query: Query, answer: Answer) -> dict[str, float]:
        """accuracy: 1 if the one box is right; iou: how far it is."""
        value = 0.0 if answer.box is None else iou(answer.box, query.boxes[0])
        return {"accuracy": float(value >= self.overlap), "iou": value}


@dataclass(frozen=True)
class Phrase(RegionTask):
    """Phrase localisation: recall at 1. ``any``: right if any of the phrase's boxes is met; ``merged``: the box around all of them
    is what must be met (both are in use for Flickr30k Entities).
    """

    name: str = "phrase"
    overlap: float = OVERLAP

    metrics: ClassVar[tuple[str, ...]] = ("recall@1/any", "recall@1/merged")
    single: ClassVar[bool] = False

    def credit(self, query: Query, answer: Answer) -> dict[str, float]:
        """Whether the one box is right by each rule."""
        found: Any = answer.box
        values = [0.0] if found is None else [iou(found, box) for box in query.boxes]
        merged = 0.0 if found is None else iou(found, around_all(query.boxes))
        return {"recall@1/any": float(max(values) >= self.overlap), "recall@1/merged": float(merged >= self.overlap)}
