"""Results with their 95 % intervals, from credits or from sums: both ``diptych evaluate`` and ``diptych metrics`` make them
here."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.statistics import mean, mean_interval, sums_interval

CONTROLS = ("blind", "shuffled", "shortest", "longest", "one_frame", "shuffled_frames", "reversed")  # the last ones of clips


def distinct(clusters: Sequence[Hashable]) -> int:
    """How many different clusters there are; 7 and "7" are the same one."""
    return len(set(map(str, clusters)))


def of_credits(
    task: str,
    metric: str,
    credits: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    bounded: bool = True,
    **fields: Any,
) -> Result:
    """The mean of credits [n] with its interval. ``bounded``: credits lie in [0, 1]. ``fields``: further fields of the result."""
    at = mean_interval(credits, clusters, share=bounded)
    return Result(task, metric, at.value, at.low, at.high, len(credits), distinct(clusters), **fields)


def of_sums(
    task: str,
    metric: str,
    items: np.ndarray,
    function: Callable[[np.ndarray], np.ndarray],
    clusters: Sequence[Hashable],
    *,
    bounded: bool = True,
    **fields: Any,
) -> Result:
    """A metric of the column sums of items [n, K] with its interval; the arguments as in ``statistics.sums_interval``."""
    at = sums_interval(items, function, clusters, share=bounded)
    return Result(task, metric, at.value, at.low, at.high, len(items), distinct(clusters), **fields)


def slices(columns: Mapping[str, Sequence[Any]], result_of: Callable[[np.ndarray], Result]) -> list[dict[str, Any]]:
    """One {"slice": "category=count", "value", "low", "high", "n", "clusters"} for each value of each column, the largest first.

    ``columns``: a value of each item; None: the item is in no slice of this column. A column with one value makes no slices.
    ``result_of``: the result of the items with these indices.
    """
    parts: list[tuple[str, np.ndarray]] = []
    for name, values in columns.items():
        known = np.array(["" if v is None else str(v) for v in values])
        missing = np.array([v is None for v in values], dtype=bool)
        names = np.unique(known[~missing]).tolist()
        parts += [(f"{name}={v}", np.flatnonzero((known == v) & ~missing)) for v in names if len(names) > 1]
    rows = []
    for name, index in sorted(parts, key=lambda part: (-len(part[1]), part[0])):
        r = result_of(index)
        rows.append({"slice": name, "value": r.value, "low": r.low, "high": r.high, "n": r.n, "clusters": r.clusters})
    return rows


def take(values: Sequence[Any], index: np.ndarray) -> list[Any]:
    """The values at these indices."""
    return [values[i] for i in index]


def credit_slices(
    credits: np.ndarray, clusters: Sequence[Hashable], columns: Mapping[str, Sequence[Any]], bounded: bool = True
) -> list[dict[str, Any]]:
    """``slices`` of a mean of credits [n]."""
    return slices(columns, lambda index: of_credits("", "", credits[index], take(clusters, index), bounded=bounded))


def share(task: str, metric: str, records: Sequence[Record], *, chance: float | None = None) -> Result:
    """The mean of the records' credits for one metric, with interval, chance, controls, ties, band and slices."""
    rows = [r for r in records if metric in r.get("correct", {})]
    credits, clusters = np.array([r["correct"][metric] for r in rows], dtype=np.float64), [r["cluster"] for r in rows]
    if chance is None and all(metric in r.get("chance", {}) for r in rows):
        chance = mean([r["chance"][metric] for r in rows])
    unparsed = np.array([bool(r.get("unparsed")) for r in rows], dtype=bool)
    columns = {
        name: [(r.get("slices") or {}).get(name) for r in rows]
        for name in dict.fromkeys(n for r in rows for n in r.get("slices") or ())
    }
    return of_credits(
        task,
        metric,
        credits,
        clusters,
        chance=chance,
        controls={c: mean([r[c][metric] for r in rows]) for c in CONTROLS if all(metric in (r.get(c) or {}) for r in rows)},
        ties=sum(r.get("ties", {}).get(metric, 0) for r in rows),
        nans=sum(r.get("nans", 0) for r in rows),
        by=next((r["by"] for r in rows if "by" in r), ""),
        unparsed=int(unparsed.sum()),
        band=(mean(credits), mean(np.where(unparsed, 1.0, credits))) if unparsed.any() else None,
        slices=credit_slices(credits, clusters, columns),
    )  # fmt: skip


def shares(task: str, records: Sequence[Record]) -> list[Result]:
    """``share`` of every metric, in the order in which the records first name them."""
    return [share(task, m, records) for m in dict.fromkeys(m for r in records for m in r.get("correct", {}))]


def credits(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """{metric: {item: credit}}: what a paired test compares."""
    by_metric: dict[str, dict[str, float]] = {}
    for r in records:
        for metric, credit in r.get("correct", {}).items():
            by_metric.setdefault(metric, {})[r["item"]] = credit
    return by_metric


def macro(
    task: str, metric: str, credits: np.ndarray, classes: Sequence[Any] | np.ndarray, clusters: Sequence[Hashable], **fields: Any
) -> Result:
    """The mean over classes of the mean credit of each, so that a rare class counts as much as a common one. Credits [n] in [0,
    1]."""
    which = np.unique(list(map(str, classes)), return_inverse=True)[1].ravel()
    return of_sums(task, metric, class_sums(credits, which), mean_of_classes, clusters, **fields)


def class_sums(credits: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Per item, in the columns of its class (int [n]): 1 and its credit; float [n, 2 · C]. Their column sums give the macro
    mean."""
    number = int(classes.max()) + 1 if len(classes) else 0
    sums = np.zeros((len(classes), 2, number))
    sums[np.arange(len(classes)), 0, classes] = 1
    sums[np.arange(len(classes)), 1, classes] = credits
    return sums.reshape(len(classes), 2 * number)


def mean_of_classes(sums: np.ndarray) -> np.ndarray:
    """The mean over the classes that occur, from sums [..., 2 · C] of ``class_sums``."""
    count, credit = np.moveaxis(sums.reshape(*sums.shape[:-1], 2, -1), -2, 0)
    means = np.divide(credit, count, out=np.zeros_like(credit, dtype=np.float64), where=count > 0)
    mean: np.ndarray = means.sum(-1) / np.maximum((count > 0).sum(-1), 1)
    return mean
