"""Paired tests of every metric of the same items in two files of records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diptych.benchmarks.inputs import read_rows
from diptych.benchmarks.statistics import holm, mean, paired_test
from diptych.benchmarks.tables import CHECKS, Table, match
from diptych.core.errors import DiptychError, counted, nearest


@dataclass(frozen=True)
class Row:
    """One comparison of two models on one metric."""

    metric: str
    a: float
    b: float
    difference: float  # a − b
    low: float
    high: float
    p: float
    p_holm: float  # over the metrics of this comparison
    n: int
    clusters: int


def compare_records(first: Path, second: Path, metric: str | None = None) -> list[Row]:
    """Rows of ``item`` (or id) and ``correct``: a credit in [0, 1], or {metric: credit} as `diptych evaluate` writes them.

    Every item must be in both files, and of the same ``cluster`` (or image).
    """
    tables = [read_rows(p) for p in (first, second)]
    ids = [t.unique("item", aliases=("id", "question_id")) for t in tables]
    match(ids[1], ids[0], tables[1], tables[0])
    values, clusters = zip(*(_read(t, i) for t, i in zip(tables, ids, strict=True)), strict=True)
    for i, item in enumerate(ids[1]):
        if clusters[0][item] != clusters[1][item]:
            raise DiptychError(
                f"{tables[1].where(i)}: item '{item}' is of '{clusters[1][item]}' here and of '{clusters[0][item]}' in {first}"
            )
    shared = [name for name in values[0] if name in values[1]]
    if metric is not None and metric not in shared:
        raise DiptychError(f"both files must have the metric '{metric}'{nearest(metric, shared)}")
    rows: list[dict[str, Any]] = []
    for name in shared if metric is None else [metric]:
        a, b = values[0][name], values[1][name]
        if set(a) != set(b):
            some = sorted(set(a) ^ set(b))
            raise DiptychError(f"{second}: '{name}' of {counted(len(some), 'item')} is in one file only, the first '{some[0]}'")
        items = sorted(a)
        of, first_credits, second_credits = [clusters[0][i] for i in items], [a[i] for i in items], [b[i] for i in items]
        test = asdict(paired_test(first_credits, second_credits, of))
        counts = {"n": len(items), "clusters": len(set(of))}
        rows.append({"metric": name, "a": mean(first_credits), "b": mean(second_credits), **test, **counts})
    if not rows:
        raise DiptychError(f"{first} and {second} have no metric in common; expected 'correct' in every row")
    return [Row(**row, p_holm=p) for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True)]


def _read(table: Table, ids: list[str]) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """{metric: {item: credit}}, {item: cluster}"""
    clusters = table.column("cluster", "id", aliases=("image", "image_id"), default=None)
    values: dict[str, dict[str, float]] = {}
    rows = table.column("correct", "any", aliases=("credit",))
    for i, (item, value) in enumerate(zip(ids, rows, strict=True)):
        for name, credit in (value if isinstance(value, dict) else {"correct": value}).items():
            try:
                values.setdefault(str(name), {})[item] = CHECKS["credit"](credit)
            except ValueError:
                raise DiptychError(
                    f"{table.where(i)}: 'correct' must be a number or an object of numbers, got {value!r:.60}"
                ) from None
    return values, {item: item if c is None else c for item, c in zip(ids, clusters, strict=True)}
