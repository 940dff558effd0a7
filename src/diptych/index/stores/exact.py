"""Vectors in files that are mapped into memory, compared one by one: exact, and good for a million.

Files of a store: ``segments.json`` lists the segments; each has its vectors (``000001.npy``, float32 [N, E]) and their ids
(``000001.ids.npy``, int64 [N], ascending). A vector that was deleted or replaced stays in its segment, listed in a file of dead
rows. Files are never changed once they are written, and ``segments.json`` is replaced in one step: a process that dies leaves the
store as it was at the last ``save``, and one that reads has what it opened.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError, counted
from diptych.core.files import check_format, read_json_or, write_json
from diptych.index.filters import Where
from diptych.index.stores.base import Found, Rows
from diptych.index.stores.ranking import check_queries

FORMAT = 1
LIST = "segments.json"
BLOCK = 1 << 15  # vectors that are compared at a time
SEGMENTS = 24  # more are joined
DEAD = 0.5  # a segment with a larger share of dead rows is written again
FEW = 0.05  # of the rows of a segment: so few are picked out before they are compared
NEAR = 2e-6  # float32 products of unit vectors may differ by so much from exact ones


@dataclass(frozen=True)
class Segment:
    """Vectors of one file. dead: which rows do not count; dead_file: where that is written, "" for none."""

    number: int
    ids: np.ndarray  # int64 [N], ascending
    vectors: np.ndarray  # float32 [N, E], mapped
    dead: np.ndarray  # bool [N]
    dead_file: str = ""

    @property
    def alive(self) -> int:
        """How many rows count."""
        return len(self.ids) - int(self.dead.sum())


class Exact:
    """Exact search. Scores are computed again in float64 for the nearest, so that equal vectors have equal scores."""

    kind = "exact"

    def __init__(self, folder: Path, width: int):
        self.folder, self.width = Path(folder), width
        self._added: list[tuple[np.ndarray, np.ndarray]] = []  # since the last save
        self._changed: set[int] = set()  # numbers of segments with dead rows that are not written
        self._segments: list[Segment] = []
        self._next = 1  # number of the next segment
        self._load()

    # --- the port ---

    def __len__(self) -> int:
        return sum(s.alive for s in self._segments) + sum(len(ids) for ids, _ in self._added)

    def add(self, ids: np.ndarray, vectors: np.ndarray, rows: Rows | None = None) -> None:
        """Keeps vectors in memory until ``save``; of an id that is there, the new vector counts. ``rows`` are not needed."""
        ids, vectors = np.asarray(ids, np.int64), np.asarray(vectors, np.float32)
        check_vectors(ids, vectors, self.width, str(self.folder))
        if not len(ids):
            return
        order = np.argsort(ids, kind="stable")
        if len(np.unique(ids)) != len(ids):
            raise DiptychError(f"{self.folder}: an id is given twice")
        self.delete(ids)
        self._added.append((ids[order], np.ascontiguousarray(vectors[order])))

    def delete(self, ids: np.ndarray) -> None:
        """Removes vectors; ids that are not there are passed over."""
        gone = np.unique(np.asarray(ids, np.int64))
        for i, segment in enumerate(self._segments):
            rows = _rows_of(segment.ids, gone)
            rows = rows[~segment.dead[rows]]
            if len(rows):
                dead = segment.dead.copy()
                dead[rows] = True
                self._segments[i] = replace(segment, dead=dead)
                self._changed.add(segment.number)
        kept = []
        for held, vectors in self._added:
            stay = ~np.isin(held, gone)
            if stay.any():
                kept.append((held[stay], vectors[stay]))
        self._added = kept

    def search(self, queries: np.ndarray, k: int, where: Where | None = None) -> Found:
        """The k best of each query among those that fulfil ``where``; exact, ties in the order of the ids."""
        queries = check_queries(queries, self.width, str(self.folder))
        allowed = None if where is None else where.ids()
        best = _Best(queries, k)
        for segment in self._all():
            wanted = ~segment.dead
            if allowed is not None:
                wanted &= _marked(segment.ids, allowed)
            number = int(wanted.sum())
            if number == 0:
                continue
            if number <= FEW * len(wanted):
                rows = np.flatnonzero(wanted)
                for start in range(0, number, BLOCK):
                    some = rows[start : start + BLOCK]
                    best.add(segment.ids[some], segment.vectors[some])
                continue
            for start in range(0, len(wanted), BLOCK):
                mask = wanted[start : start + BLOCK]
                if mask.any():
                    best.add(segment.ids[start : start + BLOCK], segment.vectors[start : start + BLOCK], mask)
        return best.found()

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """The vectors of ids, float32 [N, E], as they were added. DiptychError for an id that is not there."""
        ids = np.asarray(ids, np.int64)
        out = np.zeros((len(ids), self.width), np.float32)
        missing = np.ones(len(ids), bool)
        for segment in self._all():
            if not len(segment.ids):
                continue
            rows = np.minimum(np.searchsorted(segment.ids, ids), len(segment.ids) - 1)
            here = (segment.ids[rows] == ids) & ~segment.dead[rows]
            out[here] = segment.vectors[rows[here]]
            missing &= ~here
        if missing.any():
            raise DiptychError(f"{self.folder}: there is no vector of the id {ids[missing][0]}")
        return out

    def ids(self) -> np.ndarray:
        """All ids, int64, ascending."""
        parts = [s.ids[~s.dead] for s in self._all()]
        return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)

    def save(self) -> None:
        """Writes what is new as a segment, and dead rows; joins small segments when there are many."""
        if not self._added and not self._changed:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        segments = list(self._segments)
        if self._added:
            ids = np.concatenate([ids for ids, _ in self._added])
            vectors = np.concatenate([vectors for _, vectors in self._added])
            order = np.argsort(ids, kind="stable")
            segments.append(self._written(ids[order], vectors[order]))
        segments = self._compacted(segments)
        for i, segment in enumerate(segments):
            if segment.number in self._changed:
                name = f"{segment.number:06d}.dead-{self._next:06d}.npy"
                self._next += 1
                save_array(self.folder / name, np.flatnonzero(segment.dead))
                segments[i] = replace(segment, dead_file=name)
        listed = [{"number": s.number, "rows": len(s.ids), "dead": s.dead_file} for s in segments]
        write_json(
            self.folder / LIST,
            {"format": FORMAT, "kind": self.kind, "width": self.width, "next": self._next, "segments": listed},
        )
        _sync(self.folder)
        self._segments, self._added, self._changed = segments, [], set()
        self._sweep()

    def close(self) -> None:
        """Lets go of the mapped files. Does not save."""
        self._segments, self._added, self._changed = [], [], set()

    # --- files ---

    def _load(self) -> None:
        for attempt in range(5):  # a process that joins segments may remove files between two reads
            try:
                self._segments, self._next = self._read()
                return
            except FileNotFoundError as error:
                if attempt == 4:
                    raise DiptychError(
                        f"{error.filename}: a file of vectors is missing; restore it from a copy, or delete the index and index "
                        "again"
                    ) from None

    def _read(self) -> tuple[list[Segment], int]:
        known: dict[str, Any] = read_json_or(self.folder / LIST, {})
        if not known:
            return [], 1
        check_format(known.get("format"), FORMAT, str(self.folder / LIST))
        if known["kind"] != self.kind or known["width"] != self.width:
            raise DiptychError(
                f"{self.folder}: holds vectors of width {known['width']} in a store of kind {known['kind']}, not of width "
                f"{self.width} in one of kind {self.kind}; choose another folder"
            )
        segments = []
        for listed in known["segments"]:
            number, rows = listed["number"], listed["rows"]
            ids, vectors = self._opened(number, rows)
            dead = np.zeros(rows, bool)
            if listed["dead"]:
                dead[np.load(self.folder / listed["dead"])] = True
            segments.append(Segment(number, ids, vectors, dead, listed["dead"]))
        return segments, known["next"]

    def _opened(self, number: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        path = self.folder / f"{number:06d}.npy"
        try:
            ids = np.load(self.folder / f"{number:06d}.ids.npy")
            vectors = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise DiptychError(f"{path}: damaged ({error}); restore it from a copy, or delete the index and index again") from None
        if ids.shape != (rows,) or vectors.shape != (rows, self.width):
            raise DiptychError(f"{path}: damaged: not {rows} vectors; restore it from a copy, or delete the index and index again")
        return ids, vectors

    def _written(self, ids: np.ndarray, vectors: np.ndarray) -> Segment:
        number, self._next = self._next, self._next + 1
        save_array(self.folder / f"{number:06d}.npy", vectors)
        save_array(self.folder / f"{number:06d}.ids.npy", ids)
        ids, vectors = self._opened(number, len(ids))
        return Segment(number, ids, vectors, np.zeros(len(ids), bool))

    def _compacted(self, segments: list[Segment]) -> list[Segment]:
        """Segments of which many rows are dead are written again; of many segments, the small ones are joined."""
        poor = [s for s in segments if s.dead.sum() > DEAD * len(s.ids)]
        join = {s.number for s in poor}
        if len(segments) > SEGMENTS:
            largest = max(s.alive for s in segments)
            small = [s for s in segments if s.alive <= largest / 2]
            join |= {s.number for s in (small if len(small) > SEGMENTS / 2 else segments)}
        if not join:
            return segments
        chosen = [s for s in segments if s.number in join]
        kept = [s for s in segments if s.number not in join]
        self._changed -= join
        ids = np.concatenate([s.ids[~s.dead] for s in chosen])
        if not len(ids):
            return kept
        order = np.argsort(ids, kind="stable")
        joined = np.concatenate([s.vectors[~s.dead] for s in chosen])[order]
        return [*kept, self._written(ids[order], joined)]

    def _sweep(self) -> None:
        """Removes files that no list names: of joined segments, and of a process that was killed before it could list them."""
        named = {LIST}
        for s in self._segments:
            named |= {f"{s.number:06d}.npy", f"{s.number:06d}.ids.npy", s.dead_file}
        for path in self.folder.iterdir():
            if path.name not in named and (path.name[:6].isdigit() or path.name.startswith(f".{LIST}.")):
                path.unlink(missing_ok=True)

    def _all(self) -> list[Segment]:
        """The segments, and what is not saved yet."""
        return [
            *self._segments,
            *(Segment(0, ids, vectors, np.zeros(len(ids), bool)) for ids, vectors in self._added),
        ]


class _Best:
    """The k best of each query so far."""

    def __init__(self, queries: np.ndarray, k: int):
        self.queries, self.exact, self.k = queries, queries.astype(np.float64), k
        self.ids = [np.zeros(0, np.int64) for _ in queries]
        self.scores = [np.zeros(0, np.float32) for _ in queries]

    def add(self, ids: np.ndarray, vectors: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Further vectors, float32 [N, E]; only those of ``mask``, bool [N]."""
        if self.k < 1:
            return
        scores = self.queries @ vectors.T
        if mask is not None and not mask.all():
            scores[:, ~mask] = -np.inf
        for q, row in enumerate(scores):
            limit = self.scores[q][-1] if len(self.scores[q]) == self.k else np.float32(-np.inf)
            if len(row) > self.k:
                limit = max(limit, np.partition(row, len(row) - self.k)[len(row) - self.k])
            near = np.flatnonzero((row >= limit - NEAR) & (row > -np.inf))
            if not len(near):
                continue
            again = (vectors[near].astype(np.float64) * self.exact[q]).sum(1).astype(np.float32)
            all_ids, all_scores = np.concatenate([self.ids[q], ids[near]]), np.concatenate([self.scores[q], again])
            order = np.lexsort((all_ids, -all_scores))[: self.k]
            self.ids[q], self.scores[q] = all_ids[order], all_scores[order]

    def found(self) -> Found:
        """All that was kept, in the form of the port."""
        ids = np.full((len(self.queries), max(self.k, 0)), -1, np.int64)
        scores = np.full(ids.shape, -np.inf, np.float32)
        for q, (some, values) in enumerate(zip(self.ids, self.scores, strict=True)):
            ids[q, : len(some)], scores[q, : len(some)] = some, values
        return Found(ids, scores)


def check_vectors(ids: np.ndarray, vectors: np.ndarray, width: int, where: str) -> None:
    """DiptychError unless there is a finite vector of that width for each id."""
    if vectors.ndim != 2 or vectors.shape != (len(ids), width):
        raise DiptychError(f"{where}: {counted(len(ids), 'id')} with vectors {list(vectors.shape)}; expected [{len(ids)}, {width}]")
    if not np.isfinite(vectors).all():
        wrong = ids[~np.isfinite(vectors).all(1)][0]
        raise DiptychError(f"{where}: the vector of the id {wrong} is not finite")


def _rows_of(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions in ascending ``ids`` of those of ``wanted`` that are there."""
    if not len(ids):
        return np.zeros(0, np.int64)
    rows = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    found: np.ndarray = rows[ids[rows] == wanted]
    return found


def _marked(ids: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Which of ascending ``ids`` are in ascending ``allowed``, bool [N]."""
    mask = np.zeros(len(ids), bool)
    mask[_rows_of(ids, allowed)] = True
    return mask


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array so that it is on the disk when this returns. The OSError of a full disk has its number, which that of
    ``np.save`` lacks.
    """
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(file, np.lib.format.header_data_from_array_1_0(array))
        if array.size:
            file.write(array.data.cast("B"))
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes renamed files in a folder lasting, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
