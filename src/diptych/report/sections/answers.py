"""The records of a task over seeds, the data of the pages of tasks (format: docs/runs.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

import numpy as np

from diptych.report.columns import FURTHER, classify
from diptych.report.read import Comparison, Recipe, readable
from diptych.report.records import Credits, control_names, credits_of, finite
from diptych.training.run_files import EvaluationFiles, Record

MOST_HEADS = 6


@dataclass
class Answers:
    """One recipe's records of one task. ``records`` are those of the first seed that has any."""

    recipe: Recipe
    index: int  # position in the comparison, which gives the colour
    evaluation: EvaluationFiles  # the source of the records
    records: list[Record]
    credits: dict[str, Credits] = field(default_factory=dict)  # {metric: {item: credit}}, means over seeds
    controls: dict[str, dict[str, Credits]] = field(default_factory=dict)  # {metric: {control: {item: credit}}}
    chance: dict[str, Credits] = field(default_factory=dict)
    cluster: dict[str, str] = field(default_factory=dict)  # of each item

    @cached_property
    def by_item(self) -> dict[str, Record]:
        """{item: record}."""
        return {str(r["item"]): r for r in self.records}


@dataclass
class TaskAnswers:
    """A task's records of all recipes that have any."""

    task: str
    answers: list[Answers]
    lower: frozenset[str] = frozenset()  # metrics of which lower is better

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics with a credit for each item, in order of their first occurrence."""
        return list(dict.fromkeys(m for a in self.answers for m in a.credits))

    @cached_property
    def heads(self) -> list[str]:
        """The metrics that decide whether an item is right: those of the main table, else those that are not part of another."""
        main = [m for m in self.metrics if (place := classify(self.task, m)) and place[0] != FURTHER]
        return main or [m for m in self.metrics if "/" not in m][:MOST_HEADS] or self.metrics[:1]

    def goodness(self, a: Answers, metric: str, item: str) -> float:
        """The credit; 1 − credit where lower is better."""
        credit = a.credits[metric][item]
        return 1 - credit if metric in self.lower else credit

    def head_of(self, a: Answers, item: str) -> str | None:
        """The metric that decides whether an item is right; of several (directions, ranks) the first."""
        return next((m for m in self.heads if item in a.credits.get(m, {})), None)


def task_names(comparison: Comparison) -> list[str]:
    """Names of the tasks with results or records: built-in tasks in their order, then others."""
    from diptych.benchmarks.tasks import TASKS

    known = {name: i for i, name in enumerate(TASKS)}
    named = [task for r in comparison.recipes for task, _ in r.measures]
    filed = [task for r in comparison.recipes for run in r.runs for task in run.evaluation.record_files()]

    def place(name: str) -> int:
        """The position of a task; ``bias-size`` is next to ``bias``."""
        while name and name not in known:
            name = name.rpartition("-")[0]
        return known.get(name, len(known))

    return sorted(dict.fromkeys([*named, *filed]), key=place)


def gather(comparison: Comparison, task: str) -> TaskAnswers:
    """The records of a task of all recipes; unreadable records become a note of the comparison."""
    all_answers = []
    for index, recipe in enumerate(comparison.recipes):
        seeds = []
        for run in recipe.runs:
            if records := readable(run.evaluation.records, [], comparison.notes, task):
                seeds.append((run.evaluation, records))
        if seeds:
            answers = Answers(recipe, index, *seeds[0])
            _fill(answers, task, [records for _, records in seeds])
            all_answers.append(answers)
    measures = [m for r in comparison.recipes for (of, _), m in r.measures.items() if of == task]
    return TaskAnswers(task, all_answers, frozenset(m.metric for m in measures if not m.higher_is_better))


def _fill(answers: Answers, task: str, seeds: Sequence[list[Record]]) -> None:
    values: dict[tuple[str, str, str], list[float]] = {}  # (kind, metric, item)
    for records in seeds:
        for metric, by_item in credits_of(task, records).items():
            for item, credit in by_item.items():
                values.setdefault(("correct", metric, item), []).append(credit)
        for record in records:
            item, metrics = str(record["item"]), record.get("correct") or {}
            answers.cluster[item] = str(record.get("cluster", item))
            for kind in control_names(record):
                for metric, value in (record.get(kind) or {}).items():
                    if metric in metrics and (v := finite(value)) is not None:
                        values.setdefault((kind, metric, item), []).append(v)
    for (kind, metric, item), credits in values.items():
        if kind == "correct":
            by = answers.credits.setdefault(metric, {})
        elif kind == "chance":
            by = answers.chance.setdefault(metric, {})
        else:
            by = answers.controls.setdefault(metric, {}).setdefault(kind, {})
        by[item] = fmean(credits)


def paired(a: Credits, b: Credits, cluster: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """The credits of the common items, float [n] each, their clusters and their names."""
    shared = [item for item in a if item in b]
    return np.array([a[i] for i in shared]), np.array([b[i] for i in shared]), [cluster[i] for i in shared], shared
