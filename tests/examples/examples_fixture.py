"""Examples by name: their modules on the path, their recipes, one step's losses and gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import diptych
from diptych.config.recipe import load_recipe
from diptych.core.files import read_jsonl
from diptych.training.distributed import Cluster
from diptych.training.flops import FlopMeter
from diptych.training.gradient import BatchGradient, Pieces, Share
from diptych.training.start.setup import Setup, set_up, training_loader

EXAMPLES = Path(__file__).parents[2] / "examples"


def use(name: str) -> str:
    """Puts an example on the path; returns that of its recipe."""
    folder = EXAMPLES / name
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return str(folder / "recipe.yaml")


def little(recipe: str, *overrides: str) -> Setup:
    """What training starts from, with small batches and without bf16."""
    return set_up(load_recipe(recipe, ["stages.0.batch_size=8", "precision=fp32", "device=cpu", *overrides]))


def step(setup: Setup, micro: int | None) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and gradients of the first step, the batch taken at once or in micro-batches."""
    stage = setup.recipe.stages[0]
    both = torch.nn.ModuleList([setup.model.train(), setup.objectives])
    both.zero_grad()
    loader = training_loader(setup, stage, setup.source)
    weights = {name: spec.weight for name, spec in stage.objectives.items()}
    objectives: Any = {name: setup.objectives[name] for name in stage.objectives}
    pieces = Pieces(Share(loader, 0, Cluster(), micro), 0)
    taken = BatchGradient(setup.model, Cluster(), False, 0, FlopMeter())(0, pieces, objectives, weights)
    gradients = {n: p.grad.clone() for n, p in both.named_parameters() if p.grad is not None}
    return {n: float(x) for n, x in taken.losses.items()}, gradients


def same_in_pieces(setup: Setup, micro: int) -> None:
    """Asserts that losses and gradients do not depend on how the batch is cut."""
    (losses, gradients), (in_pieces, pieces) = step(setup, None), step(setup, micro)
    assert losses.keys() == in_pieces.keys() and gradients.keys() == pieces.keys() and gradients
    for name, loss in losses.items():
        assert abs(loss - in_pieces[name]) < 1e-4 * max(1, abs(loss)), (name, loss, in_pieces[name])
    for name, gradient in gradients.items():
        torch.testing.assert_close(pieces[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def alone_and_in_two(name: str, out: Path, *overrides: str, data: str = "") -> None:
    """Asserts that ``diptych train --processes 2`` logs the losses of one process."""
    paths = [EXAMPLES / name, Path(__file__).parent, Path(diptych.__file__).parents[1]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    for processes in (1, 2):
        words = [
            sys.executable,
            "-m",
            "diptych.cli",
            "train",
            str(EXAMPLES / name / "recipe.yaml"),
            "--out",
            str(out / str(processes)),
        ]
        words += ["--budget", "24 samples", *(["--data", data] if data else []), *(["--processes", "2"] if processes == 2 else [])]
        for override in ("stages.0.batch_size=8", "precision=fp32", "stages.0.warmup=2", *overrides):
            words += ["--set", override]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    alone, two = (read_jsonl(out / n / "metrics.jsonl") for n in ("1", "2"))
    pairs = [(a["losses"], b["losses"]) for a in alone for b in two if a["step"] == b["step"]]
    assert pairs
    for a, b in pairs:
        assert all(abs(a[n] - b[n]) < 1e-3 * max(1, abs(a[n])) for n in a), (a, b)
