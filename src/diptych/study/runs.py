"""The trained runs of a study, their data and their measurements: the interface for measures and figures.

A study's directory holds a run ``<arm>-s<seed>`` for each arm and seed (docs/runs.md); results of measures that are functions
are in ``measures/<measure>.json`` of the run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.config.recipe import Recipe
from diptych.core.errors import DiptychError
from diptych.core.files import read_json, write_json
from diptych.study.schema import ArmName as ArmName  # for measures of one's own
from diptych.study.schema import Measure, Study
from diptych.study.verdict import Measured
from diptych.training.run_files import EvaluationFiles, RunFiles

if TYPE_CHECKING:
    from diptych.data.source import Source
    from diptych.inference.run import TrainedModel


@dataclass
class Runs:
    """The runs of a study. ``folder``: its directory."""

    study: Study
    folder: Path

    def path(self, arm: str, seed: int) -> Path:
        """The directory of a run. Raises DiptychError for an arm that the study does not have."""
        if arm not in self.study.arms:
            raise DiptychError(f"study '{self.study.name}' has no arm '{arm}'; it has {', '.join(self.study.arms)}")
        return self.folder / f"{arm}-s{seed}"

    def files(self, arm: str, seed: int) -> RunFiles:
        """The files that training and evaluation left."""
        return RunFiles(self.path(arm, seed))

    def recipe(self, arm: str, seed: int) -> Recipe:
        """The recipe that was trained, with every default and override. Raises DiptychError if the run was not started."""
        recipe = self.files(arm, seed).requested()
        if recipe is None:
            raise DiptychError(f"{self.path(arm, seed)}: no job.yaml; the run was not started")
        return recipe

    def model(self, arm: str, seed: int) -> TrainedModel:
        """The trained model, with its averaged weights."""
        return loaded(self.path(arm, seed))

    def source(self, arm: str, seed: int) -> Source:
        """The data of the arm; its ``split("test")`` and ``split("validation")`` were not trained on."""
        from diptych.data.sources import open_source

        return open_source(self.recipe(arm, seed).data.train)

    def spent(self, arm: str, seed: int) -> dict[str, Any]:
        """Seconds, samples, FLOPs … of the training."""
        return self.files(arm, seed).spent()

    # --- measurements ---

    def measured(self, name: str, arm: str) -> list[Measured]:
        """The measurements of an arm, one for each seed. Raises DiptychError with the reason if one is missing."""
        return [self.one(name, arm, seed) for seed in range(self.study.seeds)]

    def one(self, name: str, arm: str, seed: int) -> Measured:
        """The measurement of one run. Raises DiptychError with the reason if it is missing."""
        measure = self.study.measure(name)
        if measure.function:
            kept = self.kept(name, arm, seed)
            if kept is None:
                raise DiptychError("not measured: the run failed")
            if "reason" in kept:
                raise DiptychError(kept["reason"])
            found = Measured(**kept["measured"])
            return found if measure.range is None else replace(found, range=measure.range)
        return _of_records(self.files(arm, seed).evaluation(self.folders[name]), measure)

    @cached_property
    def folders(self) -> dict[str, str]:
        """``{measure: evaluation folder in a run's directory}`` for measures of tasks.

        Different data, or different options of one task, need different folders: a folder holds one set of records of a task.
        """
        groups: list[tuple[str | None, dict[str, str], str]] = []  # data, {task name: address}, folder
        folders: dict[str, str] = {}
        for name, measure in self.study.measures.items():
            if measure.task is None:
                continue
            data, task_name = measure.data or self.study.eval_data, _task_name(measure.task)
            fitting = (g for g in groups if g[0] == data and g[1].get(task_name, measure.task) == measure.task)
            group = next(fitting, None)
            if group is None:
                digest = hashlib.sha256(json.dumps([data, measure.task]).encode()).hexdigest()[:8]
                group = (data, {}, f"evaluation-{digest}" if groups else "evaluation")
                groups.append(group)
            group[1][task_name] = measure.task
            folders[name] = group[2]
        return folders

    def keep(self, name: str, arm: str, seed: int, outcome: Measured | str) -> None:
        """Saves the result of a measure that is a function, or the reason why there is none."""
        content = {"reason": outcome} if isinstance(outcome, str) else {"measured": asdict(outcome)}
        write_json(self._file(name, arm, seed), {"asked": self._definition(name), **content})

    def kept(self, name: str, arm: str, seed: int) -> dict[str, Any] | None:
        """The saved result, if the study still defines the measure in the same way."""
        file = self._file(name, arm, seed)
        content = read_json(file) if file.is_file() else None
        return content if content and content["asked"] == self._definition(name) else None

    def forget_reasons(self) -> None:
        """Deletes the saved reasons, so that these measures are tried again."""
        for file in self.folder.glob("*/measures/*.json"):
            if "reason" in read_json(file):
                file.unlink()

    def _file(self, name: str, arm: str, seed: int) -> Path:
        return self.path(arm, seed) / "measures" / f"{name}.json"

    def _definition(self, name: str) -> dict[str, Any]:
        return self.study.measures[name].model_dump(mode="json", include={"function", "options"})


@lru_cache(maxsize=4)
def loaded(path: Path) -> TrainedModel:
    """The trained model in a run's directory; the last few are kept in memory."""
    from diptych.inference.run import TrainedModel

    return TrainedModel.load(path)


def _task_name(address: str) -> str:
    from diptych.benchmarks.tasks import task

    return task(address).name


def _of_records(evaluation: EvaluationFiles, measure: Measure) -> Measured:
    from diptych.benchmarks.metric_names import metric_range
    from diptych.benchmarks.results import credits
    from diptych.benchmarks.tasks import task

    assert measure.task and measure.metric
    measured_task = task(measure.task)
    name = measured_task.name
    if not evaluation.summary():
        raise DiptychError("not evaluated: the run failed")
    if reason := evaluation.skipped().get(name):
        raise DiptychError(reason)
    records = evaluation.records(name)
    limits = measure.range or metric_range(measure.metric, measure.share)
    if measure.control:
        items = {r["item"]: r[measure.control][measure.metric] for r in records if measure.metric in (r.get(measure.control) or {})}
    else:
        items = getattr(measured_task, "credits", credits)(records).get(measure.metric, {})
    if items:
        clusters = {r["item"]: str(r["cluster"]) for r in records}
        return Measured(sum(items.values()) / len(items), items, {i: clusters[i] for i in items}, range=limits)
    results = {r["metric"]: r for r in evaluation.results() if r["task"] == name}
    result = results.get(measure.metric)
    if result is None or measure.control:
        raise DiptychError(f"{name} has no metric '{measure.metric}'; it has {', '.join(sorted(results))}")
    if result["value"] is None:
        raise DiptychError("not a number")
    bounds = result["low"], result["high"]
    return Measured(result["value"], error=None if None in bounds else (bounds[1] - bounds[0]) / 3.92, range=limits)
