"""What all protocols share: a result with its interval, from credits or from sums, and the slices of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from diptych.benchmarks.inputs import Table
from diptych.benchmarks.records import Result
from diptych.benchmarks.statistics import mean_interval, sums_interval

# Columns by which a score is also shown in parts, if a file has them.
SLICE_NAMES = ("category", "l2-category", "split", "type", "relation", "attribute", "tag", "answer_type", "question_type")


def distinct(clusters: Sequence[Hashable]) -> int:
    return len(set(map(str, clusters)))


def of_credits(
    task: str,
    metric: str,
    credits: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    bounded: bool = True,
    **beside: Any,
) -> Result:
    """The mean of credits [n] (``bounded``: in [0, 1]) with its interval; ``beside``: further fields of the result."""
    at = mean_interval(credits, clusters, share=bounded)
    return Result(task, metric, at.value, at.low, at.high, len(credits), distinct(clusters), **beside)


def of_sums(
    task: str,
    metric: str,
    items: np.ndarray,
    function: Callable[[np.ndarray], np.ndarray],
    clusters: Sequence[Hashable],
    *,
    bounded: bool = True,
    **beside: Any,
) -> Result:
    """A metric of the column sums of items [n, K], with its interval."""
    at = sums_interval(items, function, clusters, share=bounded)
    return Result(task, metric, at.value, at.low, at.high, len(items), distinct(clusters), **beside)


def slices(names: Mapping[str, Sequence[Any]], judge: Callable[[np.ndarray], Result]) -> list[dict[str, Any]]:
    """{"slice": "category=count", "value", …} of every value of every named column that has several; ``judge`` takes the indices of the items."""
    found = []
    for name, values in names.items():
        array = np.array([str(v) for v in values])
        parts = sorted(set(array.tolist()))
        for value in parts if len(parts) > 1 else ():
            at = asdict(judge(np.flatnonzero(array == value)))
            found.append({"slice": f"{name}={value}", **{k: at[k] for k in ("value", "low", "high", "n", "clusters")}})
    return found


def named_columns(table: Table) -> dict[str, list[Any]]:
    """{column: values} of the columns to slice by."""
    return {name: table.column(name) for name in SLICE_NAMES if table.has(name)}


def chosen(values: Sequence[Any], index: np.ndarray) -> list[Any]:
    return [values[i] for i in index]
