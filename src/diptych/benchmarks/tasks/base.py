"""What a task is: items from a source, one record an item from a model, results from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import mean, mean_interval
from diptych.core.capabilities import Image, Model
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.source import BrokenItem, Problem, Source

Progress = Callable[[str], None]  # told what is being done: a task's name, for a slow one "captions 32/64"
CONTROLS = ("blind", "shuffled", "shortest", "longest")
MOST_SLICES = 60


class NotApplicable(Exception):  # noqa: N818 - an outcome, not a failure: the source does not offer what the task needs
    """Raised by ``Task.items`` with the reason."""


class Items(list[Any]):
    """The items of a task, and what of the source could not be used for it."""

    def __init__(self, items: Iterable[Any] = (), problems: Iterable[Problem] = ()):
        super().__init__(items)
        self.problems = list(problems)
        self.examples: list[Any] = []  # shown before each of them


@runtime_checkable
class Task(Protocol):
    """A frozen dataclass: its fields are the settings, and a change of any starts the records anew."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Capabilities the model must have; ``"generate|score"``: one of the two."""
        ...

    def items(self, source: Source) -> list[Any]:
        """What the model is asked about; ``NotApplicable`` if the source has nothing of the kind."""
        ...

    def run(self, model: Model, items: list[Any], records: Records, progress: Progress | None = None) -> None:
        """Add one record an item, skipping those that are there."""
        ...

    def summarise(self, records: list[Record]) -> list[Result]: ...


def readable(source: Source, problems: list[Problem], most: int | None = None) -> Iterator[Sample]:
    """The first ``most`` samples in their order; ``problems`` gets those that cannot be read."""
    for index in range(len(source) if most is None else min(len(source), most)):
        try:
            sample = source[index]
        except BrokenItem as broken:
            problems.append(broken.problem)
        else:
            yield sample


def retrieval_items(source: Source, n: int) -> Items:
    """The source's own choice of n samples with distinct captions, else its first n that have image and caption."""
    if hasattr(source, "retrieval"):
        try:
            return Items(source.retrieval(n))
        except DiptychError as error:
            raise NotApplicable(str(error)) from error
    found: list[Sample] = []
    problems: list[Problem] = []
    for sample in readable(source, problems):
        if sample.image is None or not sample.captions:
            problems.append(Problem(sample.id, "has no image" if sample.image is None else "has no caption"))
        else:
            found.append(sample)
        if len(found) == n:
            break
    return Items(found, problems)


def at_least_two(items: Items) -> Items:
    if len(items) < 2:
        raise NotApplicable(f"needs two usable items, the source has {len(items)}")
    return items


def images_of(items: Sequence[Sample]) -> list[Image]:
    return [item.image for item in items if item.image is not None]


def not_finite(scores: np.ndarray) -> int:
    return int((~np.isfinite(scores)).sum())


def share(task: str, metric: str, records: Sequence[Record], *, chance: float | None = None) -> Result:
    """The mean of the records' credits of one metric, with its interval, chance and controls."""
    rows = [r for r in records if metric in r.get("correct", {})]
    clusters = [r["cluster"] for r in rows]
    interval = mean_interval([r["correct"][metric] for r in rows], clusters)
    if chance is None and all(metric in r.get("chance", {}) for r in rows):
        chance = mean([r["chance"][metric] for r in rows])
    return Result(
        task=task,
        metric=metric,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=len(rows),
        clusters=len(set(clusters)),
        chance=chance,
        controls={c: mean([r[c][metric] for r in rows]) for c in CONTROLS if all(metric in (r.get(c) or {}) for r in rows)},
        ties=sum(r.get("ties", {}).get(metric, 0) for r in rows),
        nans=sum(r.get("nans", 0) for r in rows),
        by=next((r["by"] for r in rows if "by" in r), ""),
        unparsed=(lost := sum(bool(r.get("unparsed")) for r in rows)),
        band=(interval.value, mean([1.0 if r.get("unparsed") else r["correct"][metric] for r in rows])) if lost else None,
        slices=slices_of(rows, metric),
    )


def slices_of(records: Sequence[Record], metric: str) -> list[dict[str, Any]]:
    """The same mean over every part that the records name under ``slices``, the largest first."""
    parts: dict[str, list[Record]] = {}
    for r in records:
        for name, value in (r.get("slices") or {}).items():
            parts.setdefault(f"{name}={value}", []).append(r)
    found = []
    for name, rows in sorted(parts.items(), key=lambda part: (-len(part[1]), part[0]))[:MOST_SLICES]:
        clusters = [r["cluster"] for r in rows]
        at = mean_interval([r["correct"][metric] for r in rows], clusters)
        counted = {"n": len(rows), "clusters": len(set(clusters))}
        found.append({"slice": name, "value": at.value, "low": at.low, "high": at.high, **counted})
    return found if len(found) > 1 else []


def shares(task: str, records: Sequence[Record]) -> list[Result]:
    """``share`` for every metric that occurs, in the order of their first occurrence."""
    metrics = dict.fromkeys(m for r in records for m in r.get("correct", {}))
    return [share(task, m, records) for m in metrics]


def credits(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """{metric: {item: credit}}: what a paired test compares."""
    found: dict[str, dict[str, float]] = {}
    for r in records:
        for metric, credit in r.get("correct", {}).items():
            found.setdefault(metric, {})[r["item"]] = credit
    return found
