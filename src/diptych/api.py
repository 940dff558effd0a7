"""The Python interface: the verbs of the command line as functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych.benchmarks.run import Summary
from diptych.benchmarks.run import evaluate as _evaluate
from diptych.benchmarks.tasks import DEFAULT
from diptych.comparison.run import Comparison, run_comparison
from diptych.config.overrides import parse_overrides
from diptych.config.recipe import Recipe, load_recipe
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.data.source import Source
from diptych.data.sources import open_source
from diptych.inference.load import load
from diptych.report import build_report
from diptych.training.loop import Progress, Run
from diptych.training.loop import train as _train

__all__ = ["compare", "evaluate", "load", "open_source", "train"]


def train(
    recipe: str | Path,
    data: str | None = None,
    budget: str | None = None,
    out: str | Path | None = None,
    set: dict[str, Any] | Sequence[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train a recipe (a name, a YAML file or a run directory) and return the run.

    data: a data address such as ``folder:photos/``; budget: ``10m``, ``200k samples`` …; out: default ``runs/<recipe>``;
    set: overrides by dotted key.
    """
    overrides = dict(set) if isinstance(set, dict) else list(set or ())
    checked, path = recipe_of(recipe, with_common(overrides, data, budget), out, resume)
    return _train(checked, path, resume=resume, progress=progress)


def recipe_of(
    recipe: str | Path, overrides: dict[str, Any] | list[str], out: str | Path | None, resume: bool
) -> tuple[Recipe, Path]:
    """The checked recipe and the run's directory; to resume, what the run in it was started with."""
    checked = load_recipe(str(recipe), overrides)
    path = Path(out or f"runs/{checked.name}")
    saved = path / "recipe.yaml"
    if not resume or not saved.is_file():
        return checked, path
    started = load_recipe(str(saved), overrides)
    if started.name != checked.name:
        raise DiptychError(f"{path} holds a run of '{started.name}', not of '{checked.name}'; choose another --out")
    return started, path


def with_common(overrides: dict[str, Any] | list[str], data: str | None, budget: str | None) -> dict[str, Any]:
    """Overrides, together with those that have an argument of their own. The latter's values are texts, since YAML would read an
    address that ends in a colon as a mapping.
    """
    common = {k: v for k, v in (("data.train", data), ("budget", budget)) if v is not None}
    given = parse_overrides(overrides)
    return {**common, **given}


def evaluate(
    model: str | Path | Model,
    data: str | Source | None,
    tasks: Sequence[str] = DEFAULT,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Summary:
    """Judge a model, ours by path or any other with the capabilities, on the test part of the data.

    data: None if all tasks read files of their own (``pope?file=…``).
    out: where summary.json and the per-item records go; default: ``evaluation/`` in the run directory (of a model that
    is not ours: in ``runs/<its address>``).
    overwrite: delete what the folder holds of another model or of other data, which is refused otherwise.
    """
    own = out is None
    if isinstance(model, str | Path):
        out = out or run_directory(model) / "evaluation"
        model = load(model)
    source = open_source(data).split("test") if isinstance(data, str) else data
    folder, key = Path(out) if out else None, getattr(model, "key", None)
    return _evaluate(model, source, list(tasks), folder, key=key, own=own, overwrite=overwrite)


def run_directory(address: str | Path) -> Path:
    """The folder for the results of a model's evaluation."""
    path = Path(address)
    own = path.is_dir() and path.parent.name != "checkpoints"  # a checkpoint holds only what a run needs to resume
    return path if own else Path("runs") / re.sub(r"[^\w.-]+", "-", str(address)).strip("-.")


def compare(
    recipes: Sequence[str],
    data: str,
    budget: str,
    seeds: int = 1,
    out: str | Path = "runs/compare",
    jobs: int | None = None,
    set: Sequence[str] = (),
    tasks: Sequence[str] = DEFAULT,
    eval_data: str | None = None,
) -> Path:
    """Train recipes on the same data under the same budget, judge them on the same items, return the report's path."""
    asked = Comparison(list(recipes), data, budget, seeds, Path(out), jobs, list(set), list(tasks), eval_data)
    return run_comparison(asked, build_report)
