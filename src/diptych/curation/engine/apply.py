"""Applies an operator to rows, so that a bad row does not affect others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from diptych.core.errors import DiptychError, counted
from diptych.curation.operators.base import Columns, Operator, Reduce
from diptych.data.source import BrokenItem


def apply(operator: Operator, batch: pa.RecordBatch, state: pa.Table | None = None) -> pa.RecordBatch:
    """The outputs of ``operator`` for every row of ``batch``, and ``error``: why a row has none.

    A batch that raises is tried again row by row. Errors that do not belong to a row stop the run: DiptychError, out of memory, an
    operator that returns other outputs than it declares.
    """
    if batch.num_rows == 0:
        return _checked(operator, {name: pa.array([], kind) for name, kind in operator.outputs.items()}, 0, [])
    try:
        return _checked(operator, _run(operator, batch, state), batch.num_rows, [None] * batch.num_rows)
    except (DiptychError, MemoryError):
        raise
    except Exception:
        return _row_by_row(operator, batch, state)


def _run(operator: Operator, batch: pa.RecordBatch, state: pa.Table | None) -> Columns:
    if state is not None:
        assert isinstance(operator, Reduce)
        return operator.decide(batch, state)
    return operator.compute(batch)


def _row_by_row(operator: Operator, batch: pa.RecordBatch, state: pa.Table | None) -> pa.RecordBatch:
    pieces = []
    for i in range(batch.num_rows):
        try:
            pieces.append(_checked(operator, _run(operator, batch.slice(i, 1), state), 1, [None]))
        except (DiptychError, MemoryError):
            raise
        except Exception as error:
            nulls = {name: pa.nulls(1, kind) for name, kind in operator.outputs.items()}
            pieces.append(_checked(operator, nulls, 1, [reason(error)]))
    return pa.Table.from_batches(pieces).combine_chunks().to_batches()[0]


def reason(error: Exception) -> str:
    """The error of a row as text."""
    if isinstance(error, BrokenItem):
        return error.problem.reason
    message = re.sub(r" at 0x[0-9a-f]+", "", str(error)) or type(error).__name__  # an address in memory differs in every process
    return message if type(error).__name__ == "RowError" else f"{type(error).__name__}: {message}"


def _checked(operator: Operator, columns: Columns, rows: int, errors: Sequence[str | None]) -> pa.RecordBatch:
    """The columns as declared. Raises DiptychError if an operator returns others."""
    declared: Mapping[str, pa.DataType] = operator.outputs
    if set(columns) != set(declared):
        raise DiptychError(f"operator '{operator.name}' returned {sorted(columns)}, but declares {sorted(declared)}")
    arrays: list[pa.Array] = []
    for name, kind in declared.items():
        array = _array(columns[name], kind)
        if len(array) != rows:
            raise DiptychError(
                f"operator '{operator.name}' returned {counted(len(array), 'value')} of '{name}' for {counted(rows, 'row')}"
            )
        arrays.append(array)
    return pa.RecordBatch.from_arrays([*arrays, pa.array(errors, pa.string())], names=[*declared, "error"])


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values if values.type == kind else values.cast(kind)
    return pa.array(values, kind)


def reduce(operator: Reduce, shards: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """The outputs for each shard after both passes in memory: the simple form of what ``curation.run`` does with the store."""

    def summaries() -> Iterator[pa.Table]:
        """What the operator needs to know of each shard, one at a time."""
        return (operator.summarise(shard) for shard in shards)

    state = operator.combine(summaries())
    return [apply(operator, shard, state) for shard in shards]


def rows_of(columns: Mapping[str, Any]) -> pa.RecordBatch:
    """A batch to try an operator on: ``id``, ``row`` and ``hash`` are added if missing; ``pixels`` may be arrays."""
    from diptych.curation.operators.base import PIXELS, pixels_of, sample_hash

    given = dict(columns)
    n = len(next(iter(given.values())))
    given.setdefault("id", [str(i) for i in range(n)])
    given.setdefault("row", pa.array(range(n), pa.int64()))
    given.setdefault("hash", pa.array([sample_hash(i) for i in given["id"]], pa.uint64()))
    if "pixels" in given and getattr(given["pixels"], "type", None) != PIXELS:
        given["pixels"] = pixels_of(given["pixels"])
    return pa.RecordBatch.from_pydict({k: v if isinstance(v, pa.Array) else pa.array(v) for k, v in given.items()})
