"""What the stores that search by faiss have in common (``faiss.py``): exact vectors, a graph made of them, what waits, and files.

The vectors themselves are in an exact store (``exact/``). What faiss makes of them, here called the graph, is derived from it and
can always be made again, so nothing is lost when a process dies:

- ``graph.json`` names the graph: ``graph-000007.faiss``, the ids of its rows (``.npy``) and those that were added, replaced or
  deleted since it was written (``.changed.npy``). These are written before the exact store is saved: an id too many costs a
  comparison, one too few would be a wrong result.
- Vectors that are not in the graph are waiting: each search compares them exactly, and adds them to what the graph finds.
- ``settle`` puts what is waiting into the graph; ``save`` does so when a good part of the store is waiting. A graph that takes long
  to make is written on the way, so that a process that died goes on from there.

The best candidates of a search get exact scores. How far it looks is found by measurement after the graph was made. Where no way
of searching finds enough, every vector is compared.

Under a filter, the nearest of all vectors are searched, and those that count are picked out. If there are enough of these in the
nearer part of what was found, no others can be better; else the search goes further, as far as the graph was measured to find all
of that part, and then compares what the filter lets through one by one. To let the graph pass over what does not count would be
wrong without notice: if all of a query's surroundings are excluded, the search ends before it has reached the nearest of those that
count, with as many hits as were asked for (docs/measured.md).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
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
from diptych.index.stores.tuning import DEPTHS, MARGINS, Pick, all_cores, tuned

FORMAT = 1
LIST = "graph.json"
CHUNK = 20_000  # vectors that go into the graph at a time
DEAD = 0.25  # a graph with a larger share of rows that do not count is made anew
WAITING = 1000  # so many are compared one by one without a noticeable delay
WIDER = 4  # times as far a search under a filter goes if it has not found enough
SECONDS = 120.0  # so often a graph that is being made is written
Progress = Callable[[int, int], object]  # vectors in the graph, of how many
_OPEN: WeakValueDictionary[str, Any] = WeakValueDictionary()  # graphs that were read, by file: servers open a store often


class Approximate:
    """What both kinds share: the exact vectors, the rows of the graph, what is waiting, and the files.

    least: with fewer vectors there is no graph, and search is exact. recall: the recall@10 that the effort of a search is chosen
    for, by measurement, without a filter and under filters that let half of the vectors through; where no effort reaches it, search
    is exact. effort: sets it instead (1, 2, 4 … 128).
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
        self._fixed = effort
        self._effort: float | None = effort  # None: not measured yet, or no effort is enough; search is exact
        self._pick: Pick | None = Pick(MARGINS[0], DEPTHS[-1]) if effort else None  # the same for searches under a filter
        self.exact = Exact(self.folder / "exact", width)
        self._graph: Any = None
        self._shared = False  # whether other stores of this process may hold the same graph
        self._row_ids = np.zeros(0, np.int64)  # id of each row of the graph, -1 for one that does not count
        self._places: np.ndarray | None = None  # the row of each id, -1 for none
        self._made_of = 0  # vectors that the parameters of the graph were chosen for
        self._tuned = False  # whether the effort was measured for the graph as it is
        self._number = 0  # of the graph's files
        self._waiting = np.zeros(0, np.int64)  # ids in the exact store, not in the graph, ascending
        self._changed: set[int] = set()  # added, replaced or deleted since the graph was written
        self._written: set[int] = set()  # of these, what the file holds
        self._load()

    # --- what differs ---

    def _make(self, count: int) -> Any:
        """An empty graph with parameters for that many vectors."""
        raise NotImplementedError

    def _reach(self, effort: float, k: int, depth: int = 0) -> tuple[Any, int]:
        """The parameters of a search of that effort, which finds at least the ``depth`` nearest, and how many candidates for each
        of the k best get exact scores.
        """
        raise NotImplementedError

    def _cost(self, effort: float, depth: int) -> float:
        """About how many vectors can be compared exactly in the time of that search."""
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
        number = self._alive if allowed is None else len(allowed)
        if self._effort is None or 4 * k >= number or (allowed is not None and number <= self.few):
            return self._exactly(queries, k, allowed)
        return self.searched(queries, k, allowed, self._effort, self._pick)

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
        self._graph, self._row_ids, self._places = None, np.zeros(0, np.int64), None
        self._waiting, self._changed, self._written = np.zeros(0, np.int64), set(), set()

    def settle(self, queries: np.ndarray | None = None, progress: Progress | None = None) -> None:
        """Saves, puts what is waiting into the graph, chooses the effort of a search, and writes the graph.

        queries: float32 [Q, E], such as texts, for which the effort has to be enough as well. progress(vectors in the graph, of how
        many). What was killed on the way goes on from what was written last.
        """
        self._save_exact()
        count = len(self)
        if count < self.least:
            return
        rows, dead = len(self._row_ids), int((self._row_ids < 0).sum())
        if self._graph is not None and (dead > DEAD * rows or self._outgrown(count)):
            self._drop()
        grow = self._behind() > (0 if self._graph is None else WAITING)
        if not grow and self._tuned:
            return
        with all_cores(self._faiss):
            if grow:
                self._grow(count, progress)
            self._tune(queries)
        self._write_graph()

    def _grow(self, count: int, progress: Progress | None) -> None:
        """Puts what waits into the graph; a graph is made if there is none."""
        if self._graph is None:
            self._graph, self._made_of, self._shared = self._make(count), count, False
            self._row_ids, self._waiting = np.zeros(0, np.int64), self.exact.ids()
        else:
            if self._shared:
                self._graph, self._shared = self._faiss.read_index(str(self._file("faiss"))), False
        self._tuned, last = False, time.monotonic()
        try:
            while len(self._waiting):
                some = self._waiting[:CHUNK]
                self._graph.add(self.exact.vectors(some))
                self._row_ids, self._places = np.concatenate([self._row_ids, some]), None
                self._waiting = self._waiting[CHUNK:]
                if progress is not None:
                    progress(count - len(self._waiting), count)
                if len(self._waiting) and time.monotonic() - last > SECONDS:
                    self._write_graph()
                    last = time.monotonic()
        except KeyboardInterrupt:
            if self._graph.ntotal == len(self._row_ids) == count - len(self._waiting) + int((self._row_ids < 0).sum()):
                self._write_graph()
            raise

    # --- search ---

    def _exactly(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> Found:
        return self.exact.search(queries, k, None if allowed is None else Where(ids=lambda: allowed))

    def searched(self, queries: np.ndarray, k: int, allowed: np.ndarray | None, effort: float, pick: Pick | None) -> Found:
        """A search of that effort; allowed: ids, ascending. pick: how hits that count are picked out under a filter; None: it is
        exact.
        """
        total = self._graph.ntotal
        rows = None if allowed is None else self._rows(allowed)
        number = self._alive if rows is None else len(rows)
        if number == total:
            parameters, candidates = self._reach(effort, k)
            if self._cost(effort, candidates) >= number:
                return self._exactly(queries, k, allowed)
            _, found = self._graph.search(queries, candidates, params=parameters)
            near = [row[row >= 0] for row in found]
            sure = np.array([len(row) >= k for row in near])
        else:
            marks = self._row_ids >= 0
            if rows is not None:
                marks = np.zeros(total, bool)
                marks[rows] = True
            near, sure = self._picked(queries, k, marks, number, effort, pick)
        waiting = self._waiting
        if allowed is not None and len(waiting):
            waiting = np.intersect1d(waiting, allowed, assume_unique=True)
        some = np.flatnonzero(sure)
        candidates_of = [self._row_ids[near[q]] for q in some]
        if len(waiting) and len(some):
            also = self._exactly(queries[some], k, waiting).ids
            candidates_of = [np.concatenate([held, row[row >= 0]]) for held, row in zip(candidates_of, also, strict=True)]
        result = Found(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
        result.ids[some], result.scores[some] = ranked(queries[some], candidates_of, self.exact.vectors, k)
        rest = np.flatnonzero(~sure)
        if len(rest):
            result.ids[rest], result.scores[rest] = self._exactly(queries[rest], k, allowed)
        return result

    def _picked(
        self, queries: np.ndarray, k: int, marks: np.ndarray, number: int, effort: float, pick: Pick | None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Of the nearest rows of all, those that count, for each query, and for which queries these are the best: there are enough
        among the nearer ones, of which the graph is known to find all.
        """
        near, sure = [np.zeros(0, np.int64) for _ in queries], np.zeros(len(queries), bool)
        if pick is None:
            return near, sure
        _, needed = self._reach(effort, k)
        depth = int(np.ceil(1.5 * pick.margin * needed * len(marks) / number))
        open_ = np.arange(len(queries))
        while len(open_) and depth <= pick.depth and self._cost(effort, depth) < number:
            promising = []
            found = self.nearest(queries[open_], effort, depth)
            for q, row in zip(open_, found, strict=True):
                counts = np.flatnonzero((row >= 0) & marks[row])
                if len(counts) >= needed and counts[needed - 1] < depth / pick.margin:
                    near[q], sure[q] = row[counts[:needed]], True
                elif WIDER * len(counts) >= needed:  # else going further is of no use either
                    promising.append(q)
            open_, depth = np.array(promising, np.int64), max(depth + 1, min(WIDER * depth, pick.depth))
        return near, sure

    def nearest(self, queries: np.ndarray, effort: float, depth: int) -> np.ndarray:
        """Rows of the graph that it takes for the ``depth`` nearest, best first, dead ones too; int64 [Q, depth], -1 for none."""
        parameters, _ = self._reach(effort, 1, depth)
        rows: np.ndarray = self._graph.search(queries, depth, params=parameters)[1]
        return rows

    def row_vectors(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of rows of the graph that count, float32 [N, E]."""
        ids = self._row_ids[rows]
        return self.exact.vectors(ids[ids >= 0])

    def _tune(self, queries: np.ndarray | None) -> None:
        """Chooses the effort, and how hits are picked out, by measurement (``tuned``)."""
        self._tuned = True
        if self._fixed is None:
            self._effort, self._pick = tuned(self, queries)

    # --- the graph's rows ---

    @property
    def _alive(self) -> int:
        """Rows of the graph that count: every vector is in one or waits."""
        return len(self) - len(self._waiting)

    def _behind(self) -> int:
        return len(self) if self._graph is None else len(self._waiting)

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows of the graph of those ids that it holds."""
        if self._places is None:
            rows = np.flatnonzero(self._row_ids >= 0)
            places = np.full(int(self._row_ids.max(initial=-1)) + 1, -1, np.int64)  # ids are given one after the other: few gaps
            places[self._row_ids[rows]] = rows
            self._places = places
        rows = self._places[ids[(ids >= 0) & (ids < len(self._places))]]
        rows = rows[rows >= 0]
        here: np.ndarray = rows[self._row_ids[rows] >= 0]  # a row that no longer counts has the id -1
        return here

    def _touch(self, ids: np.ndarray, there: bool) -> None:
        if self._graph is None:
            return  # everything is waiting
        self._row_ids[self._rows(ids)] = -1
        self._changed.update(ids.tolist())
        if there:
            self._waiting = np.union1d(self._waiting, ids)
        else:
            self._waiting = np.setdiff1d(self._waiting, ids)

    def _drop(self) -> None:
        self._graph, self._places, self._tuned = None, None, False
        self._row_ids, self._waiting = np.zeros(0, np.int64), np.zeros(0, np.int64)

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
        self._number, self._made_of, self._tuned = known["graph"], known["made_of"], "pick" in known
        if (
            self._fixed is None
        ):  # in a file of an older version, or of a graph that is not finished, it is missing: settle measures it
            self._effort, self._pick = known["effort"], Pick(*known["pick"]) if known.get("pick") else None
        try:
            self._graph = self._opened()
            self._row_ids = np.load(self._file("npy"))
            changed = np.load(self._file("changed.npy")) if self._file("changed.npy").is_file() else np.zeros(0, np.int64)
        except (RuntimeError, OSError, ValueError):
            return False
        if self._graph.ntotal != len(self._row_ids) or self._graph.d != self.width:
            return False
        self._changed, self._places = set(changed.tolist()), None
        self._written = set(self._changed)
        self._row_ids[self._rows(changed)] = -1
        held = np.unique(self._row_ids[self._row_ids >= 0])
        there = self.exact.ids()
        self._row_ids[self._rows(np.setdiff1d(held, there, assume_unique=True))] = -1
        self._waiting = np.setdiff1d(there, held, assume_unique=True)
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
        known: dict[str, Any] = {"graph": self._number, "made_of": self._made_of, "effort": self._effort if self._tuned else None}
        known |= {"pick": self._pick} if self._tuned else {}
        write_json(self.folder / LIST, {"format": FORMAT, "kind": self.kind, "width": self.width, **known})
        for path in self.folder.iterdir():
            match = re.match(r"\.?graph-(\d+)\.", path.name)
            if match and int(match[1]) != self._number:
                path.unlink(missing_ok=True)

    def _write_faiss(self, path: Path) -> None:
        self._faiss.write_index(self._graph, str(path))
        with path.open("rb+") as file:
            os.fsync(file.fileno())
