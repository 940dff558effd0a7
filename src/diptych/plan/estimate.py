"""From trials to a plan: time and memory of a run at its own batch size, and which term limits it.

A stage is tried at a quarter of its batch and, if that says that it fits, at its batch; if not, at an eighth, and the rest is
extrapolated. Time, memory and operations of a step are taken as linear in the batch, ``a + b · batch``, between and beyond.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diptych.comparison.jobs import cores
from diptych.config.budget import Budget
from diptych.config.recipe import Recipe, Stage
from diptych.core.errors import DiptychError
from diptych.plan.memory import available_memory
from diptych.plan.trials import Trial, loader_rate, run_trial

SMALL = 16  # a batch up to this is tried as it is
RESERVE = 0.9  # of free memory may be used

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Line:
    """``base + slope · batch``."""

    base: float
    slope: float

    def at(self, batch: float) -> float:
        """The value at a batch size."""
        return self.base + self.slope * batch


def through(points: Sequence[tuple[float, float]]) -> Line:
    """The line through two points with a slope that is not negative; through one: proportional to the batch."""
    if len(points) == 1:
        return Line(0.0, points[0][1] / points[0][0])
    (x0, y0), (x1, y1) = points
    slope = max(0.0, (y1 - y0) / (x1 - x0))
    return Line(y1 - slope * x1, slope)


@dataclass(frozen=True)
class StagePlan:
    """One stage: what a step takes at its batch size.

    step: seconds, and the range in which it is expected. peak: bytes. loader: samples a second without a model. largest: the batch
    that memory allows, None if memory does not grow with it.
    """

    name: str
    batch: int
    step: float
    step_range: tuple[float, float]
    flops: float
    tokens: float
    peak: float
    per_sample: float
    loader: float
    largest: int | None
    parameters: int
    trainable: int

    @property
    def limit(self) -> str:
        """What a faster one of would help: ``compute`` or ``loader``."""
        return "loader" if self.loader * self.step < 1.25 * self.batch else "compute"


@dataclass(frozen=True)
class Estimate:
    """A whole run: its stages, and what it spends in total. seconds: of training, and their range; peak: bytes, of the largest
    stage; free: bytes that are free now.
    """

    recipe: str
    stages: tuple[StagePlan, ...]
    counts: tuple[float, ...]  # steps of each stage
    budget: Budget
    steps: float
    samples: float
    seconds: float
    seconds_range: tuple[float, float]
    flops: float
    peak: float
    free: int | None

    @property
    def fits(self) -> bool | None:
        """Whether memory is enough; None if it is not known how much there is."""
        return None if self.free is None else self.peak <= RESERVE * self.free


def first_size(stage: Stage) -> int:
    """The batch size to try first: a quarter of the stage's, in whole micro-batches; itself where it is small."""
    unit = stage.micro_batch or 1
    return stage.batch_size if stage.batch_size <= max(SMALL, 4 * unit) else unit * (stage.batch_size // (4 * unit))


def second_size(stage: Stage, first: Trial, free: int | None) -> int | None:
    """The batch size to try next: the stage's own if it surely fits, judged by the first; None if that was it already."""
    if first.batch == stage.batch_size:
        return None
    if free is None or first.peak * stage.batch_size / first.batch <= RESERVE * free:  # more than it takes: not all of it grows
        return stage.batch_size
    unit = stage.micro_batch or 1
    return max(2, unit * (first.batch // (2 * unit)) or unit)


def plan_stage(recipe: Recipe, index: int, threads: int, free: int | None, tell: Tell = lambda words: None) -> StagePlan:
    """What a step of one stage takes on this machine. DiptychError if the stage cannot be tried alone; MemoryError if not even a
    smaller batch fits.
    """
    stage = recipe.stages[index]
    trials: list[Trial] = []
    batch: int | None = first_size(stage)
    while batch is not None and len(trials) < 2:
        tell(f"{stage.name}: some steps with a batch of {batch} …")
        trials.append(run_trial(recipe, index, batch, threads))
        batch = second_size(stage, trials[0], free)
    tell(f"{stage.name}: the loader alone …")
    rate = loader_rate(recipe, index, threads)
    time, flops, peak, tokens = (
        through(sorted((t.batch, float(getattr(t, what))) for t in trials)) for what in ("step", "flops", "peak", "tokens")
    )
    if len(trials) == 1:  # memory is not proportional to the batch: what it is without a batch is not known from one
        peak = Line(trials[0].peak, 0.0)
    step = time.at(stage.batch_size)
    doubt = max(0.05, *(t.spread for t in trials))
    largest = None
    if free is not None and peak.slope > 0:
        largest = max(0, int((RESERVE * free - peak.base) / peak.slope))
    return StagePlan(
        name=stage.name,
        batch=stage.batch_size,
        step=step,
        step_range=(step * (1 - doubt), step * (1 + doubt)),
        flops=flops.at(stage.batch_size),
        tokens=tokens.at(stage.batch_size),
        peak=peak.at(stage.batch_size),
        per_sample=peak.slope,
        loader=rate,
        largest=largest,
        parameters=trials[-1].parameters,
        trainable=trials[-1].trainable,
    )


def steps_of(stage: StagePlan, budget: Budget) -> float:
    """How many steps of a stage a budget pays for: the first limit that is reached."""
    each = {"seconds": stage.step, "samples": stage.batch, "tokens": stage.tokens, "flops": stage.flops, "steps": 1.0}
    paid: list[float] = [getattr(budget, unit) / cost for unit, cost in each.items() if cost and getattr(budget, unit) is not None]
    if not paid:
        raise DiptychError(f"budget: {budget}: nothing of that kind is spent by stage {stage.name!r}")
    return float(math.ceil(round(min(paid), 6)))


def total(recipe: Recipe, stages: Sequence[StagePlan], free: int | None) -> Estimate:
    """The whole run from what a step of each stage takes."""
    whole = sum(stage.share for stage in recipe.stages)
    counts = [steps_of(s, recipe.budget.scaled(stage.share / whole)) for s, stage in zip(stages, recipe.stages, strict=True)]
    pairs = list(zip(stages, counts, strict=True))
    return Estimate(
        recipe=recipe.name,
        stages=tuple(stages),
        counts=tuple(counts),
        budget=recipe.budget,
        steps=sum(counts),
        samples=sum(s.batch * n for s, n in pairs),
        seconds=sum(s.step * n for s, n in pairs),
        seconds_range=(sum(s.step_range[0] * n for s, n in pairs), sum(s.step_range[1] * n for s, n in pairs)),
        flops=sum(s.flops * n for s, n in pairs),
        peak=max(s.peak for s in stages),
        free=free,
    )


def plan_recipe(recipe: Recipe, threads: int | None = None, free: int | None = None, tell: Tell = lambda words: None) -> Estimate:
    """Trials of every stage, and what the run will take on this machine. free: bytes of memory; None: what is free now.

    Raises DiptychError if the recipe or its data are wrong, or if a backbone of it has to be trained first.
    """
    if recipe.backbones:
        raise DiptychError("plan: this recipe trains backbones first; plan these recipes, and give their runs with --set")
    available = available_memory() if free is None else free
    count = threads or int(os.environ.get("OMP_NUM_THREADS", "0")) or cores()  # as many as training takes
    stages = []
    for i, stage in enumerate(recipe.stages):
        try:
            stages.append(plan_stage(recipe, i, count, available, tell))
        except MemoryError:
            raise DiptychError(
                f"plan: not even a batch of {first_size(stage)} of stage {stage.name!r} fits into memory; give a smaller model, or "
                f"--set stages.{i}.micro_batch={max(1, first_size(stage) // 8)}"
            ) from None
    return total(recipe, stages, available)
