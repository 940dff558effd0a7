"""The two searches: sets added one at a time, each kept if it helps; and each set left out of all, kept if that costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from diptych.benchmarks.statistics import holm, mean
from diptych.choose.sets.plan import Arm, Selection, achieved, train_and_evaluate
from diptych.choose.sets.table import written
from diptych.comparison.paired import SEEDS, paired_tests
from diptych.core.files import write_json, write_text

SCORE = ("all", "score")
LEVEL = 0.05
HELPS, COSTS, OPEN = "helps", "costs", "no difference shown"
Trainer = Callable[[Selection, Sequence[Arm]], None]


def select_sets(selection: Selection, train: Trainer = train_and_evaluate) -> dict[str, Any]:
    """The content of ``results.json``, which is written to the selection's folder together with ``table.md``. Runs that are done
    are kept, so an interrupted selection continues, and more sets, seeds or tasks cost only themselves.

    train: makes the runs of some arms that are missing. Raises DiptychError if a run fails.
    """
    selection.check()
    result: dict[str, Any] = {
        "recipe": selection.recipe, "budget": selection.budget, "seeds": selection.seeds, "tasks": selection.tasks,
        "sets": selection.sets, "base": selection.base, "weights": selection.rule, "eval_data": selection.eval_data,
    }  # fmt: skip
    if "add" in selection.ways:
        result["add"] = added(selection, train)
    if "leave-one-out" in selection.ways:
        result["leave_one_out"] = left_out(selection, train)
    result["arms"] = {selection.called(arm): score(selection, arm) for arm in _arms(selection, result)}
    write_json(selection.out / "results.json", result)
    write_text(selection.out / "table.md", written(result))
    return result


def added(selection: Selection, train: Trainer) -> dict[str, Any]:
    """Sets in their order: each is compared as an addition to what is kept so far, and kept if it helps. {"steps": one row for each
    comparison, "kept": names}.
    """
    kept = selection.first()
    rows = []
    for number in range(1, len(selection.sets) + 1):
        if number in kept:
            continue
        more = (*kept, number)
        train(selection, [kept, more])
        row = compared(selection, more, kept) | {"set": selection.names[number - 1], "arm": list(more), "against": list(kept)}
        row["verdict"] = _verdict(row["score"], row["score"]["p"])
        rows.append(row)
        kept = more if row["verdict"] == HELPS else kept
    return {"steps": rows, "kept": [selection.names[k - 1] for k in kept if k], "begins": selection.called(selection.first())}


def left_out(selection: Selection, train: Trainer) -> dict[str, Any]:
    """All sets against all but one, for each one; it is kept if leaving it out costs, by Holm's correction over the sets. {"steps":
    one row for each set, "kept": names}.
    """
    whole = selection.whole()
    without = {k: tuple(other for other in whole if other != k) for k in whole if k}
    train(selection, [whole, *without.values()])
    rows = [
        compared(selection, whole, arm) | {"set": selection.names[k - 1], "arm": list(whole), "against": list(arm)}
        for k, arm in without.items()
    ]
    for row, p in zip(rows, holm([row["score"]["p"] for row in rows]), strict=True):
        row["p_holm"] = p
        row["verdict"] = _verdict(row["score"], p)
    return {"steps": rows, "kept": [row["set"] for row in rows if row["verdict"] == HELPS]}


def compared(selection: Selection, arm: Arm, other: Arm) -> dict[str, Any]:
    """An arm minus another: {"score": {difference, low, high, p}, "tasks": {task: the same}} on the items of both."""
    runs = {"with": achieved(selection, arm), "without": achieved(selection, other)}
    rows = {(row["task"], row["metric"]): row for row in paired_tests(runs)}
    found = {key: {name: row[name] for name in ("difference", "low", "high", "p")} for key, row in rows.items()}
    nothing = {"difference": 0.0, "low": math.nan, "high": math.nan, "p": 1.0}
    return {"score": found.get(SCORE, nothing), "tasks": {task: found[task, name] for task, name in found if task != SCORE[0]}}


def score(selection: Selection, arm: Arm) -> dict[str, float]:
    """The mean score of an arm over its seeds, and of each task."""
    runs = achieved(selection, arm).values()
    keys = dict.fromkeys(key for run in runs for key in run)
    return {key[0]: mean([mean([credit for credit, _ in run[key].values()]) for run in runs if key in run]) for key in keys}


def _verdict(row: dict[str, float], p: float) -> str:
    if not p < LEVEL or not (row["low"] > 0 or row["high"] < 0):
        return OPEN
    return HELPS if row["difference"] > 0 else COSTS


def _arms(selection: Selection, result: dict[str, Any]) -> list[Arm]:
    rows = [row for way in ("add", "leave_one_out") for row in result.get(way, {}).get("steps", ())]
    return list(dict.fromkeys(tuple(row[name]) for row in rows for name in ("against", "arm")))


__all__ = ["COSTS", "HELPS", "OPEN", "SEEDS", "added", "compared", "left_out", "score", "select_sets"]
