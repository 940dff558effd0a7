"""The training loop: one stage after the other until the budget is spent.

Order at the start: recipe → processes → source → tokenizer → weights (fixed by the seed) → checkpoint if resuming → first step.
All processes run this loop; only the first one writes files.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch

from diptych.config.budget import Spent
from diptych.config.recipe import Recipe, Stage
from diptych.core.errors import DiptychError, Interrupted, counted
from diptych.core.signals import handled
from diptych.data.loader import Loader
from diptych.data.source import Source
from diptych.data.storage.cache import cache_directory
from diptych.models.vlm import VLM
from diptych.objectives import Objective, fields_needed
from diptych.training.checkpoint import Checkpoint, checkpoints, load_weights
from diptych.training.distributed import Cluster, check_sharding, join_cluster, shard, whole
from diptych.training.flops import FlopMeter
from diptych.training.gradient import BatchGradient, Pieces, Share, Taken
from diptych.training.optim import Averaged, Optimizers, build_optimizer, clip, rate_share
from diptych.training.record import Record
from diptych.training.start.backbones import cost, folder_beside, train_backbones
from diptych.training.start.setup import Setup, pick_device, set_up, stage_source, training_loader
from diptych.training.start.teachers import begin_stage
from diptych.training.validation import Validator

LOG_EVERY = 10  # steps, or
LOG_SECONDS = 5.0  # if steps are slow
EXCESS = 1.1  # times the budget: spending more is noted

Progress = Callable[[dict[str, Any]], None]


@dataclass
class Run:
    """A finished run: its directory, its recipe and what it spent."""

    path: Path
    recipe: Recipe
    spent: dict[str, Any]


@dataclass
class Learning:
    """The objects of one stage."""

    stage: Stage
    first: int  # the run's step at which it began
    objectives: dict[str, Objective]
    optimizer: Optimizers
    averaged: Averaged | None
    loader: Loader
    losses: dict[str, float] = field(default_factory=dict)  # of each objective, in the last step that learned from it

    def turn(self, step: int, model: VLM) -> tuple[dict[str, Objective], tuple[str, ...] | None]:
        """The objectives from which the run's step learns, and the fields that they read; None: all that the loader gives."""
        objectives = {name: self.objectives[name] for name in self.stage.turn(step - self.first)}
        return objectives, fields_needed(objectives.values(), model) if self.stage.round_robin else None


class Trainer:
    """One process of a run."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        source: Source | None = None,
        resume: bool = False,
        progress: Progress | None = None,
        backbones: Mapping[str, Path] | None = None,
    ):
        self.out, self.recipe = out, recipe
        self.progress = progress or (lambda row: None)
        self.cluster: Cluster = join_cluster(pick_device(recipe.device))
        self.record = Record(out, recipe, self.cluster)
        checkpoint = self.record.open(resume)
        self.setup: Setup = set_up(recipe, source, self.cluster.device, out if checkpoint else None, backbones)
        self.record.pretraining = cost(backbones) if backbones else self.record.pretraining
        self.spent = Spent()
        self.stop: str | None = None  # the signal that this process was given
        self.stopping: str | None = None  # the same, once all processes know of it: they must stop after the same step
        self.step = 0
        self.drawn: dict[str, int] = {}  # samples by source, up to step ``_counted``
        self._counted = 0
        self.taken: set[str] = set()  # the teachers of stages that have ended
        self._resumed: Checkpoint | None = None
        if checkpoint:
            self._restore(*checkpoint)
        if len(steps := set(self.cluster.collect(self.step))) > 1:
            raise DiptychError(
                f"processes found different checkpoints in {out} (steps {sorted(steps)}); it must be one directory that all "
                "of them can read"
            )
        self._check_neighbours()
        self._distribute()
        self.gradient = BatchGradient(
            self.setup.model, self.cluster, self.setup.autocast, recipe.seed, FlopMeter(compiled=recipe.compile)
        )
        self.record.describe(self.setup, resumed=checkpoint is not None, step=self.step)

    def _restore(self, path: Path, checkpoint: Checkpoint) -> None:
        load_weights(path, checkpoint, self.setup.model, self.setup.objectives)
        self.spent = Spent(**checkpoint.state["spent"])
        self.step = self._counted = checkpoint.state["step"]
        self.drawn = dict(checkpoint.state.get("drawn", {}))
        self.taken = set(checkpoint.state.get("taken", ()))
        self._resumed = checkpoint

    def _check_neighbours(self) -> None:
        """DiptychError if the hard images of this run differ between processes, or from those with which it began."""
        found = {address: table.digest for address, table in self.setup.neighbours.items()}
        before = self._resumed.state.get("neighbours", found) if self._resumed else found
        for other in (before, *self.cluster.collect(found)):
            if wrong := [address for address in found if other.get(address, found[address]) != found[address]]:
                raise DiptychError(
                    f"data.neighbours: those of {wrong[0]} are not the same as before, or in every process: they were found with "
                    "other settings or on other hardware; resume with the recipe of the start, and copy neighbours/ of the run, "
                    f"or of {cache_directory()}, to every machine"
                )

    def _distribute(self) -> None:
        """Shard and compile the parts, as the recipe says."""
        model = self.setup.model
        if self.recipe.sharding == "fsdp":
            if any(t.copied for t in model.teachers.values()):
                raise DiptychError(
                    "sharding: fsdp cannot keep an averaged teacher, or one taken after a stage, yet; remove `sharding`, "
                    "or the teacher"
                )
            check_sharding(model.parts.values(), self.setup.objectives.values(), self.cluster)
            for part in model.parts.values():
                shard(part, self.cluster)
        if self.recipe.compile:
            model.compile_parts()

    # --- the run ---

    def run(self) -> Run:
        """Train until the budget is spent. Raises Interrupted, with everything saved, on Ctrl-C or SIGTERM."""
        sums = [0.0, *accumulate(stage.share for stage in self.recipe.stages)]
        bounds = pairwise(s / sums[-1] for s in sums)  # the last is exactly 1, otherwise there could be one step too many
        names = [stage.name for stage in self.recipe.stages]
        reached, began_at = self._resumed.state["stage"] if self._resumed else None, self.step
        earlier = names[: names.index(reached) + 1] if reached in names else []  # what a resumed run has done before
        try:
            with handled([signal.SIGINT, signal.SIGTERM], self._ask_to_stop), self.record.tracking():
                for stage, (start, end) in zip(self.recipe.stages, bounds, strict=True):
                    if self.spent.share(self.recipe.budget) < end:
                        self._run_stage(stage, start, end)
                    elif stage.name not in earlier and self.cluster.first:
                        print(
                            f"note: stage {stage.name!r} did not run, since the steps before it had spent its share of the budget; "
                            "give a larger budget, or the stages before it a smaller batch_size",
                            file=sys.stderr,
                        )
            self._note_excess(began_at)
            return Run(self.out, self.recipe, self.record.spent(self.setup, self.spent, self.drawn, finished=True))
        finally:
            self.cluster.part()

    def _note_excess(self, first: int) -> None:
        """Say that the run spent clearly more than its budget, since steps are whole; first: the step at which this call began."""
        share = self.spent.share(self.recipe.budget)
        if share > EXCESS and self.step > first and self.cluster.first:
            largest = max(stage.batch_size for stage in self.recipe.stages)
            print(
                f"note: {share:.3g} times the budget ({self.recipe.budget}) was spent, since a step is not divided and each stage "
                f"has one at least; the largest has {counted(largest, 'sample')}: give more budget, or smaller steps, "
                f"--set 'stages.*.batch_size={max(2, int(largest / share))}'",
                file=sys.stderr,
            )

    def _ask_to_stop(self, number: int, _frame: Any) -> None:
        """Save and stop after the current step; a second signal stops at once."""
        if self.stop:
            raise KeyboardInterrupt
        self.stop = signal.Signals(number).name

    def _run_stage(self, stage: Stage, start: float, end: float) -> None:
        learning = self._begin(stage)
        share_of_batch = Share(learning.loader, self.step, self.cluster, stage.micro_batch)
        validator = Validator(self.recipe, self.setup, self.cluster, stage) if self.recipe.validation else None
        weights = {name: spec.weight for name, spec in stage.objectives.items()}
        saving = self.recipe.checkpoints
        saved = logged = time.monotonic()
        try:
            while (share := self.spent.share(self.recipe.budget)) < end:
                began = time.perf_counter()
                rate = rate_share(stage, self.step - learning.first, (share - start) / (end - start))
                learning.optimizer.set_rate(rate)
                losses, norm = self._update(learning, share_of_batch, weights, began)
                if self.step % LOG_EVERY == 0 or self.step == learning.first + 1 or time.monotonic() - logged > LOG_SECONDS:
                    self.progress(self.record.log(self.step, stage, self.spent, losses, rate * stage.lr, norm, learning.objectives))
                    logged = time.monotonic()
                if validator and self.step % validator.every == 0:
                    self._validate(validator, learning)
                due = self.cluster.agree(time.monotonic() - saved > saving.seconds)
                if self.stopping or due or (saving.steps and self.step % saving.steps == 0):
                    self._save(learning)
                    saved = time.monotonic()
                if self.stopping:
                    raise Interrupted(
                        f"{self.stopping}: saved at step {self.step} ({share:.0%} of the budget); continue with --resume --out "
                        f"{self.out}"
                    )
        except DiptychError as error:
            if not isinstance(error, Interrupted) and self.cluster.size == 1 and self.step > learning.first:
                self._save(learning)  # if the data ends, the steps so far are kept
            raise
        finally:
            share_of_batch.close()
        if validator and self.step % validator.every:
            self._validate(validator, learning)
        self._save(learning)

    def _begin(self, stage: Stage) -> Learning:
        s = self.setup
        resumed = self._resumed is not None and self._resumed.state["stage"] == stage.name
        begin_stage(self.recipe, s.model, stage.name, self.taken, resumed)
        s.model.train_only(stage.train)
        s.model.set_training(stage.patch_dropout, stage.gradient_checkpointing)
        objectives: dict[str, Any] = {name: s.objectives[name] for name in stage.objectives}
        optimizer = build_optimizer([s.model, *objectives.values()], stage)
        averaged = Averaged(torch.nn.ModuleList([s.model, s.objectives]), stage.ema) if stage.ema else None
        first, position = self.step, None
        losses: dict[str, float] = {}
        if self._resumed and resumed:
            try:
                optimizer.load_state_dict(self._resumed.optimizer)
            except KeyError as error:
                raise DiptychError(
                    f"stages.{stage.name}: the run learned {error}, which is frozen now; resume with the recipe of its start"
                ) from None
            if averaged:
                averaged.load(self._resumed.ema)
            first, position = self._resumed.state["stage_first_step"], self._resumed.state.get("position")
            losses = dict(self._resumed.state.get("losses", {}))
        self._resumed = None
        source = stage_source(s, stage)
        loader = training_loader(s, stage, source)
        if position is not None:
            loader.move_to(self.step, position)
        loader.problems.update({p.item: p for p in source.problems})
        if any(o.couples for o in objectives.values()) and len(source) < stage.batch_size and self.cluster.first:
            print(
                f"note: {counted(len(source), 'training sample')} for a batch of {stage.batch_size}: "
                "a batch holds the same picture more than once",
                file=sys.stderr,
            )
        s.model.train()
        return Learning(stage, first, objectives, optimizer, averaged, loader, losses)

    def _update(
        self, learning: Learning, share: Share, weights: Mapping[str, float], began: float
    ) -> tuple[dict[str, float], float]:
        """One step; its cost is added to what is spent. Returns the losses of the whole batch and the norm of the gradient. In a
        round robin, the losses of the other objectives are those of their last step.
        """
        stage, optimizer = learning.stage, learning.optimizer
        optimizer.zero_grad()
        objectives, fields = learning.turn(self.step, self.setup.model)
        pieces = Pieces(share, self.step, fields)
        taken = self.gradient(self.step, pieces, objectives, weights, "/".join((stage.name, *(objectives if fields else ()))))
        self.cluster.average_gradients(optimizer.parameters)
        norm = float(clip(optimizer.parameters, stage.clip))
        stop = float(self.stop is not None)
        values = self.cluster.total(stop, taken.samples, taken.tokens, taken.flops, *(float(v) for v in taken.losses.values()))
        stopped, samples, tokens, flops, *rest = values
        learning.losses |= dict(zip(taken.losses, rest, strict=True))
        parts = {n: learning.losses[n] for n in learning.objectives if n in learning.losses}
        losses = {"loss": sum(weights[n] * v for n, v in parts.items()), **parts}
        _check_finite(self.step, losses, norm, taken, stage)
        optimizer.step()
        for objective in objectives.values():
            objective.after_step(self.cluster.total)
        self.setup.model.update_teachers()
        self.step += 1
        if learning.averaged:
            learning.averaged.update(self.step - learning.first)
        if stopped:
            self.stopping = self.stop or "another process was asked to stop"
        self.spent.seconds += self.cluster.agree(time.perf_counter() - began)
        self.spent.samples += samples
        self.spent.tokens += tokens
        self.spent.flops += flops
        self.spent.steps = self.step
        return losses, norm

    def _validate(self, validator: Validator, learning: Learning) -> None:
        """Note the loss on held-out samples; if it is the lowest so far, this checkpoint is kept as the best."""
        loss = self.cluster.agree(validator.loss(learning.stage, learning.objectives, learning.averaged))
        if self.record.validated(self.step, loss):
            self._save(learning, best=loss)

    def _save(self, learning: Learning, best: float | None = None) -> None:
        s = self.setup
        self._count_drawn(learning)
        state = {
            "step": self.step,
            "stage": learning.stage.name,
            "stage_first_step": learning.first,
            "position": learning.loader.start_of(self.step),
            "spent": asdict(self.spent),
            "best": self.record.best,
            "drawn": self.drawn,
            **({"neighbours": {a: table.digest for a, table in s.neighbours.items()}} if s.neighbours else {}),
            "taken": sorted(self.taken),
            "losses": learning.losses,
        }
        checkpoint = Checkpoint(  # all processes take part in gathering sharded weights
            {n: whole(v) for n, v in s.model.saved_state().items()},
            {n: whole(v) for n, v in s.objectives.state_dict().items()},
            {n: whole(v) for n, v in learning.averaged.state().items()} if learning.averaged else {},
            learning.optimizer.state_dict(),
            state,
        )
        problems = [p for result in self.cluster.collect(list(learning.loader.problems.values())) for p in result]
        self.record.save(checkpoint, problems, best)
        self.record.spent(s, self.spent, self.drawn, finished=False)

    def _count_drawn(self, learning: Learning) -> None:
        """Add the number of samples that each source gave since the last call."""
        before, now = (learning.loader.drawn(learning.loader.start_of(step)) for step in (self._counted, self.step))
        self.drawn = self.drawn | {source: self.drawn.get(source, 0) + now[source] - before[source] for source in now}
        self._counted = self.step


def _check_finite(step: int, losses: dict[str, float], norm: float, taken: Taken, stage: Stage) -> None:
    if all(abs(x) < float("inf") for x in (losses["loss"], norm)):
        return
    parts = ", ".join(f"{n} {v:.4g}" for n, v in losses.items())
    raise DiptychError(
        f"step {step}: the loss or its gradient is not finite ({parts}; gradient norm {norm:.4g}); nothing was updated. "
        f"Samples: {', '.join(taken.batch.ids[:4])} … Try a lower stages.{stage.name}.lr (now {stage.lr:g}), a longer warmup "
        "or precision: fp32."
    )


def train(
    recipe: Recipe,
    out: Path,
    source: Source | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    backbones: Path | None = None,
) -> Run:
    """Train a recipe into the directory ``out``; with ``resume`` continue from its last checkpoint.

    Its backbones are trained first, those that are not in the folder ``backbones`` (default: ``backbones/`` beside ``out``).

    Raises DiptychError for what the user can fix, Interrupted (with everything saved) on Ctrl-C or SIGTERM.
    """
    out, known = Path(out), None
    begun = resume and (out / "tokenizer.json").is_file() and checkpoints(out / "checkpoints")  # it has their weights
    if recipe.backbones and not begun:
        known = train_backbones(recipe, backbones or folder_beside(out), progress or (lambda row: None))
    return Trainer(recipe, out, source, resume, progress, known).run()
