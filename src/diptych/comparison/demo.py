"""``diptych demo``: which recipes, which settings, which budget; and how long it will take on this machine.

The budget is in floating-point operations, so the demo trains as much on a slow processor as on a fast one. The time that takes is
told before it starts, from a measurement.
"""

from __future__ import annotations

import heapq
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.comparison.jobs import Job, event_of, main_of_job, send
from diptych.comparison.run import Comparison, RecipeJob
from diptych.config.budget import Budget, human
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError


@dataclass(frozen=True)
class Entry:
    """A recipe of the demo, ``NAME`` or ``NAME@VARIANT``.

    evaluation: what its evaluation costs, in TFLOP of training that take as long (docs/measured.md).
    """

    recipe: str
    evaluation: float = 0.4


# To change the demo, change these lines; the two that take longest to evaluate come first. Every run has the same data, budget and
# settings. A recipe on pretrained backbones, the fourth paradigm, belongs here as soon as it is measured under this budget: `llava`
# sees too few samples (docs/measured.md), `llava@mini` is on backbones that are trained first.
RECIPES = (
    Entry("maskvlm@tuned", evaluation=1.5),
    Entry("coca@plain", evaluation=0.8),
    Entry("clip"),
    Entry("negclip@tuned"),
)
DATA = "scenes:small"
BUDGET = "24T flops"  # at which negclip and coca have learned relation and binding (docs/measured.md)
SET: tuple[str, ...] = ("stages.0.batch_size=128", "stages.0.warmup=60")  # large batches use a processor best
TASKS = ("retrieval?n=50", "retrieval-1000", "zeroshot", "controlled?n=100", "captions?n=32", "embedding")
MEASURED = "negclip@tuned"  # the recipe that is measured; the others do about as many operations a second
SECONDS = 2.0  # of the measurement
LIMIT = 600.0  # seconds that the demo should take at most on two cores

COUNTS = ("No", "One", "Two", "Three", "Four", "Five")


def comparison(out: Path, budget: str = BUDGET, seeds: int = 1, jobs: int | None = None) -> Comparison:
    """The demo as a comparison."""
    names = [entry.recipe for entry in RECIPES]
    paradigms = len({load_recipe(name).paradigm for name in names})
    title = f"{COUNTS[paradigms]} paradigms, one budget"
    return Comparison(names, DATA, budget, seeds, out, jobs, list(SET), list(TASKS), title=title)


@dataclass(frozen=True)
class Rate:
    """How fast one run trains while others do beside it, as many as in the comparison."""

    flops: float  # per second, drawing the data and the optimizer's step included
    samples: float  # per second
    startup: float  # seconds before the first step


def measure(side_by_side: int, threads: int, seconds: float = SECONDS) -> Rate:
    """``Rate`` on this machine now: ``MEASURED`` trained for ``seconds`` by ``side_by_side`` processes at once.

    Raises DiptychError with a process's own words if it fails.
    """
    count = str(threads)
    environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "diptych.comparison.demo", json.dumps({"seconds": seconds, "threads": threads})]
    began = time.perf_counter()
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
        for _ in range(side_by_side)
    ]
    found = []
    try:
        for process in running:
            printed, errors = process.communicate()
            events = [event for line in printed.splitlines() if (event := event_of(line)) and event["phase"] == "measured"]
            if process.returncode or not events:
                raise DiptychError(f"the speed of this machine could not be measured:\n{errors.strip()[-2000:]}")
            found.append(events[-1])
    finally:
        for process in running:  # after an error or Ctrl-C
            if process.poll() is None:
                process.kill()
                process.wait()
    startup = max(0.0, time.perf_counter() - began - max(event["seconds"] for event in found))
    flops, samples = (sum(event[unit] for event in found) / len(found) for unit in ("flops", "samples"))
    return Rate(flops, samples, startup)


def measuring(given: dict[str, Any]) -> None:
    """The process that ``measure`` starts: trains for the seconds given and sends operations and samples per second, without the
    first step, which also prepares things.
    """
    from tempfile import TemporaryDirectory

    import torch

    from diptych.training.loop import train

    torch.set_num_threads(given["threads"])
    recipe = load_recipe(MEASURED, [f"data.train={DATA}", f"budget={given['seconds']}s", "trackers=[]", *SET])
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        spent = train(recipe, Path(folder), progress=rows.append).spent
    first = rows[0] if spent["steps"] > 1 else {"flops": 0.0, "samples": 0.0, "seconds": 0.0}
    took = spent["seconds"] - first["seconds"]
    rates = {unit: (spent[unit] - first[unit]) / took for unit in ("flops", "samples")}
    send(phase="measured", seconds=spent["seconds"], **rates)


def training_seconds(budget: Budget, rate: Rate) -> float | None:
    """What one run's training takes; None for a budget in tokens or steps, the number of which per second is not measured."""
    times = []
    if budget.flops is not None:
        times.append(budget.flops / rate.flops)
    if budget.samples is not None:
        times.append(budget.samples / rate.samples)
    if budget.seconds is not None:
        times.append(budget.seconds)
    return min(times) if times else None  # the first limit that is reached ends a run


def expected_seconds(planned: Sequence[RecipeJob], side_by_side: int, rate: Rate) -> float | None:
    """How long the jobs that are not done take, ``side_by_side`` at a time in their order; None if it cannot be told."""
    costs = {entry.recipe: entry.evaluation for entry in RECIPES}
    ends = [0.0] * side_by_side
    for job in planned:
        if job.done():
            continue
        training = training_seconds(job.recipe.budget, rate)
        if training is None:
            return None
        own = rate.startup + training + costs.get(job.recipe.name, Entry.evaluation) * 1e12 / rate.flops
        heapq.heapreplace(ends, ends[0] + own)  # the process that is free first takes the next
    return max(ends)


def waiting(planned: Sequence[Job]) -> int:
    """The number of jobs that are not done."""
    return sum(not job.done() for job in planned)


def in_words(planned: Sequence[RecipeJob], side_by_side: int, rate: Rate) -> str:
    """What is said before the demo starts: what was measured, how long it will take, and what to do if that is long."""
    threads = planned[0].threads
    shared = f"{side_by_side} at a time with {threads} thread{'s' * (threads > 1)} each"
    lines = [f"Measured in {SECONDS:g} seconds on this machine, {shared}: {human(rate.flops)}FLOP/s a run."]
    seconds = expected_seconds(planned, side_by_side, rate)
    if seconds is None:
        return lines[0]
    left = waiting(planned)
    lines.append(f"Expected time of {left} run{'s' * (left != 1)}: {_time(seconds)}.")
    if seconds > LIMIT and len(planned) == len(RECIPES):
        lines.append("That is long. A smaller --budget is faster, but the results may be others: learning composition takes time.")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"about {max(1, round(seconds / 60))} min" if seconds >= 90 else f"about {max(10, round(seconds, -1)):.0f} s"


if __name__ == "__main__":
    raise SystemExit(main_of_job(measuring))
