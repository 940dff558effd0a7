"""``backbones:`` of a recipe: runs of other recipes that are trained first, once, and give this run the weights of single parts.

``backbones: {lm: {recipe: lm, budget: 40k samples}}`` trains the recipe ``lm`` into ``backbones/lm-HASH`` beside the run, unless it
is there, and starts the part ``lm`` from its part ``lm``. The hash is of the resolved recipe, so all runs that need the same
backbone share it, whatever their own seeds and budgets. Another version's hash can differ for the same recipe, which may have had
fewer fields: a run whose recipe is the same one as it is read today counts too. What a backbone cost stands in ``spent.json`` of
each run that uses it, in an entry of its own: it is not part of the run's budget.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from diptych.config.recipe import Backbone, Recipe, load_recipe
from diptych.config.variants import MARK
from diptych.core.errors import DiptychError, Interrupted
from diptych.data.sources import open_source
from diptych.training.run_files import RunFiles

Progress = Callable[[dict[str, Any]], None]
FOLDER = "backbones"  # beside the runs
TRAIN = "{train}"  # in the address of a backbone's data: the run's own


@dataclass(frozen=True)
class Planned:
    """The run that gives a part its weights. recipe: what trains it; None: it exists already."""

    part: str
    path: Path
    recipe: Recipe | None = None


def folder_beside(run: Path) -> Path:
    """Where the backbones of a run are: next to it, so that its neighbours find them."""
    return run.absolute().parent / FOLDER


def planned(recipe: Recipe, folder: Path) -> dict[str, Planned]:
    """The backbones of a recipe by part, in the folder ``folder``. DiptychError if one of their recipes is wrong."""
    return {part: _planned(part, spec, recipe, folder) for part, spec in recipe.backbones.items()}


def _planned(part: str, spec: Backbone, recipe: Recipe, folder: Path) -> Planned:
    where = f"backbones.{part}"
    if spec.run is not None:
        if not RunFiles(Path(spec.run).expanduser()).exists():
            raise DiptychError(f"{where}.run: there is no run at '{spec.run}'")
        return Planned(part, Path(spec.run).expanduser())
    given: dict[str, Any] = {"size": recipe.size, "precision": recipe.precision, "device": recipe.device}
    given["data.train"] = address(spec.data, recipe.data.train)
    if recipe.data.image_size:
        given["data.image_size"] = recipe.data.image_size
    if spec.budget is not None:
        given["budget"] = spec.budget
    own = load_recipe(str(spec.recipe), given | spec.set)
    if part not in own.parts:
        raise DiptychError(f"{where}.recipe: '{spec.recipe}' has no part '{part}' (it has: {', '.join(own.parts)})")
    return Planned(part, _folder_of(own, folder), own)


def _folder_of(recipe: Recipe, folder: Path) -> Path:
    """The run of a recipe in a folder: that of an earlier version, where there is one, or a new one."""
    path = folder / f"{recipe.name}-{digest(recipe)}"
    if RunFiles(path).exists():
        return path
    wanted, same = recipe.anchored().learned(), []
    for other in sorted(folder.glob(f"{escape(recipe.name)}-*")):
        try:
            if RunFiles(other).exists() and RunFiles(other).recipe().learned() == wanted:
                same.append(other)
        except DiptychError:  # of a newer version, or damaged: not this one
            continue
    return next((other for other in same if RunFiles(other).finished()), same[0] if same else path)


def address(data: str, train: str) -> str:
    """The data of a backbone: ``{train}`` stands for the run's address, percent-encoded within another address."""
    return train if data == TRAIN else data.replace(TRAIN, quote(train, safe=":/,{}*"))


def check_data(recipe: Recipe, backbones: Mapping[str, Planned]) -> None:
    """Raises DiptychError, before anything is trained, where a backbone that is not there yet could not learn what it is for from
    its data (``unsuited`` of the source), or its data does not have what it reads.
    """
    for part, each in backbones.items():
        if each.recipe is None or RunFiles(each.path).finished():
            continue
        reason = getattr(open_source(each.recipe.data.train), "unsuited", str)()
        if not reason:
            continue
        name, mark, variant = recipe.name.partition(MARK)
        plain = f"; or take '{name}', the recipe without {mark}{variant}" if variant else ""
        raise DiptychError(
            f"backbones.{part}.data: {reason}. Let it learn elsewhere: --set 'backbones.{part}.data=ADDRESS', for example "
            f"facts:scenes:medium (what it then knows are those scenes), or '{TRAIN}' for the captions alone{plain}"
        )


def digest(recipe: Recipe) -> str:
    """Ten hexadecimal digits of everything in a recipe that decides what is learned."""
    return hashlib.sha256(json.dumps(recipe.learned(), sort_keys=True).encode()).hexdigest()[:10]


def train_backbones(recipe: Recipe, folder: Path, progress: Progress) -> dict[str, Path]:
    """The runs of a recipe's backbones by part, after those that are not there have been trained.

    Raises Interrupted, with everything saved, on Ctrl-C or SIGTERM.
    """
    from diptych.training.loop import train

    found = planned(recipe, folder)
    check_data(recipe, found)
    for part, each in found.items():
        if each.recipe is None or RunFiles(each.path).finished():
            continue
        name = each.recipe.name
        with _alone(each.path):
            if RunFiles(each.path).finished():  # trained by another process meanwhile
                continue
            if int(os.environ.get("RANK", "0")) == 0:
                print(f"note: {_announced(each)}", file=sys.stderr)
            try:
                train(each.recipe, each.path, resume=True, progress=_progress_of(name, progress))
            except Interrupted as error:
                why = str(error).partition(":")[0]
                raise Interrupted(f"{why}: the backbone {name} is saved; run the same command again") from None
            except DiptychError as error:
                raise DiptychError(
                    f"backbones.{part} ({name}): {error}; other data for it alone: --set backbones.{part}.data=ADDRESS"
                ) from None
    return {part: each.path for part, each in found.items()}


def _progress_of(name: str, progress: Progress) -> Progress:
    """Progress as that of a backbone."""
    return lambda row: progress({**row, "phase": f"backbone {name}"})


def _announced(each: Planned) -> str:
    assert each.recipe is not None
    what = f"{each.recipe.name} ({each.recipe.budget}, on {each.recipe.data.train})"
    return f"parts.{each.part} is pretrained: {what} is trained first, once, into {each.path}"


def _alone(path: Path) -> AbstractContextManager[Any]:
    """While one process trains a backbone, others that need it wait. The processes of one run train it together."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return nullcontext()
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.parent / f".{path.name}.lock")


def cost(paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """What the backbones of a run cost, by part, for ``spent.json``; with what their own backbones cost."""
    result = {}
    for part, path in paths.items():
        run = RunFiles(path)
        spent = run.spent()
        result[part] = {
            "recipe": run.recipe().name,
            "run": str(path),
            **{k: spent.get(k) for k in ("seconds", "samples", "steps", "parameters")},
            "flops": spent.get("flops", 0.0) + spent.get("pretraining_flops", 0.0),
        }
    return result
