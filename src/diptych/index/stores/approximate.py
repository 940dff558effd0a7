"""What the stores that search by faiss have in common (``faiss.py``): exact vectors, a graph made of them, what waits, and files.

The vectors themselves are in an exact store (``exact/``). What faiss makes of them, here called the graph, is derived from it and
can always be made again, so nothing is lost when a process dies:

- ``graph.json`` names the graph: ``graph-000007.faiss``, the ids of its rows (``.npy``) and those that were added, replaced or
  deleted since it was written (``.changed.npy``). These are written before the exact store is saved: an id too many costs a
  comparison, one too few would be a wrong result.
- Vectors that are not in the graph are waiting: each search compares them exactly, and adds them to what the graph finds.
- ``settle`` puts what is waiting into the graph; ``save`` does so when a good part of the store is waiting.

The best candidates of a search get exact scores. How far it looks is found by measurement after the graph was made.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.core.files import check_format, read_json_or, write_atomically, write_json
from diptych.index.filters import Where
from diptych.index.stores.base import Found, Rows
from diptych.index.stores.exact import Exact, save_array
from diptych.index.stores.ranking import ascending, check_ids, check_queries, ranked
from diptych.index.stores.recall import probes, recall_of

FORMAT = 1
LIST = "graph.json"
CHUNK = 20_000  # vectors that go into the graph at a time
DEAD = 0.25  # a graph with a larger share of rows that do not count is made anew
WAITING = 1000  # so many are compared one by one without a noticeable delay
EFFORTS = (1, 2, 4, 8, 16, 32)  # of a search, each twice the one before
PROBES = 100
MORE = (
    4  # times the effort under a filter, and no less than the most: what fulfils it may lie away from the query (docs/measured.md)
)
_OPEN: WeakValueDictionary[str, Any] = WeakValueDictionary()  # graphs that were read, by file: servers open a store often


class Approximate:
    """What both kinds share: the exact vectors, the rows of the graph, what is waiting, and the files.

    least: with fewer vectors there is no graph, and search is exact. recall: the recall@10 that the effort of a search is chosen
    for, by measurement. effort: sets it instead (1, 2, 4 … 32).
    """

    kind = ""
    few = 20_000  # a filter that so many fulfil is searched exactly: docs/measured.md

    def __init__(self, folder: Path, width: int, least: int, recall: float, effort: int | None):
        if not 0 < recall <= 1:
            raise DiptychError(f"store {self.kind}: recall: {recall} is not between 0 and 1")
        if least < 1 or (effort is not None and effort < 1):
            raise DiptychError(f"store {self.kind}: least and effort are at least 1")
        self.folder, self.width, self.least, self.recall = Path(folder), width, least, recall
        self._faiss = need("faiss", extra="index", what=f"store {self.kind}")
        self._fixed, self._effort = effort, effort or EFFORTS[0]
        self.exact = Exact(self.folder / "exact", width)
        self._graph: Any = None
        self._shared = False  # whether other stores of this process may hold the same graph
        self._row_ids = np.zeros(0, np.int64)  # id of each row of the graph, -1 for one that does not count
        self._sorted: tuple[np.ndarray, np.ndarray] | None = None  # the ids and their rows, ascending
        self._made_of = 0  # vectors that the parameters of the graph were chosen for
        self._number = 0  # of the graph's files
        self._waiting: set[int] = set()  # in the exact store, not in the graph
        self._changed: set[int] = set()  # added, replaced or deleted since the graph was written
        self._written: set[int] = set()  # of these, what the file holds
        self._load()

    # --- what differs ---

    def _make(self, count: int) -> Any:
        """An empty graph with parameters for that many vectors."""
        raise NotImplementedError

    def _reach(self, effort: float, k: int, total: int) -> tuple[Any, int]:
        """The parameters of a search of that effort, and how many candidates get exact scores."""
        raise NotImplementedError

    def _outgrown(self, count: int) -> bool:
        return False

    # --- the port ---

    def __len__(self) -> int:
        return len(self.exact)

    def add(self, ids: np.ndarray, vectors: np.ndarray, rows: Rows | None = None) -> None:
        """Keeps vectors in memory until ``save``; of an id that is there, the new vector counts. ``rows`` are not needed."""
        ids = check_ids(ids, str(self.folder))
        self.exact.add(ids, vectors)
        self._touch(ids, there=True)

    def delete(self, ids: np.ndarray) -> None:
        """Removes vectors; ids that are not there are passed over."""
        ids = np.unique(np.asarray(ids, np.int64))
        self.exact.delete(ids)
        self._touch(ids, there=False)

    def search(self, queries: np.ndarray, k: int, where: Where | None = None) -> Found:
        """The k best of each query among those that fulfil ``where``, with exact scores: most of the true ones (``recall``)."""
        queries = check_queries(queries, self.width, str(self.folder))
        allowed = None if where is None else ascending(where.ids())
        if self._graph is None or k < 1:
            return self._exactly(queries, k, allowed)
        rows = None if allowed is None else self._rows(allowed)
        number = self._alive if rows is None else len(rows)
        if 4 * k >= number or (allowed is not None and number <= self.few):
            return self._exactly(queries, k, allowed)
        return self._search(queries, k, allowed, rows, self._effort)

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """The vectors of ids, float32 [N, E], as they were added. DiptychError for an id that is not there."""
        return self.exact.vectors(ids)

    def ids(self) -> np.ndarray:
        """All ids, int64, ascending."""
        return self.exact.ids()

    def save(self) -> None:
        """Makes all that was added and deleted lasting; brings the graph up to date if much is waiting."""
        self._save_exact()
        if self._behind() > max(self.least, len(self) // 3):
            self.settle()

    def close(self) -> None:
        """Lets go of the graph and the mapped files. Does not save."""
        self.exact.close()
        self._graph, self._row_ids, self._sorted = None, np.zeros(0, np.int64), None
        self._waiting, self._changed, self._written = set(), set(), set()

    def settle(self) -> None:
        """Saves, puts what is waiting into the graph, chooses the effort of a search, and writes the graph."""
        self._save_exact()
        count = len(self)
        if count < self.least:
            return
        rows, dead = len(self._row_ids), int((self._row_ids < 0).sum())
        if self._graph is not None and (dead > DEAD * rows or self._outgrown(count)):
            self._drop()
        if self._behind() <= (0 if self._graph is None else WAITING):
            return
        if self._graph is None:
            self._graph, self._made_of, self._shared = self._make(count), count, False
            ids = self.exact.ids()
        else:
            if self._shared:
                self._graph, self._shared = self._faiss.read_index(str(self._file("faiss"))), False
            ids = np.array(sorted(self._waiting), np.int64)
        for start in range(0, len(ids), CHUNK):
            some = ids[start : start + CHUNK]
            self._graph.add(self.exact.vectors(some))
            self._row_ids = np.concatenate([self._row_ids, some])
        self._waiting, self._sorted = set(), None
        self._tune()
        self._write_graph()

    # --- search ---

    def _exactly(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> Found:
        return self.exact.search(queries, k, None if allowed is None else Where(ids=lambda: allowed))

    def _search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None, rows: np.ndarray | None, effort: float) -> Found:
        """rows: of the graph, that count; None: all that are not dead."""
        total = self._graph.ntotal
        number = self._alive if rows is None else len(rows)
        # A filtered search meets, among all rows, only some that count: it has to go through as many more.
        effort *= total / number
        if rows is not None:
            effort = max(MORE * effort, EFFORTS[-1])
        parameters, candidates = self._reach(effort, k, total)
        if number < total:
            marks = self._row_ids >= 0
            if rows is not None:
                marks = np.zeros(total, bool)
                marks[rows] = True
            bits = np.packbits(marks, bitorder="little")
            parameters.sel = self._faiss.IDSelectorBitmap(bits)
        _, found = self._graph.search(queries, max(k, candidates), params=parameters)
        near = [self._row_ids[row[row >= 0]] for row in found]
        waiting = np.array(sorted(self._waiting), np.int64)
        if allowed is not None:
            waiting = np.intersect1d(waiting, allowed)
        if len(waiting):
            also = self._exactly(queries, k, waiting).ids
            near = [np.concatenate([some, row[row >= 0]]) for some, row in zip(near, also, strict=True)]
        result = ranked(queries, near, self.exact.vectors, k)
        short = np.flatnonzero(result.ids[:, -1] < 0)  # where the graph reached too few, although there are k
        if len(short):
            again = self._exactly(queries[short], k, allowed)
            result.ids[short], result.scores[short] = again
        return result

    def _tune(self) -> None:
        """Takes the least effort that reaches the recall asked for on queries near the vectors (``probes``)."""
        if self._fixed is not None:
            return
        queries, k = probes(self.exact, PROBES), min(10, len(self))
        truth = self.exact.search(queries, k)
        for self._effort in EFFORTS:
            if recall_of(self._search(queries, k, None, None, self._effort), truth) >= self.recall:
                return

    # --- the graph's rows ---

    @property
    def _alive(self) -> int:
        """Rows of the graph that count: every vector is in one or waits."""
        return len(self) - len(self._waiting)

    def _behind(self) -> int:
        return len(self) if self._graph is None else len(self._waiting)

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows of the graph of those ids that it holds."""
        if self._sorted is None:
            rows = np.flatnonzero(self._row_ids >= 0)
            rows = rows[np.argsort(self._row_ids[rows], kind="stable")]
            self._sorted = self._row_ids[rows], rows
        held, rows = self._sorted
        if not len(held):
            return np.zeros(0, np.int64)
        rows = rows[np.minimum(np.searchsorted(held, ids), len(held) - 1)]
        here: np.ndarray = rows[self._row_ids[rows] == ids]  # a row that no longer counts has the id -1
        return here

    def _touch(self, ids: np.ndarray, there: bool) -> None:
        if self._graph is None:
            return  # everything is waiting
        self._row_ids[self._rows(ids)] = -1
        self._changed.update(ids.tolist())
        if there:
            self._waiting.update(ids.tolist())
        else:
            self._waiting.difference_update(ids.tolist())

    def _drop(self) -> None:
        self._graph, self._row_ids, self._sorted, self._waiting = None, np.zeros(0, np.int64), None, set()

    # --- files ---

    def _save_exact(self) -> None:
        if self._graph is not None and self._changed != self._written:
            self._write("changed.npy", np.array(sorted(self._changed), np.int64))
            self._written = set(self._changed)
        self.exact.save()

    def _load(self) -> None:
        for attempt in range(3):  # a process that writes a new graph may remove the old one between two reads
            known: dict[str, Any] = read_json_or(self.folder / LIST, {})
            if not known or self._read(known):
                return
            if read_json_or(self.folder / LIST, {}) == known or attempt == 2:
                self._drop()  # missing or damaged: it is made anew when it is needed
                return

    def _read(self, known: dict[str, Any]) -> bool:
        check_format(known.get("format"), FORMAT, str(self.folder / LIST))
        if known["kind"] != self.kind or known["width"] != self.width:
            raise DiptychError(
                f"{self.folder}: holds vectors of width {known['width']} in a store of kind {known['kind']}, not of width "
                f"{self.width} in one of kind {self.kind}; choose another folder"
            )
        self._number, self._made_of = known["graph"], known["made_of"]
        self._effort = self._fixed or known["effort"]
        try:
            self._graph = self._opened()
            self._row_ids = np.load(self._file("npy"))
            changed = np.load(self._file("changed.npy")) if self._file("changed.npy").is_file() else np.zeros(0, np.int64)
        except (RuntimeError, OSError, ValueError):
            return False
        if self._graph.ntotal != len(self._row_ids) or self._graph.d != self.width:
            return False
        self._changed, self._sorted = set(changed.tolist()), None
        self._written = set(self._changed)
        self._row_ids[self._rows(changed)] = -1
        held = np.unique(self._row_ids[self._row_ids >= 0])
        there = self.exact.ids()
        self._row_ids[self._rows(np.setdiff1d(held, there, assume_unique=True))] = -1
        self._waiting = set(np.setdiff1d(there, held, assume_unique=True).tolist())
        return True

    def _opened(self) -> Any:
        """The graph of the file, shared by all stores that read it: whoever adds to it reads it anew (``settle``)."""
        name = str(self._file("faiss").resolve())
        graph = _OPEN.get(name)
        if graph is None:
            _OPEN[name] = graph = self._faiss.read_index(name)
        self._shared = True
        return graph

    def _file(self, suffix: str) -> Path:
        return self.folder / f"graph-{self._number:06d}.{suffix}"

    def _write(self, suffix: str, array: np.ndarray) -> None:
        write_atomically(self._file(suffix), lambda path: save_array(path, array))

    def _write_graph(self) -> None:
        self._number += 1
        self._write("npy", self._row_ids)
        try:
            write_atomically(self._file("faiss"), self._write_faiss)
        except RuntimeError as error:  # faiss's own class of errors, for a full disk too
            raise DiptychError(f"{self._file('faiss')}: cannot be written ({error}); is the disk full?") from None
        self._changed, self._written = set(), set()
        known = {"graph": self._number, "made_of": self._made_of, "effort": self._effort}
        write_json(self.folder / LIST, {"format": FORMAT, "kind": self.kind, "width": self.width, **known})
        for path in self.folder.iterdir():
            match = re.match(r"\.?graph-(\d+)\.", path.name)
            if match and int(match[1]) != self._number:
                path.unlink(missing_ok=True)

    def _write_faiss(self, path: Path) -> None:
        self._faiss.write_index(self._graph, str(path))
        with path.open("rb+") as file:
            os.fsync(file.fileno())
