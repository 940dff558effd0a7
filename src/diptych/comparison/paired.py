"""What several recipes have achieved on the same items: paired tests between them, and intervals over items and seeds.

With three or more seeds of a recipe, items and seeds are crossed random effects (``benchmarks.crossed``): an interval says what
other items and other seeds would give. With fewer, whose spread is hardly known, it covers the items alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from diptych.benchmarks.crossed import Measured, estimate
from diptych.benchmarks.results import credits
from diptych.benchmarks.statistics import holm, mean, paired_test
from diptych.benchmarks.tasks import TASKS
from diptych.core.files import read_jsonl

Key = tuple[str, str]  # task, metric
SEEDS = 3  # the least number of seeds whose spread is taken into account
Credits = dict[Key, dict[str, tuple[float, str]]]  # of one run: {(task, metric): {item: (credit, cluster)}}
Runs = Mapping[str, Mapping[int, Credits]]  # {recipe: {seed: credits}}


def credits_of_run(evaluation: Path) -> Credits:
    """The credits of each item in the folder of an evaluation."""
    found: Credits = {}
    for path in sorted((Path(evaluation) / "records").glob("*.jsonl")):
        records = read_jsonl(path)
        cluster = {r["item"]: str(r["cluster"]) for r in records}
        own = getattr(TASKS.get(path.stem), "credits", None)
        by_metric = own(TASKS[path.stem](), records) if own else credits(records)
        for metric, by_item in by_metric.items():
            found[path.stem, metric] = {item: (float(credit), cluster[item]) for item, credit in by_item.items()}
    return found


def runs_of(folders: Sequence[Path]) -> dict[str, dict[int, Credits]]:
    """The credits in ``…/<recipe>-s<seed>/evaluation``, by recipe and seed."""
    runs: dict[str, dict[int, Credits]] = {}
    for folder in folders:
        run = Path(folder).parent if Path(folder).name == "evaluation" else Path(folder)
        name, _, seed = run.name.rpartition("-s")
        recipe = name if name and seed.isdecimal() else run.name
        runs.setdefault(recipe, {})[int(seed) if recipe == name else 0] = credits_of_run(folder)
    return runs


def compare_runs(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """``paired_tests`` and ``estimates`` of the folders ``…/<recipe>-s<seed>/evaluation``: tests.json and estimates.json."""
    runs = runs_of(folders)
    return paired_tests(runs), estimates(runs)


def paired_tests(runs: Runs, reference: str | None = None) -> list[dict[str, Any]]:
    """A row for each pair of recipes and each metric, on the items that they share: the rows of ``tests.json``.

    Two recipes with the same three or more seeds are compared over items and seeds; otherwise over items, with credits averaged
    over the seeds. Holm's correction runs over all pairs of recipes within one metric of one task. reference: pairs with this only.
    """
    rows: list[dict[str, Any]] = []
    for key in _keys(runs):
        family = []
        for a, b in combinations([name for name in runs if any(key in run for run in runs[name].values())], 2):
            if reference is not None and reference not in (a, b):
                continue
            test = _test(_of(runs[a], key), _of(runs[b], key))
            if test:
                family.append({"task": key[0], "metric": key[1], "a": a, "b": b, **test})
        for row, corrected in zip(family, holm([row["p"] for row in family]), strict=True):
            rows.append({**row, "p_holm": corrected})
    return rows


def estimates(runs: Runs) -> list[dict[str, Any]]:
    """The mean of each metric of each recipe with three or more seeds, with its 95 % interval over items and seeds."""
    rows = []
    for name, seeds in runs.items():
        for key in _keys({name: seeds}):
            measured = [_measured(run) for _, run in sorted(_of(seeds, key).items())]
            if len(measured) < SEEDS or any(m.items.keys() != measured[0].items.keys() for m in measured):
                continue
            found = estimate(measured, share=measured[0].range != (None, None))
            if math.isnan(found.low):  # a single cluster
                continue
            row = {"recipe": name, "task": key[0], "metric": key[1], "seeds": len(measured)}
            rows.append({**row, "value": found.value, "low": found.low, "high": found.high})
    return rows


def _keys(runs: Runs) -> list[Key]:
    return sorted({key for seeds in runs.values() for run in seeds.values() for key in run})


def _of(seeds: Mapping[int, Credits], key: Key) -> dict[int, dict[str, tuple[float, str]]]:
    return {seed: run[key] for seed, run in seeds.items() if key in run}


def _measured(run: Mapping[str, tuple[float, str]]) -> Measured:
    items = {item: credit for item, (credit, _) in run.items()}
    clusters = {item: cluster for item, (_, cluster) in run.items()}
    share = all(0 <= v <= 1 for v in items.values())  # otherwise a score such as CIDEr, which has no upper end
    return Measured(mean(list(items.values())), items, clusters, range=(0.0, 1.0) if share else (None, None))


def _test(a: Mapping[int, dict[str, tuple[float, str]]], b: Mapping[int, dict[str, tuple[float, str]]]) -> dict[str, Any] | None:
    """{"difference", "low", "high", "p"} of two recipes, given the items of each seed; None if they share no item, or, with several
    seeds, items of one cluster alone.
    """
    shared = sorted(set.intersection(*(set(run) for run in (*a.values(), *b.values()))))
    if not shared:
        return None
    if a.keys() == b.keys() and len(a) >= SEEDS:
        first, second = ([_measured({i: runs[s][i] for i in shared}) for s in sorted(runs)] for runs in (a, b))
        found = estimate(first, second, share=first[0].range != (None, None))
        if math.isnan(found.error):  # a single cluster: there is no spread to compare with
            return None
        p = found.p()
        # no spread at all: equal everywhere, or different by the same amount everywhere
        p = p if p == p else 1.0 if found.value == 0 else 0.0
        return {"difference": found.value, "low": found.low, "high": found.high, "p": p}
    averaged = [[mean([run[i][0] for run in runs.values()]) for i in shared] for runs in (a, b)]
    some = next(iter(a.values()))
    return asdict(paired_test(averaged[0], averaged[1], [some[i][1] for i in shared]))
