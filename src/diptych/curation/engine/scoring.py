"""Scores one shard with adjacent operators: images are read and decoded once for all of them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diptych.curation.engine.apply import apply
from diptych.curation.engine.shards import IMAGE_ROWS, Shard, decoded
from diptych.curation.operators.base import HEAVY, Reduce
from diptych.curation.plan import Step

KILLER = "killed the worker, twice"
IMAGES = -1  # all steps that need images: the decoder may have been the cause


@dataclass
class Outcome:
    """The value of a task and its cost by operator: seconds and rows."""

    value: Any = None
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    rows: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Scoring:
    """Computes every step that has no result yet.

    crumb: work row by row and write the current row into this file, since a worker died in this shard.
    blamed: (row, step) to skip.
    """

    def __init__(
        self, shard: Shard, steps: Sequence[Step], outcome: Outcome, crumb: Path | None, blamed: Sequence[tuple[int, int]]
    ):
        began = time.perf_counter()
        self.shard, self.outcome, self.crumb = shard, outcome, crumb
        self.todo = [s for s in steps if not shard.store.has(shard.keys.steps[s.index] or "")]
        self.made = {s.index: _Columns(s, len(shard)) for s in self.todo}
        self.masks = {s.index: (shard.kept(s.index) if s.of == "kept" else shard.usable).copy() for s in self.todo}
        for place, index in blamed:
            for step in self.todo:
                if index == step.index or (index == IMAGES and _heavy(step)):
                    self._fail(step, {place: KILLER})
                    self.masks[step.index][place] = False
        if crumb:
            crumb.parent.mkdir(parents=True, exist_ok=True)
        outcome.seconds["reading shards"] += time.perf_counter() - began

    def run(self) -> None:
        """Computes the steps and writes their columns into the store."""
        heavy = [s for s in self.todo if _heavy(s)]
        late = [s for s in self.todo if s not in heavy and _needs(s, heavy)]
        for step in self.todo:
            if step not in heavy and step not in late:
                self._whole(step)
        if heavy:
            self._images(heavy)
            for step in heavy:
                self.shard.put(step, self.made[step.index].batch())
        for step in late:
            self._whole(step)
        began = time.perf_counter()
        for step in self.todo:
            key = self.shard.keys.steps[step.index]
            assert key
            self.shard.store.write(key, self.made[step.index].batch())
        if self.crumb:
            self.crumb.unlink(missing_ok=True)
        self.outcome.seconds["writing"] += time.perf_counter() - began

    def _at(self, place: int, step: int) -> None:
        assert self.crumb
        self.crumb.write_text(f"{place} {step}")

    def _whole(self, step: Step) -> None:
        """Computes a step without images over all rows of the shard at once."""
        assert step.operator
        made = self.made[step.index]
        began = time.perf_counter()
        columns = {name: self.shard.column(name) for name in shown(step)}
        places = np.flatnonzero(self.masks[step.index] & present(columns, step.inputs, len(self.shard)))
        batch = pa.RecordBatch.from_pydict(columns).take(pa.array(places))
        state = self.shard.state(step.index) if isinstance(step.operator, Reduce) else None
        self.outcome.seconds["reading shards"] += time.perf_counter() - began
        began = time.perf_counter()
        if self.crumb:
            for i, place in enumerate(places):
                self._at(int(place), step.index)
                made.add(places[i : i + 1], apply(step.operator, batch.slice(i, 1), state))
        else:
            made.add(places, apply(step.operator, batch, state))
        self.shard.put(step, made.batch())
        self.outcome.seconds[step.label] += time.perf_counter() - began
        self.outcome.rows[step.label] += len(places)

    def _images(self, steps: Sequence[Step]) -> None:
        """Computes the steps that need images, batch by batch."""
        wanted = np.logical_or.reduce([self.masks[s.index] for s in steps])
        pixels = any("pixels" in s.inputs for s in steps)
        began = time.perf_counter()
        for places, data, reasons in self.shard.images(wanted, 1 if self.crumb else IMAGE_ROWS):
            if self.crumb:
                self._at(int(places[0]), IMAGES)
            missing = {int(p): r for p, r in zip(places, reasons, strict=True) if r}
            for step in steps:
                self._fail(step, missing)
            self.outcome.seconds["reading images"] += time.perf_counter() - began
            parts = decoded(data) if pixels else iter([([i for i, d in enumerate(data) if d is not None], None, {})])
            while True:
                began = time.perf_counter()
                part = next(parts, None)
                if part is None:
                    break
                there, pictures, broken = part
                if pixels:
                    self.outcome.seconds["decoding images"] += time.perf_counter() - began
                    self.outcome.rows["decoding images"] += len(there)
                self._batch(steps, places, data, there, pictures, broken)
            began = time.perf_counter()

    def _fail(self, step: Step, reasons: dict[int, str]) -> None:
        self.made[step.index].fail({place: r for place, r in reasons.items() if self.masks[step.index][place]})

    def _batch(
        self,
        steps: Sequence[Step],
        places: np.ndarray,
        data: list[bytes | None],
        there: list[int],
        pictures: pa.Array | None,
        broken: dict[int, str],
    ) -> None:
        """Computes all steps for some rows.

        there: positions in ``places`` of the decoded ``pictures``. broken: the reason why other rows have no picture.
        """
        for step in steps:
            assert step.operator
            began = time.perf_counter()
            mask = self.masks[step.index]
            if "pixels" in step.inputs:
                self._fail(step, {int(places[i]): reason for i, reason in broken.items()})
                chosen = [i for i in there if mask[places[i]]]
            else:  # broken pictures still have a file
                chosen = [i for i in sorted([*there, *broken]) if mask[places[i]]]
            rows = places[chosen]
            columns: dict[str, pa.Array] = {}
            for name in shown(step):
                if name == "image":
                    columns[name] = pa.array([data[i] for i in chosen], pa.binary())
                elif name == "pixels":
                    assert pictures is not None
                    index = pa.array([there.index(i) for i in chosen], pa.int64())
                    columns[name] = pictures if len(chosen) == len(there) else pictures.take(index)
                else:
                    maker = next((s for s in steps if name in s.outputs), None)
                    columns[name] = (
                        self.made[maker.index].values(name, rows) if maker else self.shard.column(name).take(pa.array(rows))
                    )
            shows = present(columns, step.inputs, len(rows))
            if not shows.all():
                columns = {name: c.filter(pa.array(shows)) for name, c in columns.items()}
                rows = rows[shows]
            self.made[step.index].add(rows, apply(step.operator, pa.RecordBatch.from_pydict(columns)))
            self.outcome.seconds[step.label] += time.perf_counter() - began
            self.outcome.rows[step.label] += len(rows)


def _heavy(step: Step) -> bool:
    return bool(set(step.inputs) & set(HEAVY))


def _needs(step: Step, others: Sequence[Step]) -> bool:
    """Whether a step reads outputs of the others."""
    return any(name in other.outputs for name in step.inputs for other in others)


def shown(step: Step) -> list[str]:
    """Names of the columns that a step receives."""
    always = ("row", "id", "hash") if step.two_passes else ("id", "hash")
    return list(dict.fromkeys([*always, *step.inputs]))


def present(columns: dict[str, pa.Array], names: Sequence[str], rows: int) -> np.ndarray:
    """Boolean [rows], true where none of the named columns is null."""
    present = np.ones(rows, dtype=bool)
    for name in names:
        if columns[name].null_count:
            present &= columns[name].is_valid().to_numpy(zero_copy_only=False)
    return present


class _Columns:
    """The outputs of one step, collected piece by piece."""

    def __init__(self, step: Step, rows: int):
        self.step, self.n = step, rows
        self.places: list[np.ndarray] = []
        self.pieces: list[pa.RecordBatch] = []
        self.failed: dict[int, str] = {}
        self._whole: pa.RecordBatch | None = None

    def add(self, places: np.ndarray, columns: pa.RecordBatch) -> None:
        """Outputs of the rows at ``places``, with the step's prefix before their names."""
        names = [self.step.prefix + name if name != "error" else name for name in columns.schema.names]
        self.places.append(places)
        self.pieces.append(columns.rename_columns(names))
        self._whole = None

    def fail(self, reasons: dict[int, str]) -> None:
        """Notes why rows have no outputs: {row: reason}."""
        self.failed.update(reasons)

    def values(self, name: str, rows: np.ndarray) -> pa.Array:
        """Values of rows in the piece that was added last; null for others."""
        known = {int(place): i for i, place in enumerate(self.places[-1])} if self.places else {}
        index = pa.array([known.get(int(row)) for row in rows], pa.int64())
        return self.pieces[-1][name].take(index) if self.pieces else pa.nulls(len(rows), self.step.outputs[name])

    def batch(self) -> pa.RecordBatch:
        """All rows in order: the outputs, null where there are none, and ``error``."""
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
