"""What records (docs/runs.md) say of metrics and controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diptych.core.errors import DiptychError
from diptych.training.run_files import EvaluationFiles, Record

Credits = dict[str, float]  # {item: credit}
# Mappings from metric to number that are not controls.
NO_CONTROLS = {"correct", "chance", "ties", "rank", "slices", "weights"}


def finite(value: Any) -> float | None:
    """The value as a float; None if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def results_of(evaluation: EvaluationFiles, notes: list[str]) -> list[dict[str, Any]]:
    """The results of records without a summary: means of credits, else by the task of that name. ``notes`` get problems."""
    from diptych.benchmarks.records import plain
    from diptych.benchmarks.results import shares
    from diptych.benchmarks.tasks import TASKS

    results = []
    for task, path in evaluation.record_files().items():
        try:
            records = [{**r, "cluster": r.get("cluster", r["item"])} for r in evaluation.records(task)]
        except DiptychError as error:
            notes.append(f"{error}; these records are missing here.")
            continue
        task_results = shares(task, records)
        if not task_results and task in TASKS:
            try:
                task_results = TASKS[task]().summarise(records)
            except (KeyError, TypeError, ValueError) as error:
                notes.append(f"{path}: no records of the task '{task}' ({type(error).__name__}: {error})")
        results += [plain(r) for r in task_results]
    return results


def credits_of(task: str, records: Sequence[Record]) -> dict[str, Credits]:
    """{metric: {item: credit}}: the records' own credits, else those that the task computes (captions)."""
    credits: dict[str, Credits] = {}
    for record in records:
        for metric, value in (record.get("correct") or {}).items():
            if (v := finite(value)) is not None:
                credits.setdefault(metric, {})[str(record["item"])] = v
    if credits:
        return credits
    from diptych.benchmarks.tasks import TASKS

    own = getattr(TASKS.get(task.partition("?")[0]), "credits", None)
    if own is None:
        return {}
    try:
        return {m: {str(i): float(v) for i, v in by.items()} for m, by in own(TASKS[task](), list(records)).items()}
    except (KeyError, TypeError, ValueError):  # another task's records under this name
        return {}


def own_scores(record: Mapping[str, Any]) -> list[Any]:
    """The scores with the item's own picture: a list, or a matrix of pictures × texts; else empty."""
    scores = record.get("scores")
    if isinstance(scores, dict):
        scores = scores.get("correct", list(scores.values()))
    return scores if isinstance(scores, list) else []


def control_names(record: Mapping[str, Any]) -> list[str]:
    """Names of the controls in a record: every mapping with the metrics of ``correct`` (blind, shuffled, length …), and chance."""
    metrics = set(record.get("correct") or {})
    alike = [k for k, v in record.items() if k not in NO_CONTROLS and isinstance(v, dict) and v and set(v) <= metrics]
    return [*alike, "chance"]
