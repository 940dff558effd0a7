"""The training loop: one stage after the other until the budget is spent.

Order at the start: recipe → source → tokenizer → weights (fixed by the seed) → checkpoint if resuming → first step.
"""

from __future__ import annotations

import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.batch import Batch
from diptych.budget import Spent
from diptych.data.loader import Loader
from diptych.data.source import Source
from diptych.errors import DiptychError
from diptych.files import append_jsonl, read_jsonl, write_json, write_jsonl, write_text
from diptych.objectives import InfoNCE, Sigmoid
from diptych.recipe import Recipe, Stage
from diptych.training.checkpoint import Checkpoint, checkpoints, load_weights
from diptych.training.flops import FlopMeter
from diptych.training.optim import Averaged, Optimizers, build_optimizer, rate_share
from diptych.training.setup import Setup, describe, set_up

CHECKPOINT_SECONDS = 120.0  # of wall time between checkpoints
LOG_EVERY = 10  # steps, or
LOG_SECONDS = 5.0  # if steps are slow

Progress = Callable[[dict[str, Any]], None]


class Interrupted(DiptychError):  # noqa: N818 - an outcome, not a failure
    """Ctrl-C or SIGTERM: the run was saved and can be resumed."""


@dataclass
class Run:
    """A finished run: its directory, its recipe and what it spent."""

    path: Path
    recipe: Recipe
    spent: dict[str, Any]


class Trainer:
    def __init__(
        self, recipe: Recipe, out: Path, source: Source | None = None, resume: bool = False, progress: Progress | None = None
    ):
        self.out, self.recipe = out, recipe
        self.progress = progress or (lambda row: None)
        found = checkpoints(out / "checkpoints")
        if found and not resume:
            raise DiptychError(f"{out} holds a run already; go on with --resume, or choose another --out")
        self.setup: Setup = set_up(recipe, source)
        self.spent = Spent()
        self.flops = FlopMeter()
        self.stop: str | None = None
        self.step = 0
        self._resumed: Checkpoint | None = None
        if found:
            self._restore(found[-1])
            write_text(out / "recipe.yaml", recipe.to_yaml())  # a resumed run may have been given a larger budget
        else:
            out.mkdir(parents=True, exist_ok=True)
            describe(self.setup, out)

    # --- the run ---

    def run(self) -> Run:
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(self.out / "tensorboard"))
        total = sum(stage.share for stage in self.recipe.stages)
        end = 0.0
        with _signals(self):
            for stage in self.recipe.stages:
                start, end = end, end + stage.share / total
                if self.spent.share(self.recipe.budget) < end:
                    self._run_stage(stage, start, end)
        self.board.close()
        return Run(self.out, self.recipe, self._finish())

    def _run_stage(self, stage: Stage, start: float, end: float) -> None:
        s = self.setup
        names = set(s.model.parts) if stage.train == "all" else set(stage.train)
        s.model.freeze({n for n in s.model.parts if n not in names or self.recipe.parts[n].frozen})
        objectives = {name: s.objectives[name] for name in stage.objectives}
        optimizer = build_optimizer([s.model, *objectives.values()], stage)
        averaged = Averaged(torch.nn.ModuleList([s.model, s.objectives]), stage.ema) if stage.ema else None
        if self._resumed and self._resumed.state["stage"] == stage.name:
            optimizer.load_state_dict(self._resumed.optimizer)
            if averaged:
                averaged.load(self._resumed.ema)
            first = self._resumed.state["stage_first_step"]
        else:
            first = self.step
        self._resumed = None
        loader = Loader(
            s.source,
            s.tokenizer,
            s.model.image_size,
            stage.batch_size,
            self.recipe.seed,
            self.recipe.data.augment,
            any(getattr(o, "hard_negatives", False) for o in objectives.values()),
            self.recipe.data.workers,
            self.recipe.data.text_mask,
        )
        loader.problems.update({p.item: p for p in s.source.problems})
        if any(isinstance(o, InfoNCE | Sigmoid) for o in objectives.values()) and len(s.source) < stage.batch_size:
            print(
                f"note: {len(s.source)} training samples for a batch of {stage.batch_size}: a batch holds the same picture more than once",
                file=sys.stderr,
            )
        s.model.train()
        saved = logged = time.monotonic()
        while (share := self.spent.share(self.recipe.budget)) < end:
            began = time.perf_counter()
            batch = loader.batch(self.step).to(s.device)
            rate = rate_share(stage, self.step - first, (share - start) / (end - start))
            optimizer.set_rate(rate)
            losses, norm = self._update(stage, objectives, batch, optimizer)
            self.step += 1
            if averaged:
                averaged.update(self.step - first)
            self.spent.seconds += time.perf_counter() - began
            self.spent.samples += batch.size
            self.spent.tokens += self._tokens(batch)
            self.spent.steps = self.step
            if self.step % LOG_EVERY == 0 or self.step == first + 1 or time.monotonic() - logged > LOG_SECONDS:
                self._log(stage, losses, norm, rate * stage.lr, objectives)
                logged = time.monotonic()
            if self.stop or time.monotonic() - saved > CHECKPOINT_SECONDS:
                self._save(optimizer, averaged, stage, first, loader)
                saved = time.monotonic()
            if self.stop:
                raise Interrupted(
                    f"{self.stop}: saved at step {self.step} ({share:.0%} of the budget); go on with --resume --out {self.out}"
                )
        self._save(optimizer, averaged, stage, first, loader)

    def _update(
        self, stage: Stage, objectives: dict[str, Any], batch: Batch, optimizer: Optimizers
    ) -> tuple[dict[str, Tensor], Tensor]:
        s = self.setup

        def forward_backward() -> dict[str, Tensor]:
            with torch.autocast(s.device.type, torch.bfloat16) if s.autocast else nullcontext():
                p = s.model.encode(batch)
                losses = {name: objective(p) for name, objective in objectives.items()}
            total = sum(stage.objectives[name].weight * loss for name, loss in losses.items())
            assert isinstance(total, Tensor)
            total.backward()
            return {"loss": total.detach(), **{n: v.detach() for n, v in losses.items()}}

        optimizer.zero_grad()
        losses, flops = self.flops.step(stage.name, batch, forward_backward)
        self.spent.flops += flops
        norm = torch.nn.utils.clip_grad_norm_(optimizer.parameters, stage.clip)
        if not (torch.isfinite(losses["loss"]) and torch.isfinite(norm)):
            parts = ", ".join(f"{n} {v.item():.4g}" for n, v in losses.items())
            raise DiptychError(
                f"step {self.step}: the loss or its gradient is not finite ({parts}; gradient norm {norm.item():.4g}); nothing was updated. "
                f"Samples: {', '.join(batch.ids[:4])} … Try a lower stages.{stage.name}.lr (now {stage.lr:g}), a longer warmup or precision: fp32."
            )
        optimizer.step()
        return losses, norm

    def _tokens(self, batch: Batch) -> int:
        vision: Any = self.setup.model.parts["vision"] if "vision" in self.setup.model.parts else None
        image = batch.size * vision.tokens if vision is not None and batch.pixels is not None else 0
        return image + (int(batch.text_mask.sum()) if batch.text_mask is not None else 0)

    # --- what is written ---

    def _log(self, stage: Stage, losses: dict[str, Tensor], norm: Tensor, rate: float, objectives: dict[str, Any]) -> None:
        values = {n: round(v.item(), 5) for n, v in losses.items()}
        values |= {f"{n}_{k}": round(v, 5) for n, o in objectives.items() for k, v in o.metrics().items()}
        row = {
            "step": self.step,
            "stage": stage.name,
            "samples": int(self.spent.samples),
            "seconds": round(self.spent.seconds, 3),
            "flops": self.spent.flops,
            "share": round(min(self.spent.share(self.recipe.budget), 1.0), 5),
            "loss": values.pop("loss"),
            "losses": values,
            "lr": rate,
            "grad_norm": round(norm.item(), 5),
            "samples_per_second": round(self.spent.samples / max(self.spent.seconds, 1e-9), 2),
        }
        append_jsonl(self.out / "metrics.jsonl", row)
        self.board.add_scalar("loss", row["loss"], self.step)
        for name, value in values.items():
            self.board.add_scalar(f"losses/{name}", value, self.step)
        self.board.add_scalar("lr", rate, self.step)
        self.progress(row)

    def _save(self, optimizer: Optimizers, averaged: Averaged | None, stage: Stage, first: int, loader: Loader) -> None:
        s = self.setup
        state = {"step": self.step, "stage": stage.name, "stage_first_step": first, "spent": asdict(self.spent)}
        ema = averaged.state() if averaged else {}
        Checkpoint(s.model.saved_state(), s.objectives.state_dict(), ema, optimizer.state_dict(), state).save(
            self.out / "checkpoints"
        )
        if loader.problems:
            write_jsonl(self.out / "problems.jsonl", [asdict(p) for p in loader.problems.values()])
        self._write_spent(finished=False)

    def _write_spent(self, finished: bool) -> dict[str, Any]:
        parameters = {id(p): p for m in (self.setup.model, self.setup.objectives) for p in m.parameters()}
        cuda = self.setup.device.type == "cuda"
        spent = {
            **asdict(self.spent),
            "parameters": sum(p.numel() for p in parameters.values()),
            "trainable_parameters": sum(p.numel() for p in parameters.values() if p.requires_grad),
            "peak_memory_bytes": torch.cuda.max_memory_allocated()
            if cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "finished": finished,
        }
        write_json(self.out / "spent.json", spent)
        return spent

    def _finish(self) -> dict[str, Any]:
        return self._write_spent(finished=True)

    def _restore(self, path: Path) -> None:
        checkpoint = Checkpoint.load(path)
        load_weights(path, checkpoint, self.setup.model, self.setup.objectives)
        self.spent = Spent(**checkpoint.state["spent"])
        self.step = checkpoint.state["step"]
        self._resumed = checkpoint
        log = self.out / "metrics.jsonl"
        write_jsonl(log, [row for row in read_jsonl(log) if row["step"] <= self.step])


@contextmanager
def _signals(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the loop to save and stop after the step in hand; a second Ctrl-C stops at once."""

    def ask(number: int, _frame: Any) -> None:
        if trainer.stop:
            raise KeyboardInterrupt
        trainer.stop = signal.Signals(number).name

    try:
        before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever owns it handles signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(recipe: Recipe, out: Path, source: Source | None = None, resume: bool = False, progress: Progress | None = None) -> Run:
    """Train a recipe into the directory ``out``; with ``resume`` go on from its last checkpoint.

    Raises DiptychError for what the user can mend, Interrupted (with everything saved) on Ctrl-C or SIGTERM.
    """
    return Trainer(recipe, Path(out), source, resume, progress).run()
