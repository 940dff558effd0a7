"""Two files of records of the same items: a paired test of every metric that both have."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diptych.benchmarks.inputs import CHECKS, Table, match, read_rows
from diptych.benchmarks.statistics import holm, mean, paired_test
from diptych.core.errors import DiptychError, nearest


@dataclass(frozen=True)
class Row:
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
    credits, clusters = zip(*(_read(t, i) for t, i in zip(tables, ids, strict=True)), strict=True)
    for i, each in enumerate(ids[1]):
        if clusters[0][each] != clusters[1][each]:
            raise DiptychError(
                f"{tables[1].where(i)}: item '{each}' is of '{clusters[1][each]}' here and of '{clusters[0][each]}' in {first}"
            )
    shared = [name for name in credits[0] if name in credits[1]]
    if metric is not None and metric not in shared:
        raise DiptychError(f"both files must have the metric '{metric}'{nearest(metric, shared)}")
    rows: list[dict[str, Any]] = []
    for name in shared if metric is None else [metric]:
        a, b = credits[0][name], credits[1][name]
        if set(a) != set(b):
            some = sorted(set(a) ^ set(b))
            raise DiptychError(f"{second}: '{name}' of {len(some)} items is in one file only, the first '{some[0]}'")
        items = sorted(a)
        of = [clusters[0][i] for i in items]
        values = [[c[i] for i in items] for c in (a, b)]
        test = paired_test(values[0], values[1], of)
        rows.append(
            {"metric": name, "a": mean(values[0]), "b": mean(values[1]), **asdict(test), "n": len(items), "clusters": len(set(of))}
        )
    if not rows:
        raise DiptychError(f"{first} and {second} have no metric in common; expected 'correct' in every row")
    return [Row(**row, p_holm=p) for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True)]


def _read(table: Table, ids: list[str]) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """{metric: {item: credit}}, {item: cluster}"""
    clusters = table.column("cluster", "id", aliases=("image", "image_id"), default=None)
    found: dict[str, dict[str, float]] = {}
    rows = table.column("correct", "any", aliases=("credit",))
    for i, (each, value) in enumerate(zip(ids, rows, strict=True)):
        for name, credit in (value if isinstance(value, dict) else {"correct": value}).items():
            try:
                found.setdefault(str(name), {})[each] = CHECKS["credit"](credit)
            except ValueError:
                raise DiptychError(
                    f"{table.where(i)}: 'correct' must be a number or an object of numbers, got {value!r:.60}"
                ) from None
    return found, {each: each if c is None else c for each, c in zip(ids, clusters, strict=True)}
