"""The dirty pool in memory, with its truth and what operators say of it: for the cases that measure curation."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diptych.core.registry import resolve
from diptych.curation.dirty_pool.pool import write_pool
from diptych.curation.engine.apply import apply, reduce
from diptych.curation.operators import OPERATORS
from diptych.curation.operators.base import Reduce, pixels_of, sample_hash
from diptych.data.image import decode
from diptych.data.source import BrokenItem

LARGE = 16_000_000  # pixels in a batch


@dataclass
class Pool:
    """Rows as columns; ``None`` where a row has no value."""

    place: Path
    table: pa.Table
    truth: list[dict[str, Any]]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)  # rows a CPU-second

    @classmethod
    def make(cls, n: int, seed: int = 0) -> Pool:
        place = write_pool(Path(tempfile.mkdtemp()) / "dirty", n, seed, progress=False)
        return cls(place, pq.read_table(place / "pool"), pq.read_table(place / "truth.parquet").to_pylist())

    @cached_property
    def pixels(self) -> list[np.ndarray | None]:
        found: list[np.ndarray | None] = []
        for name, image in zip(self.ids, self.table["image"].to_pylist(), strict=True):
            try:
                found.append(decode(image, name))
            except BrokenItem:
                found.append(None)
        return found

    @property
    def ids(self) -> list[str]:
        return self.table["id"].to_pylist()

    @property
    def faults(self) -> list[str | None]:
        return [t["fault"] for t in self.truth]

    def values(self, name: str) -> list[Any]:
        if name in ("text", "image"):
            return self.table["caption" if name == "text" else name].to_pylist()
        return self.pixels if name == "pixels" else self.columns[name]

    def score(self, name: str, rows: int = 64, **options: Any) -> None:
        """Runs an operator over every row that has its inputs."""
        operator = resolve(OPERATORS[name], {}, "operator")(**options)
        inputs = {key: self.values(key) for key in operator.inputs}
        have = [i for i in range(len(self.ids)) if all(values[i] is not None for values in inputs.values())]
        ids = self.ids
        spent = 0.0
        outputs: dict[str, list[Any]] = {key: [None] * len(ids) for key in operator.outputs}
        batches = [_batch(ids, inputs, part) for part in ([have] if isinstance(operator, Reduce) else _parts(have, inputs, rows))]
        began = time.process_time()
        found = reduce(operator, batches) if isinstance(operator, Reduce) else [apply(operator, batch) for batch in batches]
        spent = time.process_time() - began
        self.rates[name] = len(have) / max(spent, 1e-9)
        for batch, result in zip(batches, found, strict=True):
            for key in outputs:
                for row, value in zip(batch["row"].to_pylist(), result[key].to_pylist(), strict=True):
                    outputs[key][row] = value
        self.columns.update(outputs)

    def where(self, column: str, says: Callable[[Any], bool]) -> np.ndarray:
        """Rows whose value makes ``says`` true, bool [N]; missing values do not."""
        return np.array([value is not None and bool(says(value)) for value in self.columns[column]])

    def planted(self, faults: Iterable[str]) -> np.ndarray:
        wanted = set(faults)
        return np.array([fault in wanted for fault in self.faults])


def _parts(have: list[int], inputs: dict[str, list[Any]], rows: int) -> Iterable[list[int]]:
    part: list[int] = []
    size = 0
    for i in have:
        size += inputs["pixels"][i].size if "pixels" in inputs else 0
        part.append(i)
        if len(part) == rows or size > LARGE:
            yield part
            part, size = [], 0
    if part:
        yield part


_KINDS = {"image": pa.binary(), "pixel_hash": pa.binary(16), "phash": pa.uint64(), "text": pa.string()}


def _batch(ids: list[str], inputs: dict[str, list[Any]], part: list[int]) -> pa.RecordBatch:
    columns: dict[str, Any] = {
        "row": pa.array(part, pa.int64()),
        "id": pa.array([ids[i] for i in part]),
        "hash": pa.array([sample_hash(ids[i]) for i in part], pa.uint64()),
    }
    for name, values in inputs.items():
        chosen = [values[i] for i in part]
        columns[name] = pixels_of(chosen) if name == "pixels" else pa.array(chosen, _KINDS.get(name))
    return pa.RecordBatch.from_pydict(columns)
