"""A shard as a worker sees it: its rows, the columns computed so far, which rows are still kept, and images on demand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diptych.core.errors import DiptychError
from diptych.curation.engine.store import Store
from diptych.curation.operators.base import PIXELS, pixels_of
from diptych.curation.plan import Plan, Step
from diptych.data.image import decode
from diptych.data.source import BrokenItem
from diptych.data.storage import files

IMAGE_ROWS, IMAGE_BYTES = 64, 128_000_000  # limits of a batch with images: rows, and about this many decoded bytes
LIGHT = ("id", "item", "hash", "text", "captions", "extra", "error")


@dataclass(frozen=True)
class Keys:
    """The addresses of the results for one shard, by step; ``None`` for a rule, which is cheap and not stored."""

    number: int  # the shard's position in the pool
    pool: str
    steps: tuple[str | None, ...]  # columns of operators
    summaries: tuple[str | None, ...]  # first passes
    states: tuple[str | None, ...]  # of all shards
    decided: str  # decisions with reasons and scores
    part: str  # the kept rows in the output format


class Shard:
    """The rows of one shard, with columns and images read on demand."""

    def __init__(self, plan: Plan, steps: Sequence[Step], store: Store, keys: Keys):
        self.plan, self.steps, self.store, self.keys = plan, steps, store, keys
        self._columns: dict[str, pa.Array] = {}
        self._errors: dict[int, pa.Array] = {}
        self._states: dict[int, pa.Table] = {}
        self._maker = {name: s.index for s in steps for name in s.outputs}

    @cached_property
    def light(self) -> pa.RecordBatch:
        """The rows without images."""
        return _batch(self.store.read(self.keys.pool, list(LIGHT)))

    def __len__(self) -> int:
        return int(self.light.num_rows)

    @property
    def rows(self) -> np.ndarray:
        """The positions of the rows in the pool, int64."""
        return (self.keys.number << 32) + np.arange(len(self), dtype=np.int64)

    @property
    def hashes(self) -> np.ndarray:
        """The hashes of the rows' ids, uint64."""
        return np.asarray(self.light["hash"].to_numpy())

    @cached_property
    def usable(self) -> np.ndarray:
        """Boolean, false for items that the source could not read."""
        return np.asarray(pc.is_null(self.light["error"]).to_numpy(zero_copy_only=False))

    # ---- columns

    def put(self, step: Step, columns: pa.RecordBatch) -> None:
        """Makes columns that were just computed available without reading the store."""
        for name in step.outputs:
            self._columns[name] = columns[name]
        self._errors[step.index] = columns["error"]

    def column(self, name: str) -> pa.Array:
        """A column by name: of the source, an extra, or an operator's output."""
        if name not in self._columns:
            if name == "row":
                self._columns[name] = pa.array(self.rows)
            elif name.startswith("extra."):
                self._columns[name] = self._extra(name.removeprefix("extra."))
            elif name in LIGHT:
                self._columns[name] = self.light[name]
            else:
                key = self.keys.steps[self._maker[name]]
                assert key
                self._columns.update(self.store.columns(key, [name]))
        return self._columns[name]

    def errors(self, index: int) -> pa.Array:
        """The reason for each row that the operator of a step could not score, else null."""
        if index not in self._errors:
            key = self.keys.steps[index]
            assert key
            self._errors[index] = self.store.columns(key, ["error"])["error"]
        return self._errors[index]

    def state(self, index: int) -> pa.Table:
        """The state of a two-pass step."""
        if index not in self._states:
            key = self.keys.states[index]
            assert key
            self._states[index] = read_state(self.store, key)
        return self._states[index]

    def _extra(self, name: str) -> pa.Array:
        values = [json.loads(text).get(name) if text else None for text in self.light["extra"].to_pylist()]
        values = [v if isinstance(v, (str, int, float, bool, list)) else None for v in values]
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return pa.array([None if v is None else str(v) for v in values], pa.string())

    # ---- decisions

    def reasons(self, before: int) -> list[tuple[str, np.ndarray]]:
        """(reason, boolean rows that it removes, even if removed before) of each step before ``before``; unusable items first."""
        reasons = [("unusable", ~self.usable)]
        kept = self.usable.copy()
        for step in self.steps[:before]:
            if step.rule:
                removals = self._removed(step, kept)
            elif self.plan.errors == "drop":
                failed = self.errors(step.index).is_valid().to_numpy(zero_copy_only=False)
                removals = [(f"{step.label} failed", np.asarray(failed))]
            else:
                continue
            for reason, removed in removals:
                kept &= ~removed
                reasons.append((reason, removed))
        return reasons

    def _removed(self, step: Step, kept: np.ndarray) -> list[tuple[str, np.ndarray]]:
        rule = step.rule
        assert rule
        state = self.state(step.index) if rule.counts_all else None
        values = self.column(rule.column) if rule.column else None
        if values is not None and pa.types.is_null(values.type):  # an extra that no row of the shard has
            values = values.cast(pa.float64())
        stays = rule.verdict(values, self.hashes, self.rows, f"{self.plan.seed}/{step.label}", state)
        absent = rule.absent(values) if values is not None else np.zeros(len(self), dtype=bool)
        seen = kept if rule.counts_all and rule.of == "kept" else self.usable
        removed = [(step.label, seen & ~stays & ~absent)]
        if rule.missing == "drop":
            removed.append((f"no {rule.column}", seen & absent))
        return removed

    def kept(self, before: int) -> np.ndarray:
        """Boolean, true for rows that no step before ``before`` removes."""
        kept = np.ones(len(self), dtype=bool)
        for _, removed in self.reasons(before):
            kept &= ~removed
        return kept

    # ---- images

    def images(
        self, wanted: np.ndarray, size: int = IMAGE_ROWS
    ) -> Iterator[tuple[np.ndarray, list[bytes | None], list[str | None]]]:
        """Batches of at most ``size`` of the ``wanted`` rows: (positions in the shard, encoded files, why a file is missing)."""
        where = self.store.read(self.keys.pool, ["url", "start", "size", "field", "stamp"]).to_pylist()
        places = np.flatnonzero(wanted)
        for begin in range(0, len(places), size):
            batch = places[begin : begin + size]
            inline = self._inline.take(pa.array(batch)) if any(where[i]["url"] is None for i in batch) else None
            data: list[bytes | None] = []
            reasons: list[str | None] = []
            for n, i in enumerate(batch):
                content, reason = None, None
                if where[i]["url"] is None:
                    assert inline is not None
                    content = inline[n].as_py()
                    reason = "the row holds no image" if content is None else None
                else:
                    try:
                        content = fetch(where[i])
                    except OSError as error:
                        reason = f"cannot be read: {error}"
                data.append(content)
                reasons.append(reason)
            yield batch, data, reasons

    @property
    def _inline(self) -> pa.Array:
        return self.store.columns(self.keys.pool, ["image"])["image"]

    def picture(self, place: int) -> np.ndarray | None:
        """One decoded image, uint8 [height, width, 3]; ``None`` if it cannot be read."""
        mask = np.zeros(len(self), dtype=bool)
        mask[place] = True
        for _, data, _ in self.images(mask):
            if data[0] is not None:
                try:
                    return decode(data[0], "")
                except BrokenItem:
                    return None
        return None


def decoded(data: list[bytes | None]) -> Iterator[tuple[list[int], pa.Array, dict[int, str]]]:
    """Decoded pictures of a batch, split by memory: positions in the batch, ``pixels``, and why others have none."""
    held = 0
    places: list[int] = []
    pictures: list[np.ndarray] = []
    reasons: dict[int, str] = {}
    for i, encoded in enumerate(data):
        if encoded is not None:
            try:
                pictures.append(decode(encoded, str(i)))
                places.append(i)
                held += pictures[-1].nbytes
            except BrokenItem as error:
                reasons[i] = error.problem.reason
        if held > IMAGE_BYTES or i == len(data) - 1:
            yield places, pixels_of(pictures) if pictures else pa.array([], PIXELS), reasons
            held, places, pictures, reasons = 0, [], [], {}


def fetch(where: dict[str, Any]) -> bytes:
    """The image bytes that a row refers to.

    Raises OSError if this image cannot be read, DiptychError if its file was removed or changed.
    """
    url, stamp = where["url"], where["stamp"]
    if stamp and (now := files.stamps([url])[url]) != stamp:
        what = "has changed" if now else "was removed"
        raise DiptychError(f"{url} {what} since the run began; run again: the source is read again, and valid results are kept")
    if where["field"] is not None:
        column = _row_group(url, where["start"], where["field"], stamp)
        value: bytes | None = column[where["size"]].as_py()
        if value is None:
            raise OSError("the row holds no image")
        return value
    data = files.read(url, where["start"] or 0, where["size"])
    if where["size"] is not None and len(data) != where["size"]:
        raise OSError(f"{url} holds {len(data)} of its {where['size']} bytes")
    return data


@lru_cache(maxsize=1)
def _row_group(url: str, group: int, field: str, stamp: str) -> pa.ChunkedArray:
    from diptych.data.sources.parquet import open_parquet

    with files.open_file(url) as file:
        return open_parquet(file, url).read_row_group(group, columns=[field], use_threads=False)[field]


@lru_cache(maxsize=2)
def _read_state(root: str, key: str) -> pa.Table:
    from pathlib import Path

    return Store(Path(root)).read(key)


def read_state(store: Store, key: str) -> pa.Table:
    """The state of a two-pass step; cached, since it may be large and serves every shard of a worker."""
    return _read_state(str(store.root), key)


def _batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_arrays([pa.array([], f.type) for f in table.schema], schema=table.schema)
