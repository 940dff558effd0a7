"""From a model, a way and labelled pictures to a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.choose.select import balanced_accuracy, log_loss
from diptych.choose.towers.average import Weights, mean_of, merged, model_of, weights_of, write_run
from diptych.choose.towers.base import TowerWay
from diptych.choose.towers.heads import class_head, labelled_pictures, note_classes
from diptych.choose.towers.ways import WiseFt
from diptych.config.budget import Budget, parse_budget
from diptych.config.recipe import LIBRARY, Recipe
from diptych.core.errors import DiptychError
from diptych.core.registry import check_options
from diptych.data.source import Source
from diptych.data.sources import open_source
from diptych.data.subsets.shots import few_shots
from diptych.inference.adapted import FILE
from diptych.training.checkpoint import checkpoints
from diptych.training.loop import Progress, train
from diptych.training.run_files import RunFiles
from diptych.training.start.setup import set_up

ALPHAS = tuple(round(0.1 * k, 1) for k in range(11))
BEFORE = "fine-tuned"  # the folder, in a run of WiSE-FT, of the run whose weights it averages


def made(way: type[TowerWay], settings: Mapping[str, Any] | None = None) -> TowerWay:
    """A way with these settings. DiptychError for one that it does not have."""
    return way(**check_options(way, dict(settings or {}), f"--way {way.name}"))


def tower_recipe(
    model: str,
    way: type[TowerWay] | TowerWay,
    data: str,
    settings: Mapping[str, Any] | None = None,
    *,
    budget: str | Budget | None = None,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe by which a way adapts a model.

    model: ``hf:PATH`` of a CLIP or SigLIP, or a run with two towers. data: the address of the training data, with classes
    (``shots:`` takes a few pictures of each) or, for a way that learns captions, with captions. settings: of the way; budget: at
    most this much, and never more than the paper's length; overrides: of the recipe, by dotted key.

    Raises DiptychError for a model that the way cannot adapt, data without classes, and unknown settings.
    """
    chosen = way if isinstance(way, TowerWay) else made(way, settings)
    source = open_source(data).split("train")
    classes = getattr(source, "classes", None) or ()
    if chosen.learns == "classes" and len(classes) < 2:
        raise DiptychError(
            f"{data}: --way {chosen.name} needs two classes or more, found {len(classes)}; read them by classes:PATH"
        )
    if not len(source):
        raise DiptychError(f"{data}: the training part has no pictures")
    limit = parse_budget(budget) if isinstance(budget, str) else budget
    opened = replace(chosen.opened(model), classes=tuple(classes))
    tree = chosen.recipe(opened, data, len(source), len(classes), limit)
    return LIBRARY.check({**tree, "seed": seed}, f"--way {chosen.name}", dict(overrides or {}))


def fit(
    model: str,
    way: type[TowerWay] | TowerWay,
    data: str,
    out: Path,
    *,
    shots: int | None = None,
    seed: int = 0,
    budget: str | Budget | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Adapt a model, and return the finished run (``out``). An interrupted one goes on where it stopped; a finished one is
    returned.

    shots: pictures of each class, of the training part, chosen by the seed; None: all. The other arguments: as for
    ``tower_recipe``. The test part of the data is not read. A run that learned classes names them (adapted.json beside it).
    """
    chosen = way if isinstance(way, TowerWay) else made(way, settings)
    of_classes = chosen.learns == "classes"
    address = (
        few_shots(data, shots or 0, seed, chosen.template, chosen.hold) if of_classes and not data.startswith("shots:") else data
    )
    recipe = tower_recipe(model, chosen, address, budget=budget, seed=seed, overrides=overrides)
    place = out / BEFORE if isinstance(chosen, WiseFt) else out
    _same(place, recipe)
    if not RunFiles(place).finished():
        train(recipe, place, resume=True, progress=progress)
    if isinstance(chosen, WiseFt) and not checkpoints(out / "checkpoints"):
        _interpolate(chosen, recipe, place, out)
    if of_classes and not (out / FILE).is_file():
        names: list[str] = open_source(address).classes  # type: ignore[attr-defined]
        note_classes(out, names, {"data": data, "shots": shots, "seed": seed}, chosen.head)
    return out


def _same(run: Path, recipe: Recipe) -> None:
    """DiptychError if the folder holds a run of another recipe."""
    if not RunFiles(run).exists():
        return
    there, now = RunFiles(run).recipe(), recipe.anchored()
    for key in ("name", "weights", "seed"):
        if (was := getattr(there, key)) != getattr(now, key):
            raise DiptychError(f"{run} holds a run with {key} {was}, not {getattr(now, key)}; choose another --out")
    if there.data.train != now.data.train:
        raise DiptychError(f"{run} holds a run on {there.data.train}, not on {now.data.train}; choose another --out")


def _interpolate(way: WiseFt, recipe: Recipe, run: Path, out: Path) -> None:
    """Write the mean of a run's weights before and after its training."""
    setup = set_up(recipe)
    before = merged(recipe, setup.model.cpu(), setup.objectives.cpu())
    after = weights_of(run)
    alpha: float
    tried: list[dict[str, float]] = []
    if way.alpha == "held-out":
        held = open_source(recipe.data.train).split("validation")
        alpha, tried = chosen_alpha(before, after, run, held) if len(held) else (0.5, [])
    else:
        alpha = float(way.alpha)
    write_run(out, mean_of([before, after], [1 - alpha, alpha]), run, {"alpha": alpha, "tried": tried, "run": str(run)})


def chosen_alpha(
    before: Weights, after: Weights, run: Path, held: Source, alphas: Sequence[float] = ALPHAS
) -> tuple[float, list[dict[str, float]]]:
    """The share of the weights after training with the highest balanced accuracy on held-out pictures, then the least loss; with
    what each share gave.
    """
    images, y = labelled_pictures(held)
    names: list[str] = held.classes  # type: ignore[attr-defined]
    tried = []
    for alpha in alphas:
        model = model_of(mean_of([before, after], [1 - alpha, alpha]), run)
        logits = class_head(model, names).logits_of(model, images)
        tried.append({"alpha": alpha, "accuracy": balanced_accuracy(logits, y), "loss": log_loss(logits, y)})
    best = max(tried, key=lambda row: (round(row["accuracy"], 12), -row["loss"]))
    return best["alpha"], tried
