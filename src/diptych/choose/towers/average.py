"""Averages of runs' weights: WiSE-FT's mean of before and after, and greedy soups (Wortsman et al. 2022, arXiv:2203.05482).

A run with low-rank adapters counts with these merged into its towers. The result is a run directory.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.config.recipe import Recipe
from diptych.core.errors import DiptychError, counted
from diptych.core.files import read_json_or, write_json, write_text
from diptych.inference.run import TrainedModel
from diptych.models.vlm import VLM
from diptych.training.checkpoint import Checkpoint, checkpoints, restored
from diptych.training.run_files import RunFiles
from diptych.training.start.setup import pick_device

State = dict[str, Tensor]
COPIED = ("tokenizer.json", "model.json", "environment.json")


@dataclass(frozen=True)
class Soup:
    """The members of a soup, as numbers of the runs that were given, each run's own score and the soup's."""

    members: list[int]
    alone: list[float]
    score: float


@dataclass
class Weights:
    """The weights of a model and of its objectives, and the recipe that builds them."""

    recipe: Recipe
    model: State
    objectives: State


def weights_of(run: Path) -> Weights:
    """A run's averaged weights, its adapters merged. DiptychError if there is no run, or its adapters cannot be merged."""
    if not RunFiles(run).exists():
        raise DiptychError(f"{run} is not a run; a run is a directory that `diptych train` or `diptych adapt` made")
    found = restored(run)
    return merged(found.recipe, found.model, found.objectives)


def merged(recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> Weights:
    """The weights of a model, its adapters merged, and the recipe without adapters and teachers."""
    if model.adapters:
        model.merge_adapters()
        tree = recipe.model_dump(mode="json", by_alias=True)
        for stage in tree["stages"]:
            stage["train"] = "all"
            stage["rates"] = {}
        recipe = Recipe.model_validate({**tree, "adapters": {}})
    state = {k: v for k, v in model.saved_state().items() if not k.startswith("teachers.")}
    return Weights(recipe, _copy(state), _copy(objectives.state_dict()))


def _copy(state: Mapping[str, Tensor]) -> State:
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def mean_of(weights: Sequence[Weights], shares: Sequence[float] = ()) -> Weights:
    """The mean of several models' weights, in float32; shares: of each, 1 together (default: equal ones). Whole numbers, such as
    counts, are the last one's. DiptychError if they have different weights.
    """
    shares = list(shares) or [1 / len(weights)] * len(weights)
    result = Weights(weights[0].recipe, {}, {})
    for kind in ("model", "objectives"):
        states: list[State] = [getattr(w, kind) for w in weights]
        if odd := _difference(states):
            raise DiptychError(f"the runs are not of one model: {odd}; average runs that began from the same weights")
        for name, first in states[0].items():
            values = [state[name] for state in states]
            if not first.is_floating_point():
                getattr(result, kind)[name] = values[-1].clone()
                continue
            total = sum(share * value.double() for share, value in zip(shares, values, strict=True))
            getattr(result, kind)[name] = torch.as_tensor(total).to(first.dtype)
    return result


def _difference(states: Sequence[State]) -> str:
    """Which weight differs in name or shape; "" if none does."""
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in states]
    for other in shapes[1:]:
        if odd := sorted(name for name in shapes[0].keys() | other.keys() if shapes[0].get(name) != other.get(name)):
            return f"{odd[0]} is {shapes[0].get(odd[0], 'absent')} in one and {other.get(odd[0], 'absent')} in another"
    return ""


def model_of(weights: Weights, run: Path) -> TrainedModel:
    """A model with these weights; run: one of the same shape, whose tokenizer it has."""
    found = restored(run)
    if found.model.adapters:
        found.model.merge_adapters()
    found.model.load_state_dict(weights.model, strict=False)
    found.objectives.load_state_dict(weights.objectives)
    device = pick_device("auto")
    return TrainedModel(run.name, weights.recipe, found.model.to(device), found.objectives.to(device), device)


def write_run(out: Path, weights: Weights, run: Path, note: dict[str, Any]) -> Path:
    """A run directory with these weights, and the tokenizer and notes of a run of the same shape. note: how they were made, for
    environment.json. DiptychError rather than overwrite a run.
    """
    if checkpoints(out / "checkpoints"):
        raise DiptychError(f"{out} holds a run already; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(run / name, out / name)
    write_json(out / "environment.json", {**read_json_or(out / "environment.json", {}), "command": sys.argv, "average": note})
    write_text(out / "recipe.yaml", weights.recipe.anchored().to_yaml())
    spent: dict[str, Any] = RunFiles(run).spent()
    write_json(out / "spent.json", spent)
    parts = ("seconds", "samples", "tokens", "flops", "steps")
    state = {
        "step": int(spent.get("steps", 0)),
        "stage": weights.recipe.stages[-1].name,
        "stage_first_step": 0,
        "spent": {name: spent[name] for name in parts if name in spent},
        "best": None,
    }
    Checkpoint(weights.model, weights.objectives, {}, {}, state).save(out / "checkpoints")
    return out


def greedy(alone: Sequence[float], together: Callable[[list[int]], float]) -> tuple[list[int], float]:
    """The members of a greedy soup, and its score (recipe 1): from the best on, each in the order of its own score joins if the
    mean of all members does not score worse with it.

    alone: each one's score; together: the score of the mean of these.
    """
    order = sorted(range(len(alone)), key=lambda i: -alone[i])
    members, best = order[:1], alone[order[0]]
    for i in order[1:]:
        score = together([*members, i])
        if score >= best:
            members, best = [*members, i], score
    return members, best


def soup(
    runs: Sequence[Path],
    score: Callable[[TrainedModel], float],
    out: Path,
    progress: Callable[[str], None] = lambda line: None,
) -> Soup:
    """Write the greedy soup of runs to ``out``. score: of a model on held-out pictures of the training data.

    DiptychError for fewer than two runs, or runs of different models.
    """
    if len(runs) < 2:
        raise DiptychError(f"a soup needs two runs or more, not {counted(len(runs), 'run')}")
    if checkpoints(out / "checkpoints"):
        raise DiptychError(f"{out} holds a run already; choose another --out")
    weights = [weights_of(run) for run in runs]
    mean_of(weights)  # before anything is scored: whether they are of one model
    alone = []
    for run, own in zip(runs, weights, strict=True):
        alone.append(score(model_of(own, run)))
        progress(f"{run}: {alone[-1]:.4f}")

    def together(members: list[int]) -> float:
        """The score of the mean of these runs."""
        found = score(model_of(mean_of([weights[i] for i in members]), runs[members[0]]))
        progress(f"with {runs[members[-1]]}: {found:.4f}")
        return found

    members, best = greedy(alone, together)
    made = mean_of([weights[i] for i in members])
    note = {"runs": [str(runs[i]) for i in members], "score": best, "alone": {str(r): s for r, s in zip(runs, alone, strict=True)}}
    write_run(out, made, runs[members[0]], note)
    return Soup(members, alone, best)
