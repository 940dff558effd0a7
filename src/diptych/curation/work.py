"""What a worker does with one shard: score it, summarise it, write it; or combine what others summarised."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from diptych.curation.apply import apply
from diptych.curation.intake import Unit, read_unit
from diptych.curation.operators.base import HEAVY, Reduce
from diptych.curation.output import write
from diptych.curation.plan import Plan, Step, load_plan, steps_of
from diptych.curation.shards import Keys, Shard, decoded
from diptych.curation.store import Store


@dataclass(frozen=True)
class Task:
    """One piece of work. ``label`` says which, to people."""

    kind: Literal["read", "score", "summarise", "combine", "write"]
    label: str
    unit: Unit | None = None
    keys: Keys | None = None
    steps: tuple[int, ...] = ()
    summaries: tuple[str, ...] = ()
    state: str = ""


@dataclass
class Outcome:
    """What a task found, and what it cost by operator: seconds, rows."""

    value: Any = None
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    rows: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Worker:
    """Does tasks. Made once in every process, so that models are loaded once."""

    def __init__(self, plan: dict[str, Any], store: str):
        pa.set_cpu_count(1)  # each worker has its core: threads that wait for each other cost more than they give
        self.plan: Plan = load_plan(plan)
        self.steps: list[Step] = steps_of(self.plan)
        self.store = Store(Path(store))

    def do(self, task: Task) -> Outcome:
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
                self._score(shard, [self.steps[i] for i in task.steps], outcome)
            elif task.kind == "summarise":
                self._summarise(shard, self.steps[task.steps[0]], outcome)
            else:
                write(shard)
                outcome.seconds["writing"] = time.perf_counter() - began
        return outcome

    # ---- scoring

    def _score(self, shard: Shard, steps: Sequence[Step], outcome: Outcome) -> None:
        """Every step whose result is not there yet. Images are read and decoded once for all of them."""
        todo = [s for s in steps if not self.store.has(shard.keys.steps[s.index] or "")]
        heavy = [s for s in todo if set(s.inputs) & set(HEAVY)]
        began = time.perf_counter()
        made: dict[int, _Columns] = {s.index: _Columns(s, len(shard)) for s in todo}
        masks = {s.index: shard.kept(s.index) if s.of == "kept" else shard.usable for s in todo}
        outcome.seconds["reading shards"] += time.perf_counter() - began
        light = [s for s in todo if s not in heavy and not _needs(s, heavy)]
        late = [s for s in todo if s not in heavy and s not in light]
        for step in light:
            self._whole(shard, step, masks[step.index], made[step.index], outcome)
        if heavy:
            self._images(shard, heavy, masks, made, outcome)
            for step in heavy:
                shard.put(step, made[step.index].batch())
        for step in late:
            self._whole(shard, step, masks[step.index], made[step.index], outcome)
        began = time.perf_counter()
        for step in todo:
            key = shard.keys.steps[step.index]
            assert key
            self.store.write(key, made[step.index].batch())
        outcome.seconds["writing"] += time.perf_counter() - began

    def _whole(self, shard: Shard, step: Step, mask: np.ndarray, made: _Columns, outcome: Outcome) -> None:
        """A step that asks for no images, over all of the shard's rows at once."""
        assert step.operator
        began = time.perf_counter()
        columns = {name: shard.column(name) for name in _shown(step)}
        places = np.flatnonzero(mask & _present(columns, step.inputs, len(shard)))
        batch = pa.RecordBatch.from_pydict(columns).take(pa.array(places))
        state = shard.state(step.index) if isinstance(step.operator, Reduce) else None
        outcome.seconds["reading shards"] += time.perf_counter() - began
        began = time.perf_counter()
        made.add(places, apply(step.operator, batch, state))
        shard.put(step, made.batch())
        outcome.seconds[step.label] += time.perf_counter() - began
        outcome.rows[step.label] += len(places)

    def _images(
        self, shard: Shard, steps: Sequence[Step], masks: dict[int, np.ndarray], made: dict[int, _Columns], outcome: Outcome
    ) -> None:
        """Steps that ask for images, batch by batch."""
        wanted = np.logical_or.reduce([masks[s.index] for s in steps])
        pixels = any("pixels" in s.inputs for s in steps)
        began = time.perf_counter()
        for places, data, reasons in shard.images(wanted):
            for step in steps:
                made[step.index].fail({int(p): r for p, r in zip(places, reasons, strict=True) if r and masks[step.index][p]})
            outcome.seconds["reading images"] += time.perf_counter() - began
            parts = decoded(data) if pixels else iter([([i for i, d in enumerate(data) if d is not None], None, {})])
            while True:
                began = time.perf_counter()
                found = next(parts, None)
                if found is None:
                    break
                there, pictures, broken = found
                if pixels:
                    outcome.seconds["decoding images"] += time.perf_counter() - began
                    outcome.rows["decoding images"] += len(there)
                self._batch(shard, steps, masks, made, outcome, (places, data, there, pictures, broken))
            began = time.perf_counter()

    def _batch(
        self,
        shard: Shard,
        steps: Sequence[Step],
        masks: dict[int, np.ndarray],
        made: dict[int, _Columns],
        outcome: Outcome,
        batch: Any,
    ) -> None:
        places, data, there, pictures, broken = batch
        for step in steps:
            assert step.operator
            began = time.perf_counter()
            mask = masks[step.index]
            by_pixels = "pixels" in step.inputs
            if by_pixels:
                made[step.index].fail({int(places[i]): r for i, r in broken.items() if mask[places[i]]})
                chosen = there
            else:  # broken pictures have a file all the same
                chosen = sorted([*there, *broken])
            chosen = [i for i in chosen if mask[places[i]]]
            rows = places[chosen]
            columns: dict[str, pa.Array] = {}
            for name in _shown(step):
                if name == "image":
                    columns[name] = pa.array([data[i] for i in chosen], pa.binary())
                elif name == "pixels":
                    assert pictures is not None
                    columns[name] = (
                        pictures
                        if len(chosen) == len(there)
                        else pictures.take(pa.array([there.index(i) for i in chosen], pa.int64()))
                    )
                else:
                    maker = next((s for s in steps if name in s.outputs), None)
                    columns[name] = made[maker.index].values(name, rows) if maker else shard.column(name).take(pa.array(rows))
            present = _present(columns, step.inputs, len(rows))
            if not present.all():
                columns = {name: c.filter(pa.array(present)) for name, c in columns.items()}
                rows = rows[present]
            made[step.index].add(rows, apply(step.operator, pa.RecordBatch.from_pydict(columns)))
            outcome.seconds[step.label] += time.perf_counter() - began
            outcome.rows[step.label] += len(rows)

    # ---- what takes all rows

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
            columns = {name: shard.column(name) for name in _shown(step)}
            places = pa.array(np.flatnonzero(mask & _present(columns, step.inputs, len(shard))))
            summary = step.operator.summarise(pa.RecordBatch.from_pydict(columns).take(places))
        self.store.write(key, summary)
        outcome.seconds[step.label] += time.perf_counter() - began

    def _combine(self, task: Task, outcome: Outcome) -> None:
        began = time.perf_counter()
        step = self.steps[task.steps[0]]

        def summaries() -> Iterator[pa.Table]:
            return (self.store.read(key) for key in task.summaries)

        combiner: Any = step.rule or step.operator
        self.store.write(task.state, combiner.combine(summaries()))
        outcome.seconds[step.label] += time.perf_counter() - began


def _needs(step: Step, others: Sequence[Step]) -> bool:
    """Whether a step reads what others make."""
    return any(name in other.outputs for name in step.inputs for other in others)


def _shown(step: Step) -> list[str]:
    """The columns of a step's batches."""
    always = ("row", "id", "hash") if step.two_passes else ("id", "hash")
    return list(dict.fromkeys([*always, *step.inputs]))


def _present(columns: dict[str, pa.Array], names: Sequence[str], rows: int) -> np.ndarray:
    """True where none of the named columns is null."""
    present = np.ones(rows, dtype=bool)
    for name in names:
        if columns[name].null_count:
            present &= columns[name].is_valid().to_numpy(zero_copy_only=False)
    return present


class _Columns:
    """The outputs of one step, filled in piece by piece."""

    def __init__(self, step: Step, rows: int):
        self.step, self.n = step, rows
        self.places: list[np.ndarray] = []
        self.pieces: list[pa.RecordBatch] = []
        self.failed: dict[int, str] = {}
        self._whole: pa.RecordBatch | None = None

    def add(self, places: np.ndarray, columns: pa.RecordBatch) -> None:
        names = [self.step.prefix + name if name != "error" else name for name in columns.schema.names]
        self.places.append(places)
        self.pieces.append(columns.rename_columns(names))
        self._whole = None

    def fail(self, reasons: dict[int, str]) -> None:
        self.failed.update(reasons)

    def values(self, name: str, rows: np.ndarray) -> pa.Array:
        """Of rows in the piece that was added last, null for others."""
        known = {int(place): i for i, place in enumerate(self.places[-1])} if self.places else {}
        index = pa.array([known.get(int(row)) for row in rows], pa.int64())
        return self.pieces[-1][name].take(index) if self.pieces else pa.nulls(len(rows), self.step.outputs[name])

    def batch(self) -> pa.RecordBatch:
        if self._whole is None:
            self._whole = self._assembled()
        return self._whole

    def _assembled(self) -> pa.RecordBatch:
        schema = pa.schema([*self.step.outputs.items(), ("error", pa.string())])
        index = np.full(self.n, -1, dtype=np.int64)
        if self.places:
            order = np.concatenate(self.places)
            index[order] = np.arange(len(order))
        pieces = [p.cast(schema) for p in self.pieces] or [pa.RecordBatch.from_pylist([], schema)]
        table = pa.Table.from_batches(pieces, schema).combine_chunks()
        taken = table.take(pa.array(index, mask=index < 0))
        if self.failed:
            errors = taken["error"].to_pylist()
            for place, reason in self.failed.items():
                errors[place] = reason
            taken = taken.set_column(taken.schema.get_field_index("error"), "error", pa.array(errors, pa.string()))
        batches = taken.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema)
