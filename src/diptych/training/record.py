"""What a run leaves in its directory (docs/runs.md). With several processes only the first one writes; calls of the others do
nothing.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from diptych.config.budget import Spent
from diptych.config.recipe import Recipe, Stage, load_recipe
from diptych.core.errors import DiptychError
from diptych.core.files import append_jsonl, read_json_or, read_jsonl, write_json, write_jsonl, write_text
from diptych.data.notes import compare_data, data_of
from diptych.data.provenance.carbon import Clock
from diptych.data.source import Problem
from diptych.objectives import Objective
from diptych.training.checkpoint import Checkpoint, best_checkpoint, checkpoints, newest, note_best
from diptych.training.distributed import Cluster
from diptych.training.mirror import Mirror
from diptych.training.start.describe import describe, learned_from
from diptych.training.start.setup import Setup
from diptych.training.trackers import Tracker, check_trackers, start_trackers


class Record:
    """The files of a run."""

    def __init__(self, out: Path, recipe: Recipe, cluster: Cluster):
        self.out, self.recipe, self.cluster = out, recipe, cluster
        self.root = out / "checkpoints"
        self.best: float | None = None  # lowest validation loss so far
        spent: dict[str, Any] = read_json_or(out / "spent.json", {})
        self.clock = Clock(float(spent.get("cpu_seconds") or 0.0))  # a resumed run goes on counting
        self.pretraining: dict[str, dict[str, Any]] = spent.get("pretraining", {})  # what backbones cost, by part
        self.trackers: list[Tracker] = []
        check_trackers(recipe.trackers)  # before anything is read or built
        mirror = recipe.checkpoints.mirror
        self.mirror = Mirror(mirror, recipe.checkpoints.keep) if mirror else None

    def open(self, resume: bool) -> tuple[Path, Checkpoint] | None:
        """The checkpoint to resume from, if there is one. Raises DiptychError rather than overwrite an existing run."""
        result = checkpoints(self.root)
        if result and not resume:
            raise DiptychError(f"{self.out} holds a run already; continue with --resume, or choose another --out")
        if resume and self.mirror and self.cluster.first:
            there = self.mirror.steps()
            if there and (not result or there[-1] > result[-1].name):
                self.mirror.pull(self.root)
        self.cluster.wait()
        last = newest(self.root) if resume else None
        if last:
            self.best = last[1].state.get("best")
        return last

    def describe(self, setup: Setup, resumed: bool, step: int) -> None:
        """Write the files that define the run, before its first step. Lines of the log after the checkpoint are removed (of a run
        that was killed after it).
        """
        if not self.cluster.first:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        for path in (self.out, self.root):  # unfinished files of a killed process
            for rest in path.glob(".*.tmp"):
                shutil.rmtree(rest, ignore_errors=True) if rest.is_dir() else rest.unlink(missing_ok=True)
        if resumed:
            self._note_changes(setup, step)
            recipe = self.recipe.anchored()  # a resumed run may have been given a larger budget
            write_text(self.out / "recipe.yaml", recipe.to_yaml())
        else:
            describe(setup, self.out)
        for table in setup.neighbours.values():
            table.save(self.out / "neighbours")
        for name in ("metrics.jsonl", "validation.jsonl"):
            log = self.out / name
            if log.is_file():
                write_jsonl(log, [row for row in read_jsonl(log) if row["step"] <= step])

    def _note_changes(self, setup: Setup, step: int) -> None:
        """Say what has changed in the data since the run began, also in environment.json, and whether its order has changed."""
        saved = self.out / "recipe.yaml"
        before, now = (order_of(r) for r in (load_recipe(str(saved)) if saved.is_file() else self.recipe, self.recipe))
        for name, value in before.items():
            if value != now[name]:
                remedy = f"leave {'--seed' if name == 'seed' else name} as it was"
                print(
                    f"note: {name} was {json.dumps(value)} and is {json.dumps(now[name])} now: from step {step} on, samples are "
                    f"drawn in another order, so some of an epoch may be read twice and others not at all; {remedy} to keep "
                    "the order",
                    file=sys.stderr,
                )
        path = self.out / "environment.json"
        environment: dict[str, Any] = read_json_or(path, {})
        sources = data_of(learned_from(setup))
        if notes := compare_data(environment, sources, step):
            print("note: " + "\n  ".join(notes), file=sys.stderr)
            entry = {"step": step, "sources": sources}
            write_json(path, {**environment, "resumed": [*(environment.get("resumed") or []), entry]})

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """Trackers are open for the duration of the context."""
        if self.cluster.first:
            recipe = self.recipe
            self.trackers = start_trackers(recipe.trackers, self.out, recipe.name, recipe.model_dump(mode="json"))
        try:
            yield
        finally:
            for tracker in self.trackers:
                tracker.finish()

    def log(
        self,
        step: int,
        stage: Stage,
        spent: Spent,
        losses: Mapping[str, float],
        rate: float,
        norm: float,
        objectives: Mapping[str, Objective],
    ) -> dict[str, Any]:
        """Write one line of metrics.jsonl, and return it."""
        values = {n: round(v, 5) for n, v in losses.items() if n != "loss"}
        values |= {f"{n}_{k}": round(v, 5) for n, o in objectives.items() for k, v in o.metrics().items()}
        row = {
            "step": step,
            "stage": stage.name,
            "samples": int(spent.samples),
            "seconds": round(spent.seconds, 3),
            "flops": spent.flops,
            "share": round(min(spent.share(self.recipe.budget), 1.0), 5),
            "loss": round(losses["loss"], 5),
            "losses": values,
            "lr": rate,
            "grad_norm": round(norm, 5),
            "samples_per_second": round(spent.samples / max(spent.seconds, 1e-9), 2),
        }
        if self.cluster.first:
            append_jsonl(self.out / "metrics.jsonl", row)
            self._track({"loss": losses["loss"], **{f"losses/{n}": v for n, v in values.items()}, "lr": rate}, step)
        return row

    def validated(self, step: int, loss: float) -> bool:
        """Note a validation loss; returns whether it is the lowest so far."""
        better = self.best is None or loss < self.best
        self.best = loss if better else self.best
        if self.cluster.first:
            append_jsonl(self.out / "validation.jsonl", {"step": step, "loss": round(loss, 6), "best": better})
            self._track({"validation_loss": loss}, step)
        return better

    def _track(self, values: dict[str, float], step: int) -> None:
        for tracker in self.trackers:
            tracker.log(values, step)

    def save(self, checkpoint: Checkpoint, problems: Sequence[Problem], best: float | None) -> None:
        """Write a checkpoint, and the items that could not be used."""
        if self.cluster.first:
            path = checkpoint.save(self.root, self.recipe.checkpoints.keep)
            if best is not None:
                note_best(self.root, path, best)
            if self.mirror:
                self.mirror.push(path, best_checkpoint(self.root))
            if problems:
                path = self.out / "problems.jsonl"  # a resumed run may not meet again what it met before
                known = {row["item"]: row for row in read_jsonl(path)} | {p.item: asdict(p) for p in problems}
                write_jsonl(path, known.values())

    def spent(self, setup: Setup, spent: Spent, drawn: Mapping[str, int], finished: bool) -> dict[str, Any]:
        """Write spent.json, and return its content. drawn: samples by source."""
        parameters = {id(p): p for m in (setup.model.parts, setup.model.adapters, setup.objectives) for p in m.parameters()}
        cuda = setup.device.type == "cuda"
        unit = 1 if sys.platform == "darwin" else 1024
        row = {
            **asdict(spent),
            "drawn": dict(drawn),
            "parameters": sum(p.numel() for p in parameters.values()),
            "trainable_parameters": sum(p.numel() for p in parameters.values() if p.requires_grad),
            "peak_memory_bytes": torch.cuda.max_memory_allocated()
            if cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
            "processes": self.cluster.size,
            "cpu_seconds": round(self.clock.seconds(), 3),
            "finished": finished,
        }
        if self.pretraining:  # not part of the budget: a backbone is trained once, for any number of runs
            row |= {"pretraining": self.pretraining, "pretraining_flops": sum(b["flops"] for b in self.pretraining.values())}
        if self.cluster.first:
            write_json(self.out / "spent.json", row)
        return row


def order_of(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe that decide in which order samples are drawn, by dotted key."""
    neighbours = recipe.anchored().data.neighbours
    return {
        "seed": recipe.seed,
        "data.debiased": recipe.data.debiased,
        "data.neighbours": neighbours.model_dump(mode="json") if neighbours else None,
    }
