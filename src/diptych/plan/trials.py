"""Short trials of one stage, each in a process of its own: some steps at a batch size, or batches without a model.

A process of its own gives a clean peak of memory, and one that does not fit ends alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from diptych.comparison.jobs import event_of, main_of_job, send
from diptych.config.recipe import Recipe, load_recipe
from diptych.core.errors import DiptychError

STEPS, SECONDS = 20, 8.0  # of a trial, which ends at the first of both; the first step does not count
LOADER_SECONDS = 2.0


@dataclass(frozen=True)
class Trial:
    """What some steps at one batch size took.

    step: seconds a step, without the first one. spread: the relative difference of its slower from its faster half. peak: bytes of
    memory that the process had at most. flops: operations a step.
    """

    batch: int
    step: float
    spread: float
    flops: float
    tokens: float
    peak: int
    parameters: int
    trainable: int
    steps: int


def alone(recipe: Recipe, stage: int, batch: int | None = None) -> dict[str, Any]:
    """The recipe with one of its stages only, as plain data; batch: instead of the stage's own."""
    content: dict[str, Any] = yaml.safe_load(recipe.to_yaml())
    only = content["stages"][stage]
    content["stages"] = [only if batch is None else {**only, "batch_size": batch}]
    return {**content, "trackers": [], "checkpoints": {}, "validation": None}


def run_trial(recipe: Recipe, stage: int, batch: int, threads: int) -> Trial:
    """Trains a stage for some steps at a batch size. DiptychError with the process's own words if it fails, or is killed."""
    found = _child({"kind": "steps", "recipe": alone(recipe, stage, batch), "threads": threads})
    return Trial(batch, *(found[key] for key in ("step", "spread", "flops", "tokens", "peak", "parameters", "trainable", "steps")))


def loader_rate(recipe: Recipe, stage: int, threads: int) -> float:
    """Samples a second that the loader gives if nothing else runs."""
    return float(_child({"kind": "loader", "recipe": alone(recipe, stage), "threads": threads})["samples"])


def _child(given: dict[str, Any]) -> dict[str, Any]:
    count = str(given["threads"])
    environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "diptych.plan.trials", json.dumps(given)]
    done = subprocess.run(command, capture_output=True, env=environment, text=True, check=False)
    events = [event for line in done.stdout.splitlines() if (event := event_of(line)) and event["phase"] == "measured"]
    if done.returncode == -9:
        raise MemoryError("the process was killed, as the system does when memory ends")
    if done.returncode or not events:
        errors = [event["error"] for line in done.stdout.splitlines() if (event := event_of(line)) and "error" in event]
        raise DiptychError(errors[-1] if errors else f"a trial failed:\n{done.stderr.strip()[-2000:]}")
    return events[-1]


def in_process(given: dict[str, Any]) -> None:
    """The process that a trial starts."""
    import torch

    torch.set_num_threads(int(given["threads"]))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(given["recipe"], sort_keys=False), encoding="utf-8")
        if given["kind"] == "loader":
            send(phase="measured", samples=_loaded(load_recipe(str(path))))
            return
        recipe = load_recipe(str(path), [f"budget={{steps: {STEPS}, seconds: {SECONDS}}}"])
        send(phase="measured", **_steps(recipe, Path(folder) / "run"))


def _steps(recipe: Recipe, out: Path) -> dict[str, Any]:
    from diptych.training.loop import train

    rows: list[dict[str, Any]] = []
    spent = train(recipe, out, progress=lambda row: rows.append(row) if "seconds" in row else None).spent
    marks = [(row["step"], row["seconds"]) for row in rows] + [(spent["steps"], spent["seconds"])]
    marks = sorted(dict(marks).items())
    first = marks[0] if len(marks) > 1 else (0, 0.0)
    step = (marks[-1][1] - first[1]) / (marks[-1][0] - first[0])
    pieces = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(marks)]
    return {
        "step": step,
        "spread": (max(pieces) - min(pieces)) / step if len(pieces) > 1 else 0.0,
        "flops": spent["flops"] / spent["steps"],
        "tokens": spent["tokens"] / spent["steps"],
        "peak": spent["peak_memory_bytes"],
        "parameters": spent["parameters"],
        "trainable": spent["trainable_parameters"],
        "steps": spent["steps"],
    }


def _loaded(recipe: Recipe) -> float:
    import torch

    from diptych.training.start.setup import set_up, stage_source, training_loader

    setup = set_up(recipe, None, torch.device("cpu"), None)
    stage = recipe.stages[0]
    loader = training_loader(setup, stage, stage_source(setup, stage))
    size = min(stage.micro_batch or stage.batch_size, stage.batch_size)
    stream = loader.stream(0, 0, stage.batch_size, size, ahead=False, pin=False)
    next(stream)  # workers start
    began, samples = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < LOADER_SECONDS or not samples:
        samples += next(stream).size
    stream.close()  # type: ignore[attr-defined]
    return samples / max(passed, time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main_of_job(in_process))
