"""Duplicates: one of several rows that are copies of each other stays; the others point to the row that caused their removal."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from diptych.core.arrays import unit_rows
from diptych.curation.operators.base import Columns, Reduce
from diptych.curation.operators.duplicates.pruning import KEPT, Mode, prune, same
from diptych.curation.operators.duplicates.semantic import KeepRule, semantic_twins
from diptych.curation.operators.text.quality import normalised
from diptych.data.hashes.hamming import pairs_within
from diptych.data.hashes.perceptual import hue_difference


@dataclass(frozen=True, kw_only=True)
class Duplicates(Reduce):
    """The base of the operators that find duplicates: a row's pointer is null if it stays, else the ``row`` of its duplicate.

    prefer: a column of numbers, such as ``shorter_side`` or ``clip_score``; the duplicate with the highest value stays (with ``-``
    before the name: the lowest). Without it, and in a tie, the first in the pool.
    """

    pointer: ClassVar[str]
    of: ClassVar[tuple[str, ...]]  # columns that are compared
    prefer: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that it reads: a class attribute, or a property that depends on parameters."""
        return (*self.of, *([self.prefer.removeprefix("-")] if self.prefer else []))

    @property
    def outputs(self) -> Mapping[str, pa.DataType]:
        """Names and types of the columns that it adds."""
        return {self.pointer: pa.int64()}

    @abstractmethod
    def keys(self, batch: pa.RecordBatch) -> pa.Array:
        """The values that are compared, one for each row, as small as possible."""

    @abstractmethod
    def twins(self, keys: pa.Array, order: np.ndarray) -> dict[str, np.ndarray]:
        """Output columns; the pointer is a position in ``keys`` (−1: stays)."""

    def summarise(self, batch: pa.RecordBatch) -> pa.Table:
        """First pass: a summary of one shard, as small as possible."""
        preference = np.zeros(batch.num_rows)
        if self.prefer:
            preference = batch[self.prefer.removeprefix("-")].to_numpy(zero_copy_only=False).astype(np.float64)
            preference = preference if self.prefer.startswith("-") else -preference
        return pa.table({"row": batch["row"], "key": self.keys(batch), "late": np.nan_to_num(preference, nan=np.inf)})

    def combine(self, summaries: Iterator[pa.Table]) -> pa.Table:
        """The state for the second pass, from all shards' summaries in the order of the pool."""
        table = pa.concat_tables(list(summaries)).combine_chunks()
        rows = table["row"].to_numpy()
        causes = self.twins(_whole(table["key"]), np.lexsort((rows, table["late"].to_numpy())))
        gone = causes[self.pointer] != KEPT
        state: dict[str, Any] = {"row": rows[gone]}
        for name, values in causes.items():
            state[name] = rows[values[gone]] if name == self.pointer else values[gone]
        return pa.table(state).sort_by("row")

    def decide(self, batch: pa.RecordBatch, state: pa.Table) -> Columns:
        """Second pass: the outputs for the rows of one shard."""
        gone, rows = state["row"].to_numpy(), batch["row"].to_numpy()
        place = np.searchsorted(gone, rows)
        hit = place < len(gone)
        hit[hit] = gone[place[hit]] == rows[hit]
        take = pa.array(place, mask=~hit)
        return {name: _whole(state[name]).take(take) for name in self.outputs}


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


@dataclass(frozen=True, kw_only=True)
class SameImage(Duplicates):
    """Exact copies: equal decoded pixels, in any files. After ``image_hash``."""

    name = "same_image"
    pointer = "same_image_as"
    of = ("pixel_hash",)

    def keys(self, batch: pa.RecordBatch) -> pa.Array:
        """The values that are compared, one for each row, as small as possible."""
        return batch["pixel_hash"]

    def twins(self, keys: pa.Array, order: np.ndarray) -> dict[str, np.ndarray]:
        """Output columns; the pointer is a position in ``keys`` (−1: stays)."""
        return {self.pointer: same(keys.to_pylist(), order)}


@dataclass(frozen=True, kw_only=True)
class SameText(Duplicates):
    """Equal captions, except for letter case, white space and outer punctuation.

    url: a column of addresses; then pairs of caption and address must be equal (LAION).
    """

    name = "same_text"
    pointer = "same_text_as"
    of = ("text",)
    url: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that it reads: a class attribute, or a property that depends on parameters."""
        return (*super().inputs, *([self.url] if self.url else []))

    def keys(self, batch: pa.RecordBatch) -> pa.Array:
        """The values that are compared, one for each row, as small as possible."""
        addresses = batch[self.url].to_pylist() if self.url else [""] * batch.num_rows
        digests = [
            hashlib.blake2b(f"{normalised(text)}\0{url}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
            for text, url in zip(batch["text"].to_pylist(), addresses, strict=True)
        ]
        return pa.array(digests, pa.binary(16))

    def twins(self, keys: pa.Array, order: np.ndarray) -> dict[str, np.ndarray]:
        """Output columns; the pointer is a position in ``keys`` (−1: stays)."""
        return {self.pointer: same(keys.to_pylist(), order)}


@dataclass(frozen=True, kw_only=True)
class NearImage(Duplicates):
    """Similar pictures: 64-bit pHash within ``distance`` bits (0 exact, ≤ 4 safe, ≤ 8 aggressive). After ``image_hash``.

    mode: ``kept`` or ``published``, see ``pruning.prune``. Hashes of pictures without contrast are meaningless: remove those with
    ``image_quality`` first. colour: pictures with a larger difference of colour, 0 … 1, in one of 4 × 4 fields are no copies (after
    ``image_colours``); None: colours do not count, so that the same bottle in red and in blue is one picture.
    """

    name = "near_image"
    pointer = "near_image_of"
    of = ("phash",)
    distance: int = 4
    mode: Mode = "kept"
    colour: float | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that it reads: a class attribute, or a property that depends on parameters."""
        return (*super().inputs, *(["colours"] if self.colour is not None else []))

    @property
    def outputs(self) -> Mapping[str, pa.DataType]:
        """Names and types of the columns that it adds."""
        return {self.pointer: pa.int64(), "near_image_bits": pa.int32()}

    def keys(self, batch: pa.RecordBatch) -> pa.Array:
        """The values that are compared, one for each row, as small as possible."""
        if self.colour is None:
            return batch["phash"]
        return pa.StructArray.from_arrays([batch["phash"], batch["colours"]], ["phash", "colours"])

    def twins(self, keys: pa.Array, order: np.ndarray) -> dict[str, np.ndarray]:
        """Output columns; the pointer is a position in ``keys`` (−1: stays)."""
        hashes = (keys if self.colour is None else keys.field("phash")).to_numpy(zero_copy_only=False).astype(np.uint64)
        cause = near_twins(hashes, order, self.distance, self.mode)
        if self.colour is not None:
            shown = np.frombuffer(b"".join(keys.field("colours").to_pylist()), np.uint8).reshape(-1, 48)
            cause = self._of_one_colour(hashes, shown, order, cause)
        return {self.pointer: cause, "near_image_bits": np.bitwise_count(hashes ^ hashes[cause]).astype(np.int32)}

    def _of_one_colour(self, hashes: np.ndarray, colours: np.ndarray, order: np.ndarray, cause: np.ndarray) -> np.ndarray:
        """Pointers without those to a picture of another colour. The rows that these free are compared with each other again, but
        not with other rows that stay: a copy may be missed, but none is removed that is not one.
        """
        assert self.colour is not None
        pending = np.flatnonzero(cause != KEPT)
        while len(pending):
            free = pending[hue_difference(colours[pending], colours[cause[pending]]) > self.colour]
            cause[free] = KEPT
            inside = np.zeros(len(hashes), bool)
            inside[free] = True
            place = np.cumsum(inside) - 1
            found = near_twins(hashes[free], place[order[inside[order]]], self.distance, self.mode)
            pending = free[found != KEPT]  # at least one row stays each time
            cause[pending] = free[found[found != KEPT]]
        return cause


def near_twins(hashes: np.ndarray, order: np.ndarray, distance: int, mode: Mode = "kept") -> np.ndarray:
    """Pointers (−1: stays) among 64-bit hashes, uint64 [N]."""
    cause = same(hashes.tolist(), order)  # equal hashes first, so that each is searched once
    alone = np.flatnonzero(cause == KEPT)
    place = np.full(len(hashes), -1, np.int64)
    place[alone] = np.arange(len(alone))
    i, j, bits = pairs_within(hashes[alone], distance)
    inner = order[cause[order] == KEPT]
    causes = prune(place[inner], i, j, -bits, mode)
    cause[alone[causes != KEPT]] = alone[causes[causes != KEPT]]
    lost = np.flatnonzero((cause != KEPT) & (cause[cause] != KEPT))
    if mode == "kept" and len(lost):  # a copy of a removed item points to the one that stays
        cause[lost] = cause[cause[lost]]
    return cause


@dataclass(frozen=True, kw_only=True)
class SameMeaning(Duplicates):
    """SemDeDup on a column of embeddings, by default ``image_embedding``: cosine above 1 − ``epsilon``. See ``semantic_twins``.

    keep: ``hard`` (as published: the one farthest from its cluster's centre stays), ``easy``, ``random``, ``first`` or ``best`` (by
    ``prefer``). Holds all embeddings in memory, 2 bytes for each number.
    """

    name = "same_meaning"
    pointer = "same_meaning_as"
    of = ()
    column: str = "image_embedding"
    epsilon: float = 0.05
    clusters: int = 0  # 0: the square root of the number of rows
    keep: KeepRule = "hard"
    mode: Mode = "kept"
    across: bool = True
    seed: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that it reads: a class attribute, or a property that depends on parameters."""
        return (self.column, *super().inputs)

    @property
    def outputs(self) -> Mapping[str, pa.DataType]:
        """Names and types of the columns that it adds."""
        return {self.pointer: pa.int64(), "same_meaning_similarity": pa.float32()}

    def keys(self, batch: pa.RecordBatch) -> pa.Array:
        """The values that are compared, one for each row, as small as possible."""
        return batch[self.column].cast(pa.list_(pa.float16()))

    def twins(self, keys: pa.Array, order: np.ndarray) -> dict[str, np.ndarray]:
        """Output columns; the pointer is a position in ``keys`` (−1: stays)."""
        n = len(keys)
        if not n:
            return {self.pointer: np.empty(0, np.int64), "same_meaning_similarity": np.empty(0, np.float32)}
        vectors = unit_rows(keys.flatten().to_numpy().reshape(n, -1), np.float32)
        priority = np.empty(n)
        priority[order] = -np.arange(n)  # in the pool's order without ``prefer``, so that best means first
        cause, similarity = semantic_twins(
            vectors, self.epsilon, k=self.clusters or None, keep=self.keep, mode=self.mode,
            across=self.across, priority=priority, seed=self.seed,
        )  # fmt: skip
        return {self.pointer: cause, "same_meaning_similarity": similarity}
