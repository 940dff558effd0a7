"""What a worker does with one shard: score it, summarise it, write it; or combine what others summarised."""

from __future__ import annotations

import errno
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from diptych.core.errors import DiptychError
from diptych.curation.engine.intake import Unit, read_unit
from diptych.curation.engine.output import write
from diptych.curation.engine.scoring import Outcome, Scoring, present, shown
from diptych.curation.engine.shards import Keys, Shard
from diptych.curation.engine.store import Store
from diptych.curation.operators.base import Reduce
from diptych.curation.plan import Plan, Step, load_plan, steps_of


@dataclass(frozen=True)
class Task:
    """One piece of work. ``label``: its name in messages."""

    kind: Literal["read", "score", "summarise", "combine", "write"]
    label: str
    unit: Unit | None = None
    keys: Keys | None = None
    steps: tuple[int, ...] = ()
    summaries: tuple[str, ...] = ()
    state: str = ""
    careful: bool = False  # row by row, since a worker died in it
    blamed: tuple[tuple[int, int], ...] = ()  # (row, step) that killed a worker twice: skipped, with that as the reason


def crumb(store: Store, task: Task) -> Path:
    """The path of the file in which a careful worker notes its current row."""
    assert task.keys
    return store.root / "crumbs" / f"{task.keys.number}-{'-'.join(map(str, task.steps))}"


class Worker:
    """Carries out tasks. Created once in every process, so that models are loaded once."""

    def __init__(self, plan: dict[str, Any], store: str):
        pa.set_cpu_count(1)  # each worker has one core
        self.plan: Plan = load_plan(plan)
        self.steps: list[Step] = steps_of(self.plan)
        self.store = Store(Path(store))

    def do(self, task: Task) -> Outcome:
        """The outcome of a task."""
        outcome = Outcome()
        began = time.perf_counter()
        if task.kind == "read":
            assert task.unit
            outcome.value = read_unit(task.unit, self.plan.pool, self.store)
            outcome.seconds["reading the source"] = time.perf_counter() - began
        elif task.kind == "combine":
            self._combine(task, outcome)
        else:
            assert task.keys
            shard = Shard(self.plan, self.steps, self.store, task.keys)
            if task.kind == "score":
                at = crumb(self.store, task) if task.careful else None
                Scoring(shard, [self.steps[i] for i in task.steps], outcome, at, task.blamed).run()
            elif task.kind == "summarise":
                self._summarise(shard, self.steps[task.steps[0]], outcome)
            else:
                write(shard)
                outcome.seconds["writing"] = time.perf_counter() - began
        return outcome

    def _summarise(self, shard: Shard, step: Step, outcome: Outcome) -> None:
        began = time.perf_counter()
        key = shard.keys.summaries[step.index]
        assert key
        mask = shard.kept(step.index) if step.of == "kept" else shard.usable
        if step.rule:
            assert step.rule.column
            values = shard.column(step.rule.column)
            places = pa.array(np.flatnonzero(mask))
            summary = step.rule.summarise(values.take(places), shard.hashes[mask], shard.rows[mask])
        else:
            assert isinstance(step.operator, Reduce)
            columns = {name: shard.column(name) for name in shown(step)}
            places = pa.array(np.flatnonzero(mask & present(columns, step.inputs, len(shard))))
            summary = step.operator.summarise(pa.RecordBatch.from_pydict(columns).take(places))
        self.store.write(key, summary)
        outcome.seconds[step.label] += time.perf_counter() - began

    def _combine(self, task: Task, outcome: Outcome) -> None:
        began = time.perf_counter()
        step = self.steps[task.steps[0]]

        def summaries() -> Iterator[pa.Table]:
            """The summaries of all shards, read one at a time."""
            return (self.store.read(key) for key in task.summaries)

        combiner: Any = step.rule or step.operator
        self.store.write(task.state, combiner.combine(summaries()))
        outcome.seconds[step.label] += time.perf_counter() - began


Answer = tuple[str, Outcome | None]  # why the task could not be done, or "" and its outcome


def answer_to(task: Task, worker: Callable[[], Worker]) -> Answer:
    """What a process of its own sends back: errors as text, since not every exception can be sent."""
    try:
        return "", worker().do(task)
    except (DiptychError, OSError) as error:
        return explained(error), None
    except MemoryError:
        return "out of memory; use fewer --workers or a smaller pool.shard", None
    except Exception as error:  # a bug: the traceback shows where
        traceback.print_exc()
        return f"{type(error).__name__}: {error}", None


def explained(error: Exception) -> str:
    """The message of an error of the system, with the remedy."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error}: no file is incomplete; free space and run again to resume"
    return str(error)
