"""Checkpoints: everything a run needs to resume as if it had never stopped, in safetensors and JSON."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych.config.recipe import Recipe, load_recipe
from diptych.core.errors import DiptychError, nearest
from diptych.core.files import check_format, read_json, write_atomically, write_json
from diptych.data.text import tokenizer_class
from diptych.models.pretrained.tokenizer import kept_in
from diptych.models.vlm import VLM, build_model
from diptych.objectives import build_objectives

FORMAT = 2  # of checkpoints; counts up when older programs would misread them
BEST = "best.json"  # next to the checkpoints, names the best of them


@dataclass
class Checkpoint:
    """Everything that a run needs to resume, in memory."""

    model: dict[str, Tensor]
    objectives: dict[str, Tensor]
    ema: dict[str, Tensor]  # empty if the stage does not average
    optimizer: dict[str, Tensor]  # moments and step counts, by parameter
    state: dict[str, Any]  # plain data: step, stage, spent …

    def save(self, root: Path, keep: int = 2) -> Path:
        """Write ``root/step-########``; keep the last few and the best. A full disk leaves the earlier ones as they were."""
        path = root / f"step-{self.state['step']:08d}"
        try:
            write_atomically(path, self._write)
        except (OSError, SafetensorError) as error:
            raise DiptychError(f"cannot write the checkpoint {path}: {error}; earlier checkpoints are intact") from error
        best = best_checkpoint(root)
        every = checkpoints(root)
        here = every.index(path) + 1
        for old in [*every[:here][:-keep], *every[here:]]:  # later ones are only those that could not be read when the run resumed
            if old != best:
                shutil.rmtree(old, ignore_errors=True)
        return path

    def _write(self, path: Path) -> None:
        path.mkdir()
        for name, group in (
            ("model", self.model),
            ("objectives", self.objectives),
            ("ema", self.ema),
            ("optimizer", self.optimizer),
        ):
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in group.items()}, path / f"{name}.safetensors")
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random |= {f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
        save_file(random, path / "random.safetensors")
        write_json(path / "state.json", {"format": FORMAT, **self.state})

    @classmethod
    def load(cls, path: Path, restore_random: bool = True) -> Checkpoint:
        """A checkpoint from its directory. DiptychError if it cannot be read, or a newer program wrote it."""
        try:
            state = read_json(path / "state.json")
        except Exception as error:
            raise DiptychError(f"cannot read the checkpoint {path}: {error}") from error
        check_format(state.get("format", 1), FORMAT, str(path))
        try:
            groups = {n: load_file(path / f"{n}.safetensors") for n in ("model", "objectives", "ema", "optimizer", "random")}
        except Exception as error:
            raise DiptychError(f"cannot read the checkpoint {path}: {error}") from error
        if restore_random:
            torch.set_rng_state(groups["random"]["cpu"])
            if torch.cuda.is_available() and "cuda0" in groups["random"]:
                torch.cuda.set_rng_state_all([v for k, v in sorted(groups["random"].items()) if k != "cpu"])
        if state.get("format", 1) < 2:
            groups = {n: {name_of_today(k): v for k, v in group.items()} for n, group in groups.items()}
        return cls(groups["model"], groups["objectives"], groups["ema"], groups["optimizer"], state)


def name_of_today(name: str) -> str:
    """The present name of a weight, or of its optimizer state, that had another name in the first edition."""
    for side in ("image", "text"):
        name = re.sub(rf"^(0\.)?{side}_projection\.", rf"\g<1>parts.space.{side}.", name)
    return name


def newest(root: Path) -> tuple[Path, Checkpoint] | None:
    """The last checkpoint that can be read; a damaged one (power failure) is reported and skipped."""
    failed: DiptychError | None = None
    for path in reversed(checkpoints(root)):
        try:
            return path, Checkpoint.load(path)
        except DiptychError as error:
            print(f"note: {error}; trying the previous one", file=sys.stderr)
            failed = error
    if failed:
        raise failed
    return None


def note_best(root: Path, path: Path, loss: float) -> None:
    """Record this checkpoint as the one with the lowest validation loss."""
    write_json(root / BEST, {"checkpoint": path.name, "validation_loss": loss})


def best_checkpoint(root: Path) -> Path | None:
    """The one with the lowest validation loss, if the run validated."""
    noted = root / BEST
    path = root / read_json(noted)["checkpoint"] if noted.is_file() else None
    return path if path and path.is_dir() else None


def find_checkpoint(root: Path, name: str) -> Path:
    """The checkpoint called ``last``, ``best`` or ``step-########`` in the directory ``root`` of a run."""
    result = {p.name: p for p in checkpoints(root)}
    if not result:
        raise DiptychError(f"{root.parent}: no checkpoint; a run directory holds recipe.yaml and checkpoints/")
    best = best_checkpoint(root)
    result |= {"last": checkpoints(root)[-1]} | ({"best": best} if best else {})
    if name not in result:
        why = "; a run keeps its best only with `validation`" if name == "best" else nearest(name, result)
        raise DiptychError(f"{root} has no checkpoint '{name}'{why}")
    return result[name]


def load_weights(path: Path, checkpoint: Checkpoint, model: VLM, objectives: nn.ModuleDict, averaged: bool = False) -> None:
    """Put a checkpoint's weights into a model; with ``averaged`` the averages, if it has any.

    Raises DiptychError if the two do not fit each other. Weights that come from packages are not in checkpoints.
    """
    state = {f"0.{k}": v for k, v in checkpoint.model.items()} | {f"1.{k}": v for k, v in checkpoint.objectives.items()}
    if averaged:
        state |= checkpoint.ema
    if not model.teachers:  # for scoring
        state = {k: v for k, v in state.items() if not k.startswith("0.teachers.")}
    try:
        missing, unexpected = nn.ModuleList([model, objectives]).load_state_dict(state, strict=False)
    except RuntimeError as error:  # sizes
        raise DiptychError(f"{path} does not fit its recipe: {error}") from error
    model.note_restarted(checkpoint.model)
    held = {f"0.{name}" for name in model.saved_state()} | {f"1.{name}" for name in objectives.state_dict()}
    lacking = sorted(held & set(missing))
    if unexpected or lacking:
        raise DiptychError(f"{path} does not fit its recipe: missing {lacking[:3]}, unexpected {unexpected[:3]}")


@dataclass
class Restored:
    """A run's model with its learned weights."""

    recipe: Recipe
    model: VLM
    objectives: nn.ModuleDict
    checkpoint: Path


def restored(run: Path, checkpoint: str = "last", averaged: bool = True) -> Restored:
    """The model of a run directory on the CPU, and its objectives for scoring; without teachers. checkpoint: ``last``, ``best`` or
    ``step-########``; averaged: its averaged weights where it keeps any.
    """
    path = find_checkpoint(run / "checkpoints", checkpoint)
    recipe = load_recipe(str(run / "recipe.yaml"))
    own = tokenizer_class(recipe.data.tokenizer.kind)
    tokenizer = own(run / "tokenizer.json", recipe.data.tokenizer.max_length) if own else None
    kept = None if own else kept_in(run / "tokenizer.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build_model(recipe, tokenizer, read_json(run / "model.json")["image_size"], kept=kept)
        objectives = build_objectives(recipe, model, training=False)
    load_weights(path, Checkpoint.load(path, restore_random=False), model, objectives, averaged)
    return Restored(recipe, model, objectives, path)


def checkpoint_key(path: Path) -> str:
    """A hash of the weights."""
    digest = hashlib.blake2b(digest_size=12)
    for name in ("model", "objectives", "ema"):
        digest.update((path / f"{name}.safetensors").read_bytes())
    return digest.hexdigest()


def checkpoints(root: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(p for p in root.glob("step-*") if re.fullmatch(r"step-\d+", p.name) and (p / "state.json").is_file())
