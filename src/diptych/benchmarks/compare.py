"""Paired tests of every metric of the same items: of two files of records, and of the runs of several recipes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from diptych.benchmarks.inputs import read_rows
from diptych.benchmarks.records import write_json
from diptych.benchmarks.results import credits
from diptych.benchmarks.statistics import holm, mean, paired_test
from diptych.benchmarks.tables import CHECKS, Table, match
from diptych.benchmarks.tasks import TASKS
from diptych.core.errors import DiptychError, counted, nearest
from diptych.core.files import read_jsonl


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


def compare_runs(folders: Sequence[Path], out: Path | None = None) -> list[dict[str, Any]]:
    """Paired tests between recipes on the items they share: the rows of ``tests.json`` (written to ``out`` if given).

    ``folders``: ``…/<recipe>-s<seed>/evaluation``; credits are averaged over the seeds of a recipe.
    Holm's correction runs over all pairs of recipes within one metric of one task.
    """
    seeds: dict[str, list[Path]] = {}
    for folder in folders:
        run = Path(folder).parent if Path(folder).name == "evaluation" else Path(folder)
        seeds.setdefault(re.sub(r"-s\d+$", "", run.name), []).append(folder)
    credits_of = {name: _credits_of(paths) for name, paths in seeds.items()}
    metrics = sorted({key for by_metric in credits_of.values() for key in by_metric})
    rows: list[dict[str, Any]] = []
    for key in metrics:
        family = []
        for a, b in combinations([name for name in credits_of if key in credits_of[name]], 2):
            of_a, of_b = credits_of[a][key], credits_of[b][key]
            shared = sorted(set(of_a) & set(of_b))
            if not shared:
                continue
            test = paired_test([of_a[i][0] for i in shared], [of_b[i][0] for i in shared], [of_a[i][1] for i in shared])
            family.append({"task": key[0], "metric": key[1], "a": a, "b": b, **asdict(test)})
        for row, corrected in zip(family, holm([row["p"] for row in family]), strict=True):
            rows.append({**row, "p_holm": corrected})
    if out is not None:
        write_json(out, rows)
    return rows


def _credits_of(folders: Sequence[Path]) -> dict[tuple[str, str], dict[str, tuple[float, str]]]:
    """{(task, metric): {item: (credit averaged over the folders, cluster)}}"""
    gathered: dict[tuple[str, str], dict[str, tuple[list[float], str]]] = {}
    for folder in folders:
        for path in sorted((Path(folder) / "records").glob("*.jsonl")):
            records = read_jsonl(path)
            cluster = {r["item"]: str(r["cluster"]) for r in records}
            own = getattr(TASKS.get(path.stem), "credits", None)
            by_metric = own(TASKS[path.stem](), records) if own else credits(records)
            for metric, by_item in by_metric.items():
                for item, credit in by_item.items():
                    values, _ = gathered.setdefault((path.stem, metric), {}).setdefault(item, ([], cluster[item]))
                    values.append(credit)
    return {k: {i: (sum(v) / len(v), c) for i, (v, c) in items.items()} for k, items in gathered.items()}
