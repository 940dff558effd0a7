"""What stores in an engine of others have in common: changes wait in memory until ``save`` and go there by way of a journal.

An engine makes each call lasting by itself, so half of what is added could be there when a process dies. Therefore ``save`` first
writes all changes to ``journal.npz``, in one step, then tells the engine, then removes the file. A process that opens the store and
finds the file takes its content as changes that wait; doing them twice changes nothing. Each search compares what is waiting.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError
from diptych.core.files import check_format, read_json_or, write_atomically, write_json
from diptych.index.filters import Value, Where
from diptych.index.stores.base import Found, Rows
from diptych.index.stores.conditions import Language, Type, translated, type_of
from diptych.index.stores.exact import check_vectors, save_array
from diptych.index.stores.ranking import ascending, best, check_ids, check_queries, nearest_rows

FORMAT = 1
LIST = "store.json"
JOURNAL = "journal.npz"
IDS = "ids.npy"  # what the engine holds, so that a million ids need not be asked for whenever the store is opened
LISTED = 20_000  # ids in one condition
Row = Mapping[str, Value | None]
Candidates = list[tuple[np.ndarray, np.ndarray]]  # for each query: ids, int64 [C]; vectors, float32 [C, E]


class Engine:
    """Vectors in an engine of others. A subclass says how to open it, change it, read it and search in it."""

    kind = ""
    holds_columns = True  # the index gives it the columns of each picture
    language: Language

    def __init__(self, folder: Path, width: int):
        self.folder, self.width = Path(folder), width
        self._pending: dict[int, tuple[np.ndarray, Row | None]] = {}
        self._gone: set[int] = set()
        self._held_ids: np.ndarray | None = None  # in the engine, ascending
        self._begun = False  # whether the engine may have a part of what is waiting: a process died while it saved
        self._types: dict[str, Type] = {}  # of the columns that the engine keeps
        self._dropped: set[str] = set()  # columns that it cannot keep: of several types, or with lists
        self._complete = True  # whether the columns of all vectors were given
        self._place = ""  # the name of the table or collection
        self._load()

    # --- what an engine does ---

    def _create(self) -> str:
        """Makes a table of its own; its name."""
        raise NotImplementedError

    def _attach(self) -> None:
        """Opens the table; DiptychError if it is not there or is of another width."""
        raise NotImplementedError

    def _stored_ids(self) -> np.ndarray:
        raise NotImplementedError

    def _upsert(self, ids: np.ndarray, vectors: np.ndarray, rows: list[dict[str, Value | None]]) -> None:
        """Writes vectors and columns; ``_types`` has all columns."""
        raise NotImplementedError

    def _remove(self, ids: np.ndarray) -> None:
        raise NotImplementedError

    def _fetch(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and their vectors, in any order."""
        raise NotImplementedError

    def _top(self, queries: np.ndarray, k: int, condition: str, allowed: int | None) -> Candidates:
        """Candidates for the k best, by the engine. condition: "" for none. allowed: how many fulfil it, where that is known."""
        raise NotImplementedError

    def _written(self) -> None:
        """After changes went to the engine."""

    # --- the port ---

    def __len__(self) -> int:
        return len(self.ids())

    def add(self, ids: np.ndarray, vectors: np.ndarray, rows: Rows | None = None) -> None:
        """Keeps vectors and columns in memory until ``save``; of an id that is there, the new ones count."""
        ids, vectors = check_ids(ids, str(self.folder)), np.asarray(vectors, np.float32)
        check_vectors(ids, vectors, self.width, str(self.folder))
        if rows is not None and len(rows) != len(ids):
            raise DiptychError(f"{self.folder}: {len(rows)} rows of columns for {len(ids)} vectors")
        for i, id in enumerate(ids.tolist()):
            self._pending[id] = (vectors[i].copy(), None if rows is None else dict(rows[i]))
            self._gone.discard(id)

    def delete(self, ids: np.ndarray) -> None:
        """Removes vectors; ids that are not there are passed over."""
        ids = np.unique(np.asarray(ids, np.int64))
        for id in ids.tolist():
            self._pending.pop(id, None)
        self._gone.update(np.intersect1d(ids, self._held()).tolist())

    def search(self, queries: np.ndarray, k: int, where: Where | None = None) -> Found:
        """The k best of each query among those that fulfil ``where``, with exact scores."""
        queries = check_queries(queries, self.width, str(self.folder))
        if k < 1 or not len(self):
            return best(queries, [(np.zeros(0, np.int64), np.zeros((0, self.width), np.float32))] * len(queries), max(k, 0))
        waiting = np.array(sorted(self._pending), np.int64)
        hidden = np.array(sorted(self._gone | set(self._pending)), np.int64)
        if not self._begun:
            hidden = np.intersect1d(hidden, self._held())
        found: list[Candidates] = []
        condition = "" if where is None else self._translated(where)
        if where is not None and (condition is None or len(waiting)):
            allowed = ascending(where.ids())
            waiting = np.intersect1d(waiting, allowed)
        if condition is None:
            ids = np.setdiff1d(np.intersect1d(allowed, self._held()), hidden, assume_unique=True)
            for start in range(0, len(ids), LISTED):
                some = ids[start : start + LISTED]
                found.append(self._top(queries, k, self.language.ids(some), len(some)))
        elif len(self._held()) and len(np.setdiff1d(self._held(), hidden, assume_unique=True)):
            if len(hidden):
                condition = " and ".join([*([condition] if condition else []), self.language.ids(hidden, inside=False)])
            found.append(self._top(queries, k, condition, None))
        if len(waiting):
            vectors = np.stack([self._pending[id][0] for id in waiting.tolist()])
            near = [nearest_rows(row, k) for row in queries @ vectors.T]
            found.append([(waiting[rows], vectors[rows]) for rows in near])
        merged = [
            (
                np.concatenate([part[q][0] for part in found] or [np.zeros(0, np.int64)]),
                np.concatenate([part[q][1] for part in found] or [np.zeros((0, self.width), np.float32)]),
            )
            for q in range(len(queries))
        ]
        return best(queries, merged, k)

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """The vectors of ids, float32 [N, E], as they were added. DiptychError for an id that is not there."""
        ids = np.asarray(ids, np.int64)
        every = np.unique(ids)
        missing = np.setdiff1d(every, self.ids(), assume_unique=True)
        if len(missing):
            raise DiptychError(f"{self.folder}: there is no vector of the id {missing[0]}")
        out = np.zeros((len(every), self.width), np.float32)
        pending = np.array([id in self._pending for id in every.tolist()], bool)
        for row in np.flatnonzero(pending):
            out[row] = self._pending[int(every[row])][0]
        stored = every[~pending]
        for start in range(0, len(stored), LISTED):
            some = stored[start : start + LISTED]
            got, vectors = self._fetch(some)
            if len(np.intersect1d(got, some)) < len(some):
                raise DiptychError(f"{self.folder}: {self.kind} does not have the vector of the id {np.setdiff1d(some, got)[0]}")
            out[np.searchsorted(every, got)] = vectors
        return out[np.searchsorted(every, ids)]

    def ids(self) -> np.ndarray:
        """All ids, int64, ascending."""
        kept = np.setdiff1d(self._held(), np.array(sorted(self._gone), np.int64), assume_unique=True)
        return np.union1d(kept, np.array(sorted(self._pending), np.int64))

    def save(self) -> None:
        """Makes all that was added and deleted lasting: a journal first, then the engine."""
        if not self._pending and not self._gone:
            return
        self._write_journal()
        ids = np.array(sorted(self._pending), np.int64)
        if self._gone:
            self._remove(np.array(sorted(self._gone), np.int64))
        if len(ids):
            rows = self._columns([self._pending[id][1] for id in ids.tolist()])
            self._upsert(ids, np.stack([self._pending[id][0] for id in ids.tolist()]), rows)
        held = self.ids()
        write_atomically(self.folder / IDS, lambda path: save_array(path, held))
        self._held_ids, self._pending, self._gone, self._begun = held, {}, set(), False
        (self.folder / JOURNAL).unlink(missing_ok=True)
        self._written()

    def close(self) -> None:
        """Lets go of the connection. Does not save."""
        self._pending, self._gone, self._held_ids = {}, set(), np.zeros(0, np.int64)

    # --- columns ---

    def _translated(self, where: Where) -> str | None:
        """The conditions in the engine's language; None where they cannot be said there, and ids are needed."""
        return translated(where, self._types, self.language) if self._complete and not self._waiting_columns() else None

    def _waiting_columns(self) -> bool:
        """Whether columns of vectors that wait are not given: the catalog then knows more than the engine will."""
        return any(row is None for _, row in self._pending.values())

    def _columns(self, rows: Sequence[Row | None]) -> list[dict[str, Value | None]]:
        """The columns that the engine can keep, and their types; a column of two types is given up, and filtered by ids."""
        before = (dict(self._types), set(self._dropped), self._complete)
        self._complete &= all(row is not None for row in rows)
        given = [row or {} for row in rows]
        for row in given:
            for name, value in row.items():
                if value is None or name in self._dropped:
                    continue
                kind = type_of(value)
                if kind is None or self._types.setdefault(name, kind) != kind:
                    self._types.pop(name, None)
                    self._dropped.add(name)
        if (self._types, self._dropped, self._complete) != before:
            self._describe()  # before the engine is changed: columns without values in it do no harm
        return [{name: row.get(name) for name in self._types} for row in given]

    # --- files ---

    def _load(self) -> None:
        path = self.folder / LIST
        known: dict[str, Any] = read_json_or(path, {})
        if known:
            check_format(known.get("format"), FORMAT, str(path))
            if known["kind"] != self.kind or known["width"] != self.width:
                raise DiptychError(
                    f"{self.folder}: holds vectors of width {known['width']} in a store of kind {known['kind']}, not of width "
                    f"{self.width} in one of kind {self.kind}; choose another folder"
                )
            self._place, self._types = known["place"], known["columns"]
            self._dropped, self._complete = set(known["dropped"]), known["complete"]
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._place = self._create()
            self._describe()
        self._attach()
        if (self.folder / JOURNAL).is_file():
            self._read_journal()

    def _describe(self) -> None:
        known = {"place": self._place, "columns": self._types, "dropped": sorted(self._dropped), "complete": self._complete}
        write_json(self.folder / LIST, {"format": FORMAT, "kind": self.kind, "width": self.width, **known})

    def _held(self) -> np.ndarray:
        if self._held_ids is None:
            try:
                self._held_ids = np.load(self.folder / IDS)
            except (OSError, ValueError):
                self._held_ids = np.sort(np.asarray(self._stored_ids(), np.int64))
        return self._held_ids

    def _write_journal(self) -> None:
        ids = sorted(self._pending)
        rows = json.dumps([self._pending[id][1] for id in ids], ensure_ascii=True, default=_plain)
        vectors = np.stack([self._pending[id][0] for id in ids]) if ids else np.zeros((0, self.width), np.float32)

        def write(path: Path) -> None:
            """All arrays, as one .npz."""
            with path.open("wb") as file:
                gone = np.array(sorted(self._gone), np.int64)
                np.savez(file, ids=np.array(ids, np.int64), vectors=vectors, gone=gone, rows=np.array(rows))
                file.flush()
                os.fsync(file.fileno())

        write_atomically(self.folder / JOURNAL, write)

    def _read_journal(self) -> None:
        try:
            with np.load(self.folder / JOURNAL) as file:
                ids, vectors, gone, rows = file["ids"], file["vectors"], file["gone"], json.loads(str(file["rows"]))
        except FileNotFoundError:  # another process has done what it lists
            return
        self._begun = True
        self._pending = {int(id): (vector, row) for id, vector, row in zip(ids, vectors, rows, strict=True)}
        self._gone = set(np.intersect1d(gone, self._held()).tolist())


def _plain(value: Any) -> Any:
    """Values of NumPy as JSON has them."""
    return value.item() if isinstance(value, np.generic) else list(value)
