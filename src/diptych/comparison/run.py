"""Comparisons: recipes trained on the same data under the same budget and evaluated on the same items.

Each recipe and seed is a job in its own process. With n parallel jobs on C cores each gets C / n threads and n times the seconds,
so a second of budget is always a second of the whole machine. Finished jobs are kept: an interrupted comparison continues where
it stopped.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diptych.comparison.jobs import Job, budget_each, run_jobs, share_out, why_failed
from diptych.config.budget import parse_budget
from diptych.config.recipe import Recipe, load_recipe, recipe_names
from diptych.core import extras
from diptych.core.errors import DiptychError, Interrupted, counted
from diptych.core.files import read_json, write_json, write_text
from diptych.data.sources import open_source
from diptych.training.run_files import EvaluationFiles, RunFiles
from diptych.training.start.backbones import check_data, folder_beside
from diptych.training.start.backbones import planned as planned_backbones

ITEMS = 100  # pictures saved for the report


@dataclass
class Comparison:
    """What to compare, on which data, under which budget."""

    recipes: list[str]
    data: str
    budget: str
    seeds: int = 1
    out: Path = Path("runs/compare")
    jobs: int | None = None  # None: one for each core, up to the number of runs
    set: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    eval_data: str | None = None  # None: the test part of ``data``
    title: str = "Comparison"


@dataclass
class Evaluation:
    """Tasks on one data set; their records go into ``out``, a folder in the run's directory."""

    data: str | None  # None: the test part of the training data
    tasks: list[str]
    out: str = "evaluation"


@dataclass
class RecipeJob(Job):
    """One recipe and seed: train, then evaluate. backbones: the folder of those that it needs."""

    recipe: Recipe
    evaluations: list[Evaluation]
    backbones: Path | None = field(default=None, kw_only=True)

    def arguments(self) -> dict[str, Any]:
        """The JSON arguments of the process."""
        return {
            "path": str(self.path),
            "name": self.recipe.name,
            "evaluations": [asdict(e) for e in self.evaluations],
            "backbones": str(self.backbones) if self.backbones else None,
        }

    def prepare(self) -> None:
        """Writes the files that the process reads."""
        write_text(self.path / "job.yaml", self.recipe.to_yaml())

    def done(self) -> bool:
        """Whether the run is trained and evaluated by all of these tasks with these settings.

        Added tasks cost only themselves: records are kept.
        """
        run = RunFiles(self.path)
        return run.finished() and all(
            _evaluated(run.evaluation(evaluation.out), name) for evaluation in self.evaluations for name in evaluation.tasks
        )

    def check_same(self) -> None:
        """Raises DiptychError if the directory holds a run of another recipe, budget or data."""
        requested = RunFiles(self.path).requested()
        if requested and requested != self.recipe:
            raise DiptychError(f"{self.path} holds a run of other settings, data or budget; choose another --out or delete it")


def _evaluated(evaluation: EvaluationFiles, address: str) -> bool:
    """Whether a task was done, or skipped with a reason, with the settings of this address."""
    from diptych.benchmarks.run import same_settings
    from diptych.benchmarks.tasks import task

    each = task(address)
    stored = evaluation.settings(each.name)  # none of a task that the model cannot do
    return each.name in evaluation.tasks() and (not stored or same_settings(stored, each))


def plan(c: Comparison) -> tuple[list[RecipeJob], int]:
    """Every job, checked before any starts, and how many run at a time."""
    from diptych.benchmarks.tasks import task

    if not c.recipes:
        raise DiptychError("compare: name at least one recipe")
    if len(set(c.recipes)) < len(c.recipes):
        raise DiptychError("compare: a recipe is named twice; for repeats use --seeds")
    for name in c.tasks:
        task(name)  # a wrong name is refused before training
    budget = parse_budget(c.budget)
    side_by_side, threads = share_out(c.jobs, len(c.recipes) * c.seeds)
    each = budget_each(budget, side_by_side)
    planned = []
    for seed in range(c.seeds):
        for name in c.recipes:
            recipe = load_recipe(name, [f"data.train={c.data}", f"seed={seed}", *c.set]).model_copy(update={"budget": each})
            path = c.out / f"{recipe.name}-s{seed}"
            label = f"{recipe.name} s{seed}" if c.seeds > 1 else recipe.name
            planned.append(
                RecipeJob(label, path, threads, recipe, [Evaluation(c.eval_data, c.tasks)], backbones=folder_beside(c.out))
            )
    paths = [job.path for job in planned]
    twice = next((job for job in planned if paths.count(job.path) > 1), None)
    if twice:
        raise DiptychError(f"compare: two recipes have the name '{twice.recipe.name}'; give yours another `name:`")
    return planned, side_by_side


def run_backbones(planned: Sequence[RecipeJob], side_by_side: int) -> None:
    """Trains the backbones that jobs still to be done need, each once, before these start. Raises DiptychError if one fails."""
    wanted = {}
    for job in planned:
        if job.recipe.backbones and job.backbones and not RunFiles(job.path).finished():
            backbones = planned_backbones(job.recipe, job.backbones)
            check_data(job.recipe, backbones)
            for each in backbones.values():
                if each.recipe is not None and not RunFiles(each.path).finished():
                    label = f"{each.recipe.name} (backbone)"
                    wanted[each.path] = RecipeJob(label, each.path, job.threads, each.recipe, [], backbones=job.backbones)
    if failed := run_jobs(list(wanted.values()), side_by_side):
        raise DiptychError(why_failed(failed, list(wanted.values())))


def run_comparison(c: Comparison, build_report: Callable[[Path], Path]) -> Path:
    """The path of the report, after all jobs that were not done have run. Raises DiptychError if some failed, after the report."""
    from diptych.benchmarks.run import save_items

    planned, side_by_side = plan(c)
    check_same(c, planned)
    source = open_source(c.eval_data) if c.eval_data else open_source(c.data).split("test")
    if len(source) < 2:
        raise DiptychError(
            f"{source.address} holds {counted(len(source), 'item')}, too few to evaluate on; use more data or --eval-data"
        )
    describe(c, planned, source)
    save_items(source, c.out / "items", ITEMS)
    run_backbones(planned, side_by_side)
    try:
        failed = [job for job in run_jobs(planned, side_by_side) if isinstance(job, RecipeJob)]
    except Interrupted:
        summarize(c.out, planned, build_report)
        raise
    if failed:
        _note_failures(c.out / "compare.json", failed)
    summarize(c.out, planned, build_report)
    if failed:
        raise DiptychError(why_failed(failed, planned))
    return c.out / "report.html"


def summarize(out: Path, planned: list[RecipeJob], build_report: Callable[[Path], Path]) -> None:
    """Writes paired tests, intervals over seeds and the report of what is trained and evaluated so far."""
    from diptych.comparison.paired import compare_runs

    finished = [job.path for job in planned if job.done()]
    if finished:
        tests, estimates = compare_runs([path / "evaluation" for path in finished])
        write_json(out / "tests.json", tests)
        write_json(out / "estimates.json", estimates)
        build_report(out)


def _note_failures(path: Path, failed: list[RecipeJob]) -> None:
    """Adds to compare.json why a recipe has no results, for the report."""
    content = read_json(path)
    for recipe in content["recipes"]:
        reasons = [job.state.get("error", "stopped without a message") for job in failed if job.recipe.name == recipe["name"]]
        if reasons:
            recipe["error"] = reasons[0]
    write_json(path, content)


def check_same(c: Comparison, planned: list[RecipeJob]) -> None:
    """Raises DiptychError if the directory holds a comparison with other settings."""
    old = c.out / "compare.json"
    if not old.is_file():
        return
    before = read_json(old)
    for key, now in (("data", c.data), ("eval_data", c.eval_data), ("budget", c.budget), ("set", c.set)):
        if before.get(key) != now:
            raise DiptychError(
                f"{c.out} holds a comparison with {key} = {before.get(key)!r}, not {now!r}; choose another --out or delete it"
            )
    for job in planned:
        job.check_same()


def weights_of(recipe: Recipe) -> list[str]:
    """The names, in ``models.pretrained.WEIGHTS``, of the packaged weights that a recipe's parts load."""
    from diptych.core.registry import option_names, resolve
    from diptych.models.vlm import KINDS

    names = []
    for name, part in recipe.parts.items():
        cls = resolve(part.kind, KINDS.get(name, {}), f"{name} part")
        if getattr(cls, "weights", ""):
            defaults = {k: p.default for k, p in option_names(cls).items()}
            names.append(cls.weights.format(**{**defaults, **part.options}))
    return names


def every_system(named: list[str] | None) -> list[str]:
    """All built-in recipes with installed weights, then those named."""
    from diptych.models.adapters import BY_PEFT
    from diptych.models.pretrained import WEIGHTS, installed

    chosen = []
    for name in recipe_names():
        recipe = load_recipe(name)
        absent = {w: WEIGHTS[w].remedy for w in weights_of(recipe) if not installed(w)}
        if recipe.score == "none":
            print(f"left out: {name} has no score for images and texts; it is for the backbones of others", file=sys.stderr)
            continue
        if any(adapter.kind in BY_PEFT for adapter in recipe.adapters.values()) and not extras.installed("peft"):
            absent["peft"] = extras.install("adapt")
        if absent:
            print(f"left out: {name} needs {', '.join(f'{what} ({remedy})' for what, remedy in absent.items())}", file=sys.stderr)
        else:
            chosen.append(name)
    return [*chosen, *(name for name in named or [] if name not in chosen)]


def describe(c: Comparison, planned: list[RecipeJob], source: Any) -> None:
    """Writes compare.json."""
    from diptych.models.pretrained import WEIGHTS

    names = sorted({w for job in planned for w in weights_of(job.recipe)}) + (["openmoji"] if c.data.startswith("scenes:") else [])
    first = {job.recipe.name: job for job in reversed(planned)}
    write_json(
        c.out / "compare.json",
        {
            "title": c.title,
            "created": time.strftime("%Y-%m-%d %H:%M"),
            "command": shlex.join(["diptych", *sys.argv[1:]]),
            "data": c.data,
            "eval_data": c.eval_data,
            "data_fingerprint": source.fingerprint(),
            "budget": c.budget,
            "seeds": c.seeds,
            "set": c.set,
            "jobs": len(planned),
            "recipes": [
                {"label": name, **first[name].recipe.model_dump(include={"name", "paradigm", "about", "cite", "score"})}
                for name in dict.fromkeys(job.recipe.name for job in planned)
            ],
            "environment": {"cores": os.cpu_count(), "python": sys.version.split()[0]},
            "licences": [{"part": n, "licence": WEIGHTS[n].licence, "source": WEIGHTS[n].source} for n in names],
        },
    )
