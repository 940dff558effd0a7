"""Instructions with exact truth: one task for each kind, such as ``instruct-count``. Models write; nothing is scored by likelihood.

Blind: the same question about grey pictures. Shuffled: about the pictures of the question's twin, of which another answer is
right (``data/scenes/instruct``). A model that uses the picture is right about the twin's pictures hardly ever; one that does not,
as often as before. ``twins``: both of two twins are answered rightly, which no model can do that does not use the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, batch_for, by_item, failures
from diptych.benchmarks.controls import blank
from diptych.benchmarks.instructions.scores import (
    Score,
    boxed,
    corrected,
    corrects,
    counted,
    decisions,
    exact,
    placed,
    precision,
    recall,
    refused,
    refuses,
    yes_or_no,
)
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import of_credits, of_sums, shares
from diptych.benchmarks.statistics import mean
from diptych.core.capabilities import Image, Model, Unanswered
from diptych.core.sample import IMAGE, Turn
from diptych.data.scenes.instruct.source import Item, how_written, instructions_in
from diptych.data.source import Source

CONDITIONS = ("correct", "blind", "shuffled")
PREFIX = {"correct": "", "blind": "blind_", "shuffled": "shuffled_"}


@dataclass(frozen=True)
class InstructionTask:
    """Base class of the tasks. n: questions, an even number. boxes: how the model writes boxes, as an option of the data."""

    kind: ClassVar[str] = ""
    score: ClassVar[Score] = staticmethod(exact)
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "twins")
    name: str = ""
    needs: tuple[str, ...] = ("prompt", "generate")
    n: int = 200
    max_tokens: int = 40
    batch: int = 64

    def items(self, source: Source) -> Items:
        """The questions. Raises NotApplicable for data without scenes."""
        found = instructions_in(source)
        if found is None:
            raise NotApplicable("needs scenes of single pictures, such as --data instruct:scenes:small")
        return Items(found.asked(self.kind, self.n))

    def run(self, model: Model, items: list[Item], records: Records, progress: Progress | None = None) -> None:
        """One record per question, with the answers under every condition. Raises NotApplicable for questions about several
        pictures, or that refer to earlier ones, if the model does not converse.
        """
        plain = all(len(item.images) == 1 and not item.exchange.before for item in items)
        if not plain and not hasattr(model, "converse"):
            raise NotApplicable("needs a model that converses, since it asks about several pictures or about earlier answers")
        blind: dict[Any, Any] = {}
        batch = batch_for(model, self.batch)
        for start in range(0, len(items), batch):
            some = [item for item in items[start : start + batch] if item.id not in records]
            if not some:
                continue
            answers = {"correct": self._answers(model, [i.images for i in some], some, plain)}
            answers["shuffled"] = self._answers(model, [i.wrong for i in some], some, plain)
            new = {_asked(i): i for i in some if _asked(i) not in blind}
            grey = [[blank(image) for image in i.images] for i in new.values()]
            blind |= dict(zip(new, self._answers(model, grey, list(new.values()), plain), strict=True))
            answers["blind"] = [blind[_asked(i)] for i in some]
            records.add(self._record(item, {c: given[k] for c, given in answers.items()}) for k, item in enumerate(some))
            if progress:
                progress(f"{self.name} {start + len(some)}/{len(items)}")

    def _answers(self, model: Any, images: list[list[Image]], items: Sequence[Item], plain: bool) -> list[Any]:
        if not items:
            return []
        if plain:
            return list(model.generate([shown[0] for shown in images], [i.exchange.question for i in items], self.max_tokens))
        turns = [turns_to(item) for item in items]
        if hasattr(model, "converse_many"):
            return list(model.converse_many(images, turns, self.max_tokens))
        return [model.converse(shown, asked, self.max_tokens) for shown, asked in zip(images, turns, strict=True)]

    def _record(self, item: Item, answers: dict[str, Any]) -> Record:
        e = item.exchange
        texts = {f"{PREFIX[c]}answer": None if isinstance(text, Unanswered) else text for c, text in answers.items()}
        record: Record = {
            "item": item.id,
            "cluster": item.pair,
            "slices": {"skill": e.skill},
            "question": e.question,
            "answers": [e.answer],
        }
        if e.before:
            record["before"] = [list(pair) for pair in e.before]
        return self.with_credits(record | {"truth": self.truth(item)} | texts | failures(answers))

    def truth(self, item: Item) -> dict[str, Any]:
        """What the scores need beyond the right answer."""
        return dict(item.exchange.truth)

    # --- from records alone ---

    def scored(self, record: Record, text: str | None) -> dict[str, float]:
        """The credits of an answer; a model without an answer earns nothing."""
        return type(self).score("" if text is None else text, record["answers"][0], record["truth"])

    def with_credits(self, record: Record) -> Record:
        """The record with the credits of its answers."""
        credits = {c: self.scored(record, record[f"{PREFIX[c]}answer"]) for c in CONDITIONS}
        if self.kind == "yes-no":
            credits["chance"] = {"accuracy": 0.5}
        elif self.kind == "which":
            credits["chance"] = {"accuracy": 1 / record["truth"]["of"]}
        return record | credits

    def summarise(self, records: list[Record]) -> list[Result]:
        """Accuracy by skill and the kind's other scores, each with the controls; how many pairs of twins are both right."""
        records = by_item(self.with_credits(r) for r in records)
        if not records:
            return []
        return [*shares(self.name, records), self.twins(records), *self.more_results(records)]

    def twins(self, records: list[Record]) -> Result:
        """How often both of two twins are answered rightly, one credit for each pair."""
        pairs: dict[str, list[Record]] = {}
        for r in records:
            pairs.setdefault(r["cluster"], []).append(r)
        whole = {name: both for name, both in pairs.items() if len(both) == 2}
        both = {c: [float(all(r[c]["accuracy"] == 1 for r in pair)) for pair in whole.values()] for c in CONDITIONS}
        controls = {c: mean(both[c]) for c in ("blind", "shuffled")}
        return of_credits(self.name, "twins", both["correct"], list(whole), controls=controls)

    def more_results(self, records: list[Record]) -> list[Result]:
        """The kind's own results."""
        return []

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        """{metric: {item: credit}}: what a paired test compares."""
        found: dict[str, dict[str, float]] = {}
        for r in map(self.with_credits, records):
            for metric, credit in r["correct"].items():
                found.setdefault(metric, {})[r["item"]] = credit
        return found

    def decided(self, records: list[Record], says: Any, wanted: str) -> list[Result]:
        """Precision and recall of what an answer decides. says: whether a text does so; wanted: the fact by which it should."""
        want = [bool(r["truth"][wanted]) for r in records]
        rows = {c: decisions([says(r[f"{PREFIX[c]}answer"] or "") for r in records], want) for c in CONDITIONS}
        clusters = [r["cluster"] for r in records]
        results = []
        for name, function in (("precision", precision), ("recall", recall)):
            controls = {c: float(function(rows[c].sum(0))) for c in ("blind", "shuffled")}
            results.append(of_sums(self.name, name, rows["correct"], function, clusters, controls=controls))
        return results


def _asked(item: Item) -> Any:
    e = item.exchange
    return e.question, e.before, tuple(np.shape(image) for image in item.images)


def turns_to(item: Item) -> list[Turn]:
    """The conversation up to the question; earlier questions have their right answers."""
    e = item.exchange
    pairs = [Turn(role, text) for pair in e.before for role, text in zip(("user", "assistant"), pair, strict=True)]
    turns = [*pairs, Turn("user", e.question)]
    return [Turn("user", f"{IMAGE * len(item.images)}\n{turns[0].text}"), *turns[1:]]


@dataclass(frozen=True)
class YesNoInstructions(InstructionTask):
    """Yes/no questions of which each has the answer yes as often as no."""

    kind: ClassVar[str] = "yes-no"
    score: ClassVar[Score] = staticmethod(yes_or_no)
    name: str = "instruct-yes-no"
    max_tokens: int = 8


@dataclass(frozen=True)
class CountInstructions(InstructionTask):
    """Counting, with the summands as reasons."""

    kind: ClassVar[str] = "count"
    score: ClassVar[Score] = staticmethod(counted)
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "reason", "sum", "twins")
    name: str = "instruct-count"


@dataclass(frozen=True)
class RefuseInstructions(InstructionTask):
    """Questions about things half of which are absent. precision, recall: of the answer that there is none."""

    kind: ClassVar[str] = "refuse"
    score: ClassVar[Score] = staticmethod(refused)
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "answered", "twins", "precision", "recall")
    name: str = "instruct-refuse"

    def more_results(self, records: list[Record]) -> list[Result]:
        """Precision and recall of refusals."""
        return self.decided(records, refuses, "absent")


@dataclass(frozen=True)
class CorrectInstructions(InstructionTask):
    """Statements, half of them wrong, and a question. precision, recall: of saying that the statement is wrong."""

    kind: ClassVar[str] = "correct"
    score: ClassVar[Score] = staticmethod(corrected)
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "final", "fact", "twins", "precision", "recall")
    name: str = "instruct-correct"

    def more_results(self, records: list[Record]) -> list[Result]:
        """Precision and recall of corrections."""
        return self.decided(records, corrects, "false")


@dataclass(frozen=True)
class BoxInstructions(InstructionTask):
    """Where something is, as a box. boxes: how the model writes them, as the option of ``instruct:``."""

    kind: ClassVar[str] = "box"
    score: ClassVar[Score] = staticmethod(boxed)
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "iou", "name", "twins")
    name: str = "instruct-box"
    boxes: str = "xyxy/100"

    def items(self, source: Source) -> Items:
        """The questions. Raises DiptychError for an unknown convention."""
        how_written(self.boxes, f"{self.name}: boxes")
        return super().items(source)

    def truth(self, item: Item) -> dict[str, Any]:
        """The box and the name, the picture's height and width, and how the model writes boxes."""
        return {**item.exchange.truth, "size": list(item.images[0].shape[:2]), "boxes": self.boxes}


@dataclass(frozen=True)
class FollowInstructions(InstructionTask):
    """Questions that refer to earlier answers, which the model gets as they should be."""

    kind: ClassVar[str] = "follow"
    name: str = "instruct-follow"


@dataclass(frozen=True)
class WhichInstructions(InstructionTask):
    """Which of several pictures a description is true of."""

    kind: ClassVar[str] = "which"
    score: ClassVar[Score] = staticmethod(placed)
    name: str = "instruct-which"


@dataclass(frozen=True)
class DiffersInstructions(InstructionTask):
    """What differs between two pictures."""

    kind: ClassVar[str] = "differs"
    name: str = "instruct-differs"


INSTRUCTIONS: dict[str, type] = {
    made.name: made
    for made in (
        YesNoInstructions,
        CountInstructions,
        RefuseInstructions,
        CorrectInstructions,
        BoxInstructions,
        FollowInstructions,
        WhichInstructions,
        DiffersInstructions,
    )
}
