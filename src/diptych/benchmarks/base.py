"""The interface of a task: items from a data source, one record per item from a model, results computed from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from diptych.benchmarks.records import Record, Records, Result
from diptych.core.capabilities import Image, Model, Unanswered
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.source import BrokenItem, Problem, Source

Progress = Callable[[str], None]  # called with a task's name, and for a slow one with "captions 32/64"


class NotApplicable(Exception):  # noqa: N818 - an outcome, not a failure: the source does not offer what the task needs
    """Raised by ``Task.items`` and ``Task.run``; its message is the reason that the summary gives for a skipped task."""


class Items(list[Any]):
    """The items of a task. ``problems``: what could not be used. ``examples``: shown before each item (``shots``)."""

    def __init__(self, items: Iterable[Any] = (), problems: Iterable[Problem] = ()):
        super().__init__(items)
        self.problems = list(problems)
        self.examples: list[Any] = []


@runtime_checkable
class Task(Protocol):
    """A frozen dataclass: its fields are the settings, and a change of any makes earlier records unusable."""

    @property
    def name(self) -> str:
        """The name of the task in results and of its file in ``records/``."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Capabilities that the model must have; ``"generate|score"``: one of the two."""
        ...

    def items(self, source: Source) -> list[Any]:
        """What the model is evaluated on. Raises ``NotApplicable`` if the source has no such items."""
        ...

    def run(self, model: Model, items: list[Any], records: Records, progress: Progress | None = None) -> None:
        """Add one record per item, except for items that ``records`` already holds."""
        ...

    def summarise(self, records: list[Record]) -> list[Result]:
        """The results, from the records alone."""
        ...


def readable(source: Source, problems: list[Problem], indices: Iterable[int] | None = None) -> Iterator[Sample]:
    """Samples in their order, all or those at ``indices``; those that cannot be read are appended to ``problems``."""
    for index in range(len(source)) if indices is None else indices:
        try:
            sample = source[index]
        except BrokenItem as broken:
            problems.append(broken.problem)
        else:
            yield sample


def retrieval_items(source: Source, n: int) -> Items:
    """The source's own choice of n samples with distinct captions, else its first n samples with image and caption."""
    if hasattr(source, "retrieval"):
        try:
            return Items(source.retrieval(n))
        except DiptychError as error:
            raise NotApplicable(str(error)) from error
    samples: list[Sample] = []
    problems: list[Problem] = []
    for sample in readable(source, problems):
        if sample.image is None or not sample.captions:
            problems.append(Problem(sample.id, "has no image" if sample.image is None else "has no caption"))
        else:
            samples.append(sample)
        if len(samples) == n:
            break
    return Items(samples, problems)


def at_least_two(items: Items) -> Items:
    """The items. Raises NotApplicable if there are fewer than two."""
    if len(items) < 2:
        raise NotApplicable(f"needs two usable items, the source has {len(items)}")
    return items


def images_of(items: Sequence[Sample]) -> list[Image]:
    """The images of the samples that have one."""
    return [item.image for item in items if item.image is not None]


def batch_for(model: Model, batch: int) -> int:
    """How many items to ask at once: fewer of a model behind a server, so that its answers are recorded soon."""
    return min(batch, getattr(model, "at_once", 0) or batch)


def failures(answers: Mapping[str, Any]) -> Record:
    """``{"failed": {name: reason}}`` of the answers that a model could not give; empty if it gave all."""
    reasons = {name: answer.reason for name, answer in answers.items() if isinstance(answer, Unanswered)}
    return {"failed": reasons} if reasons else {}


def failed_items(records: Iterable[Record]) -> list[Problem]:
    """The items for which the model could not give an answer, with the reasons."""
    return [Problem(str(r["item"]), "; ".join(f"{k}: {v}" for k, v in r["failed"].items())) for r in records if r.get("failed")]


def count_not_finite(scores: np.ndarray) -> int:
    """How many scores are NaN or infinite."""
    return int((~np.isfinite(scores)).sum())


def by_item(records: Iterable[Record]) -> list[Record]:
    """The records sorted by item, so that results do not depend on their order."""
    return sorted(records, key=lambda r: str(r["item"]))
