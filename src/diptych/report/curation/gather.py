"""Collects in one pass over the decisions what the page shows, in bounded memory."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from diptych.curation.explain import Result
from diptych.curation.operators.base import uniform
from diptych.curation.plan import Step

DRAWN = 50_000  # rows of a histogram: a sample, if there are more
EXAMPLES, KEPT_EXAMPLES = 7, 14
NEAR = 3  # rows on each side of a threshold
GROUP = 5  # rows of a duplicate group that are shown, besides the one that was kept
GROUPS = 6  # of each pointer: the largest


@dataclass
class Rows:
    """The n rows with the lowest rank."""

    n: int
    heap: list[tuple[float, int, dict[str, Any]]] = field(default_factory=list)

    def offer(self, rank: float, row: dict[str, Any]) -> None:
        """Adds a row if its rank is low enough."""
        item = (-rank, -row["row"], row)
        if len(self.heap) < self.n:
            heapq.heappush(self.heap, item)
        elif item[:2] > self.heap[0][:2]:
            heapq.heapreplace(self.heap, item)

    def accepts(self, rank: float) -> bool:
        """Whether a row of this rank would be added."""
        return len(self.heap) < self.n or -rank > self.heap[0][0]

    def rows(self) -> list[dict[str, Any]]:
        """The rows by rank."""
        return [row for *_, row in sorted(self.heap, key=lambda item: (-item[0], -item[1]))]


@dataclass
class Values:
    """A numeric column of a rule: a sample of its values, and whether each row was kept in the end."""

    step: Step
    threshold: list[float]
    values: list[np.ndarray] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)
    stays: Rows = field(default_factory=lambda: Rows(NEAR))
    goes: Rows = field(default_factory=lambda: Rows(NEAR))


@dataclass
class Gathered:
    """Counts, samples and examples of a result."""

    first: Counter[str] = field(default_factory=Counter)  # removed by this reason first
    alone: Counter[str] = field(default_factory=Counter)  # removed by this reason, regardless of others
    only: Counter[str] = field(default_factory=Counter)  # removed by no other reason
    values: list[Values] = field(default_factory=list)
    examples: dict[str, Rows] = field(default_factory=dict)  # by reason; "": kept
    groups: dict[str, dict[int, list[int]]] = field(default_factory=dict)  # pointer column → kept row → rows that point at it
    sizes: dict[str, Counter[int]] = field(default_factory=dict)
    before: dict[str, Counter[str]] = field(default_factory=dict)  # words of a column of texts: counts over all rows
    after: dict[str, Counter[str]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)


def gather(result: Result) -> Gathered:
    """The counts, samples and examples of a result."""
    gathered = Gathered(values=_values(result))
    share = min(1.0, DRAWN / max(1, result.manifest["rows"]))
    pointers = [s.rule.column for s in result.steps if s.rule and s.rule.way == "unique" and s.rule.column]
    texts = _text_columns(result)
    for number in result.numbers:
        table = result.part(number)
        kept = np.asarray(table["kept"].to_numpy(), dtype=bool)
        _reasons(table, gathered)
        drawn = uniform(table["row"].to_numpy().astype(np.uint64), "histogram") < share
        for values in gathered.values:
            _numbers(table, values, kept, drawn)
        _examples(table, gathered)
        for column in pointers:
            _groups(table, column, gathered)
        for column in texts:
            flat, parents = _flat(table[column].combine_chunks())
            gathered.before.setdefault(column, Counter()).update(flat)
            gathered.after.setdefault(column, Counter()).update(v for v, i in zip(flat, parents, strict=True) if kept[i])
        for errors in table["errors"].to_pylist():
            gathered.errors.update(errors or [])
    return gathered


def _values(result: Result) -> list[Values]:
    """The columns with a threshold. Two range rules on one column give two thresholds in one figure."""
    by_column: dict[str, Values] = {}
    for step in result.steps:
        if not step.rule or step.rule.way not in ("range", "top", "bottom") or not step.rule.column:
            continue
        rule = step.rule
        if rule.way == "range":
            limits = [v for v in (rule.min, rule.above, rule.max, rule.below) if v is not None]
        else:
            threshold = rule.threshold(result.state(step))
            limits = [threshold] if threshold is not None else []
        name = rule.column
        assert name
        if name in by_column:
            by_column[name].threshold += limits
        else:
            by_column[name] = Values(step, limits)
    return list(by_column.values())


def _text_columns(result: Result) -> list[str]:
    columns = [(name, kind) for step in result.steps for name, kind in step.outputs.items()]
    return [
        name
        for name, kind in columns
        if pa.types.is_string(kind) or (pa.types.is_list(kind) and pa.types.is_string(kind.value_type))
    ]


def _flat(column: pa.Array) -> tuple[list[str], list[int]]:
    """The non-null values, and the row of each."""
    if not pa.types.is_list(column.type):
        present = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        return column.drop_null().to_pylist(), present.tolist()
    import pyarrow.compute as pc

    return column.flatten().to_pylist(), pc.list_parent_indices(column).to_pylist()


def _reasons(table: pa.Table, gathered: Gathered) -> None:
    for first, every in zip(table["reason"].to_pylist(), table["reasons"].to_pylist(), strict=True):
        if first:
            gathered.first[first] += 1
            gathered.alone.update(every)
            if len(every) == 1:
                gathered.only[first] += 1


def _numbers(table: pa.Table, values: Values, kept: np.ndarray, drawn: np.ndarray) -> None:
    assert values.step.rule
    column = values.step.rule.column
    numbers = np.asarray(table[column].combine_chunks().cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    there = np.isfinite(numbers)
    values.values.append(numbers[there & drawn])
    values.kept.append(kept[there & drawn])
    if not values.threshold:
        return
    distance = np.min([np.abs(numbers - t) for t in values.threshold], axis=0)
    label = values.step.label
    for i in np.argsort(np.where(there, distance, np.inf), kind="stable")[: 20 * NEAR]:
        if not there[i]:
            break
        row = _row(table, int(i))
        removed = label in row["reasons"]
        if removed or row["kept"]:
            (values.goes if removed else values.stays).offer(float(distance[i]), {**row, "value": numbers[i]})


def _examples(table: pa.Table, gathered: Gathered) -> None:
    rank = uniform(table["row"].to_numpy().astype(np.uint64), "examples")
    reasons = table["reason"].to_pylist()
    for i in np.argsort(rank, kind="stable"):
        reason = reasons[i] or ""
        rows = gathered.examples.setdefault(reason, Rows(KEPT_EXAMPLES if reason == "" else EXAMPLES))
        if rows.accepts(float(rank[i])):
            rows.offer(float(rank[i]), _row(table, int(i)))


def _groups(table: pa.Table, column: str, gathered: Gathered) -> None:
    groups = gathered.groups.setdefault(column, {})
    sizes = gathered.sizes.setdefault(column, Counter())
    pointing = table.filter(table[column].is_valid())
    for row, target in zip(pointing["row"].to_pylist(), pointing[column].to_pylist(), strict=True):
        sizes[target] += 1
        members = groups.setdefault(target, [])
        if len(members) < GROUP:
            members.append(row)


def _row(table: pa.Table, i: int) -> dict[str, Any]:
    row = {name: table[name][i].as_py() for name in table.schema.names}
    row["reasons"] = row["reasons"] or []
    return row


def largest(sizes: Counter[int]) -> Iterator[tuple[int, int]]:
    """(kept row, number of rows that point to it) of the largest groups."""
    yield from heapq.nsmallest(GROUPS, sizes.items(), key=lambda pair: (-pair[1], pair[0]))
