"""Runs a study: derive the data, train and evaluate every arm and seed, measure, test the claims, write the report.

All results stay in the study's directory; a study that was interrupted, or that has more seeds, measures or claims than before,
continues where it stopped.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from diptych.benchmarks.records import write_json
from diptych.benchmarks.statistics import holm
from diptych.comparison.jobs import Job, budget_each, run_jobs, share_out, why_failed
from diptych.comparison.run import Evaluation, RecipeJob, run_backbones
from diptych.config.recipe import Recipe, load_recipe
from diptych.core.errors import DiptychError, nearest
from diptych.core.files import read_json, write_text
from diptych.core.registry import check_options, resolve
from diptych.study.derive import check_steps, derive
from diptych.study.measure import MeasureJob, functions_of
from diptych.study.runs import Runs
from diptych.study.schema import Claim, Measure, Study, names_in
from diptych.study.verdict import OPEN, Verdict, decide, estimate
from diptych.training.start.backbones import folder_beside


def run_study(study: Study, out: Path, jobs: int | None = None) -> Path:
    """The path of the report, after everything that was missing is done. Raises DiptychError if runs failed, after the report."""
    from diptych.report.pages.study import build_study_report

    check_study(study)
    runs = Runs(study, out)
    data = {name: _data(study, name, out) for name in study.arms}
    planned, side_by_side = plan(study, runs, data, jobs)
    write_text(out / "study.yaml", yaml.safe_dump(study.to_data(), sort_keys=False, allow_unicode=True))
    run_backbones(planned, side_by_side)
    failed: list[Job] = run_jobs(planned, side_by_side)
    lost = {(job.arm, job.seed) for job in failed if isinstance(job, ArmJob)}
    runs.forget_reasons()
    measuring = [
        MeasureJob(job.label, job.path / "measures", job.threads, runs, job.arm, job.seed)
        for job in planned
        if functions_of(study, job.arm) and (job.arm, job.seed) not in lost
    ]
    failed += run_jobs(measuring, side_by_side)
    content = results(runs)
    write_json(out / "results.json", content)
    build_study_report(out, study.to_data(), read_json(out / "results.json"), figures(runs))
    if failed:
        raise DiptychError(why_failed(failed, [*planned, *measuring]))
    return out / "report.html"


@dataclass
class ArmJob(RecipeJob):
    """The job of one arm and seed."""

    arm: str
    seed: int


def check_study(study: Study) -> None:
    """Raises DiptychError if recipes, tasks, metrics, functions or steps do not exist or do not take their options."""
    for name, arm in study.arms.items():
        check_steps(arm.derive, f"arms.{name}.derive")
        _recipe(study, name, arm.data or study.data, 0)
    for name, measure in study.measures.items():
        if measure.task:
            _check_metric(study, name, measure)
        else:
            check_options(resolve(str(measure.function), {}, "measure"), measure.options, f"measures.{name}")
            _check_names(study, str(measure.function), measure.options, f"measures.{name}")
    for i, figure in enumerate(study.figures):
        check_options(resolve(figure.function, {}, "figure"), figure.options, f"figures.{i}")
        _check_names(study, figure.function, figure.options, f"figures.{i}")


def _check_metric(study: Study, name: str, measure: Measure) -> None:
    """Raises DiptychError if a measure's task does not exist or has no such metric."""
    from diptych.benchmarks.metric_names import check_metric
    from diptych.benchmarks.tasks import task

    one = measure.data or study.eval_data
    data = [one] if one else sorted({arm.data or study.data for arm in study.arms.values()})
    check_metric(task(str(measure.task)), str(measure.metric), f"measures.{name}.metric", data)


def _check_names(study: Study, function: str, options: dict[str, Any], where: str) -> None:
    """Raises DiptychError if an option names an arm or a measure that the study does not have."""
    for option, names in names_in(function, options, "ArmName").items():
        for name in names:
            if name not in study.arms:
                raise DiptychError(f"{where}.{option}: there is no arm '{name}'{nearest(name, study.arms)}")
    for option, names in names_in(function, options, "MeasureName").items():
        for name in names:
            if name not in study.measures:
                raise DiptychError(f"{where}.{option}: there is no measure '{name}'{nearest(name, study.measures)}")


def plan(study: Study, runs: Runs, data: dict[str, str], jobs: int | None) -> tuple[list[ArmJob], int]:
    """The jobs, and how many run at a time. Seed by seed: an interrupted study has complete comparisons of its first seeds."""
    side_by_side, threads = share_out(jobs, len(study.arms) * study.seeds)
    planned = []
    for seed in range(study.seeds):
        for name in study.arms:
            budget = budget_each(study.arms[name].budget or study.budget, side_by_side)
            recipe = _recipe(study, name, data[name], seed).model_copy(update={"budget": budget})
            path, label = runs.path(name, seed), f"{name} s{seed}" if study.seeds > 1 else name
            job = ArmJob(label, path, threads, recipe, _evaluations(runs, name), name, seed, backbones=folder_beside(runs.folder))
            job.check_same()
            planned.append(job)
    return planned, side_by_side


def _data(study: Study, name: str, out: Path) -> str:
    arm = study.arms[name]

    def report_progress(words: str) -> None:
        """Progress on stderr, with the arm's name."""
        print(f"{name}: {words}", file=sys.stderr, flush=True)

    return derive(arm.data or study.data, arm.derive, out / "data", report_progress)


def _recipe(study: Study, name: str, data: str, seed: int) -> Recipe:
    arm = study.arms[name]
    try:
        return load_recipe(arm.recipe, {**study.set, **arm.set, "data.train": data, "seed": seed})
    except DiptychError as error:
        raise DiptychError(f"arms.{name}: {error}") from None


def _evaluations(runs: Runs, arm: str) -> list[Evaluation]:
    """The tasks that evaluate an arm, grouped by folder of records."""
    by_folder: dict[str, Evaluation] = {}
    for name, folder in runs.folders.items():
        measure = runs.study.measures[name]
        if arm in runs.study.measured_on(name) and measure.task:
            evaluation = by_folder.setdefault(folder, Evaluation(measure.data or runs.study.eval_data, [], folder))
            if measure.task not in evaluation.tasks:
                evaluation.tasks.append(measure.task)
    return list(by_folder.values())


# --- results ---


def results(runs: Runs) -> dict[str, Any]:
    """The content of ``results.json``: measures by arm, verdicts, what was spent."""
    study = runs.study
    verdicts = [verdict(runs, claim) for claim in study.claims]
    tested = [i for i, v in enumerate(verdicts) if v.p == v.p]
    corrected = dict(zip(tested, holm([verdicts[i].p for i in tested]), strict=True))
    return {
        "study": study.name,
        "title": study.title,
        "created": time.strftime("%Y-%m-%d %H:%M"),
        "command": shlex.join(["diptych", *sys.argv[1:]]),
        "environment": {"cores": os.cpu_count(), "python": sys.version.split()[0]},
        "budget": str(study.budget),
        "seeds": study.seeds,
        "arms": {name: {**arm.model_dump(mode="json"), "spent": _spent(runs, name)} for name, arm in study.arms.items()},
        "measures": {name: _measure(runs, name) for name in study.measures},
        "claims": [
            {**claim.model_dump(mode="json"), **_as_data(v), "p_holm": corrected.get(i)}
            for i, (claim, v) in enumerate(zip(study.claims, verdicts, strict=True))
        ],
    }


def verdict(runs: Runs, claim: Claim) -> Verdict:
    """The verdict on a claim; open, with the reason, if a measurement is missing."""
    try:
        a = runs.measured(claim.measure, claim.a)
        b = runs.measured(claim.measure_b or claim.measure, claim.b) if isinstance(claim.b, str) else claim.b
    except DiptychError as reason:
        return Verdict(OPEN, str(reason))
    return decide(claim, a, b, runs.study.measures[claim.measure].share)


def _as_data(v: Verdict) -> dict[str, Any]:
    d = v.difference
    numbers = {"difference": d.value, "low": d.low, "high": d.high, "effect": d.effect, "seeds": d.seeds, "n": d.items} if d else {}
    return {"verdict": v.verdict, "reason": v.reason, "p": v.p, **numbers}


def _measure(runs: Runs, name: str) -> dict[str, Any]:
    measure = runs.study.measures[name]
    by_arm: dict[str, Any] = {}
    for arm in runs.study.measured_on(name):
        try:
            measured = runs.measured(name, arm)
        except DiptychError as reason:
            by_arm[arm] = {"reason": str(reason)}
            continue
        e = estimate(measured, share=measure.share)
        by_arm[arm] = {"value": e.value, "low": e.low, "high": e.high, "n": e.items, "by_seed": [m.value for m in measured]}
    return {"about": measure.about, "share": measure.share, "arms": by_arm}


def _spent(runs: Runs, arm: str) -> dict[str, float]:
    """Means over the seeds that were trained."""
    rows = [row for s in range(runs.study.seeds) if (row := runs.spent(arm, s))]
    keys = ("seconds", "samples", "flops", "parameters", "pretraining_flops")
    return {k: sum(row[k] for row in rows) / len(rows) for k in keys if all(k in row for row in rows)} if rows else {}


def figures(runs: Runs) -> list[tuple[str, str]]:
    """Title and HTML of each figure; the reason in place of one that cannot be drawn."""
    drawn = []
    for figure in runs.study.figures:
        try:
            body = resolve(figure.function, {}, "figure")(runs, **figure.options)
        except DiptychError as reason:
            body = f"<p>{escape(str(reason))}</p>"
        drawn.append((figure.title, body))
    return drawn
