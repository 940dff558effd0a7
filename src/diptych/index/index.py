"""An index of pictures: made once, brought up to date by the same command, searched by words and pictures.

``my.index/``: ``index.json`` (the addresses, the model's stamp, the kind of store), ``catalog.sqlite`` (a row for each picture),
``vectors/`` (the store's files).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, counted
from diptych.core.files import check_format, read_json_or, write_json
from diptych.data.image import decode
from diptych.data.source import BrokenItem
from diptych.index import columns as column_facts
from diptych.index.calibrate import Calibration
from diptych.index.catalog import Catalog
from diptych.index.cutoff.rerank import Reranker
from diptych.index.facts import Changes, PictureFacts
from diptych.index.filters import Condition, Where, conditions_of, sql_of
from diptych.index.judging import calibrate
from diptych.index.map import Cluster, Map, map_of
from diptych.index.move import finish_store, move_store
from diptych.index.query import Answer, Hit, Query
from diptych.index.search import search, steady
from diptych.index.selections import Selections
from diptych.index.stamp import check_stamp, stamp_of
from diptych.index.stores import open_store, parse_store
from diptych.index.stores.base import Store
from diptych.index.stores.move import Moved
from diptych.index.updating.lock import locked
from diptych.index.updating.reading import hash_of, picture_of
from diptych.index.updating.scan import Collection, Item, absolute, check_clips, collection

__all__ = ["Answer", "Changes", "Cluster", "Hit", "Index", "Map", "PictureFacts", "Query", "Where"]

FORMAT = 1
INFO = "index.json"
KEPT = 64  # results of filters that are kept


class Index:
    """Pictures with vectors by one model. ``create`` or ``open`` it; methods that read may be called by several threads."""

    def __init__(self, path: Path, info: dict[str, Any]):
        self.path, self.info = path, info
        self.catalog = Catalog(path / "catalog.sqlite")
        self.selections_ = Selections(self.catalog)
        self._store: Store | None = None
        self._generation = -1
        self._lock = threading.Lock()
        self._ids: dict[str, np.ndarray] = {}
        self._collections: dict[int, Collection] = {}
        self._collected: Any = None  # the catalog's generation that they are of
        self._facts: tuple[int, dict[str, Any]] | None = None
        self.calibration_: tuple[int, Calibration | None] | None = None
        self.model: Model | None = None  # that the index was opened with

    @classmethod
    def create(
        cls,
        path: str | Path,
        address: str | Sequence[str],
        model: Model,
        model_address: str,
        store: str = "auto",
        options: Mapping[str, Any] | None = None,
        limit: int | None = None,
        background: str | None = None,
    ) -> Index:
        """A new index, without pictures until ``update`` is called.

        address: of the data, one or several; places on this machine are kept as absolute paths. model_address: as the user names
        the model, for remedies. store: its kind, ``auto`` for exact search up to a million pictures and hnsw beyond; options: of
        its constructor. limit: at most so many pictures of each address. background: data with captions that the cut-off compares
        with, best those that the model was trained on (default: the packaged texts).
        """
        path = Path(path)
        if (path / INFO).exists():
            raise DiptychError(f"{path}: there is an index already; open it, or choose another place")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise DiptychError(f"{path}: is there already, and is no index; choose another place")
        addresses = [absolute(a) for a in ([address] if isinstance(address, str) else address)]
        if not addresses or len(set(addresses)) < len(addresses):
            raise DiptychError("an index needs addresses of data, each once")
        # a wrong address, and clips for a model of pictures, are errors before anything is written
        check_clips([collection(each, limit) for each in addresses], model)
        stamp = stamp_of(model, model_address)
        kind, options = parse_store("exact" if store == "auto" else store, options)
        info = {
            "format": FORMAT,
            "stamp": stamp,
            "store": {"kind": kind, "options": options, "auto": store == "auto", "folder": "vectors"},
            "addresses": addresses,
            "limit": limit,
            "background": None if background is None else absolute(background),
        }
        open_store(kind, path / "vectors", stamp["width"], options).close()
        write_json(path / INFO, info)
        return cls(path, info)

    @classmethod
    def open(cls, path: str | Path, model: Model | None = None, model_address: str | None = None) -> Index:
        """The index in a directory. model: DiptychError if the vectors are by another; model_address: as the user names it."""
        path = Path(path)
        index = cls(path, cls._read_info(path))
        if model is not None:
            index.check(model, model_address)
        return index

    @staticmethod
    def _read_info(path: Path) -> dict[str, Any]:
        if not (path / INFO).is_file():
            what = "no index in it (no index.json)" if path.is_dir() else "there is no such directory"
            raise DiptychError(f"{path}: {what}; make one: diptych index folder:my/photos --out {path}")
        info: dict[str, Any] = read_json_or(path / INFO, {})
        check_format(info.get("format"), FORMAT, str(path / INFO))
        missing = [key for key in ("stamp", "store", "addresses") if key not in info]
        if missing:
            raise DiptychError(f"{path / INFO}: '{missing[0]}' is missing; restore it from a copy, or delete the index")
        return info

    def check(self, model: Model, address: str | None = None) -> None:
        """DiptychError, with the remedy, if the vectors are not by this model."""
        check_stamp(self.info["stamp"], model, str(self.path), address)
        self.model = model

    # --- what is in it ---

    @property
    def addresses(self) -> list[str]:
        """Of the data."""
        return list(self.info["addresses"])

    @property
    def limit(self) -> int | None:
        """At most so many pictures of each address; None: all."""
        return self.info.get("limit")

    @property
    def width(self) -> int:
        """The length of a vector."""
        return int(self.info["stamp"]["width"])

    @property
    def finished(self) -> bool:
        """Whether the last update reached its end."""
        return bool(self.catalog.one("SELECT value FROM meta WHERE key = 'finished'") == "1")

    def __len__(self) -> int:
        return int(self.catalog.one("SELECT count(*) FROM pictures WHERE state = 'ok'"))

    @property
    def facts(self) -> dict[str, Any]:
        """What the pages and commands show of an index.

        ``count``, ``broken``, ``width``, ``model`` (its address), ``folders`` (with the pictures in each and below), ``columns``
        (by name: ``type``, ``text`` or ``number``, and ``values`` with their ``counts`` where there are at most 50, or ``min`` and
        ``max``), ``dates`` (first, last), ``captions`` (whether there are any), ``addresses``, ``store``, ``recall`` (measured
        when the store was built; None for exact search), ``finished``.
        """
        return column_facts.facts_of(self)

    def columns(self) -> list[str]:
        """Names of the columns of the data."""
        return list(self.facts["columns"])

    def picture(self, id: int) -> PictureFacts | None:
        """The picture of an id; None if there is none."""
        return self.catalog.facts([id], self.addresses).get(id) if -(2**63) <= id < 2**63 else None

    def pictures(self, ids: Sequence[int]) -> list[PictureFacts]:
        """The pictures of ids, in that order, without those that are gone."""
        found = self.catalog.facts(list(ids), self.addresses)
        return [found[int(i)] for i in ids if int(i) in found]

    def broken(self) -> dict[str, str]:
        """Names of the pictures that could not be read, with the reasons."""
        return dict(self.catalog.rows("SELECT name, reason FROM pictures WHERE state = 'broken' ORDER BY id"))

    def file(self, id: int) -> bytes:
        """The bytes of the picture of an id, as they were indexed. DiptychError if they changed, are gone, or are pixels only."""
        content = self.content(id)
        if isinstance(content, np.ndarray):
            raise DiptychError(f"{self.path}: picture {id} has no file: its data holds pixels")
        return content

    def read(self, id: int) -> np.ndarray:
        """The pixels of the picture of an id, uint8 [height, width, 3], upright; of a clip eight of its frames as one picture.
        DiptychError as ``file``.
        """
        content = self.content(id)
        try:
            return picture_of(content) if isinstance(content, np.ndarray) else decode(content, str(id))
        except BrokenItem as error:
            raise DiptychError(f"{self.path}: picture {error}") from error

    def collection(self, source: int) -> Collection:
        """The pictures of one of the addresses, by its number."""
        generation = self.catalog.generation()
        with self._lock:
            if generation != self._collected:  # positions in a table may have moved
                self._collections, self._collected = {}, generation
            if source not in self._collections:
                self._collections[source] = collection(self.addresses[source], self.limit)
            return self._collections[source]

    def content(self, id: int) -> bytes | np.ndarray:
        """The file of a picture as it was indexed, or its pixels where the data holds those. DiptychError as ``file``."""
        rows = self.catalog.rows("SELECT source, name, path, position, digest FROM pictures WHERE id = ?", (id,))
        if not rows:
            raise DiptychError(f"{self.path}: there is no picture {id}")
        source, name, raw, position, digest = rows[0]
        again = "bring the index up to date: run the same diptych index again"
        held = self.collection(source)
        path = held.path_of(name, raw, position)
        try:
            content = Path(path).read_bytes() if path else held.content(Item(name, "", position=position))
        except (OSError, BrokenItem, IndexError) as error:
            reason = (
                error.problem.reason if isinstance(error, BrokenItem) else getattr(error, "strerror", None) or "its row is gone"
            )
            raise DiptychError(f"{self.path}: picture {id} ({name}) cannot be read: {reason}; {again}") from error
        if hash_of(content) != digest:
            raise DiptychError(f"{self.path}: picture {id} ({name}) has changed since it was indexed; {again}")
        return content

    # --- searching ---

    @property
    def store(self) -> Store:
        """The store of vectors as it is now, for reading."""
        generation = self.catalog.generation()
        with self._lock:
            if self._store is None or generation != self._generation:
                if self._store is not None:
                    self.info = self._read_info(self.path)  # it may have moved to another kind
                self._store, self._generation, self._ids = self.opened_store(), generation, {}
            return self._store

    def opened_store(self) -> Store:
        """The store, opened anew."""
        held = self.info["store"]
        return open_store(held["kind"], self.path / held["folder"], self.width, held["options"])

    def where(self, filters: Mapping[str, Any]) -> Where:
        """The pictures that fulfil all filters.

        ``folder`` (and below it), ``address``, ``since`` and ``until`` (2024, 2024-05, 2024-05-31, 2024-05-31T12:00), ``words``
        (all in the captions), ``min_width``, ``max_width``, ``min_height``, ``max_height``, ``min_bytes``, ``max_bytes``,
        ``columns`` (by name a value, a list of values, or ``min`` and ``max``). DiptychError for an unknown filter, column or
        value.
        """
        conditions = conditions_of(filters, self.columns() if filters.get("columns") else ())
        return Where(conditions, lambda: self._ids_of(conditions))

    def _ids_of(self, conditions: tuple[Condition, ...]) -> np.ndarray:
        kept = self._ids
        key = repr(conditions)  # not the conditions themselves: True and 1 are equal
        ids = kept.get(key)
        if ids is None:
            text, values = sql_of(conditions, self.addresses)
            ids = self.catalog.column(f"SELECT id FROM pictures WHERE {text} ORDER BY id", values)
            with self._lock:
                while len(kept) >= KEPT:
                    kept.pop(next(iter(kept)))
                kept[key] = ids
        return ids

    def search(
        self,
        query: Query,
        model: Model,
        n: int = 20,
        offset: int = 0,
        filters: Mapping[str, Any] | None = None,
        fold: bool = True,
        cutoff: bool = True,
        rerank: Reranker | None = None,
    ) -> Answer:
        """The n nearest pictures after the first ``offset``. An empty query lists the pictures, the latest first.

        fold: near-duplicates are one hit, the best of them. cutoff: the answer says when there is nothing of the kind. rerank: a
        second model that puts the first 20 hits of a search by words in order and decides whether there is anything. DiptychError
        for a filter that does not exist, an id that is not there, or what the model cannot read.
        """
        return steady(self, lambda: search(self, query, model, n, offset, filters, fold, cutoff, rerank))

    # --- changing ---

    def update(self, model: Model, progress: Any = None, jobs: int | None = None, graph: Any = None) -> Changes:
        """Brings the index up to date: new, changed, renamed and deleted pictures. Resumable: killed at any time, the next update
        goes on. progress(done, of how many); jobs: threads that read pictures; graph(vectors, of how many): the progress of a store
        that makes something of its vectors at the end.

        DiptychError for another model, a full disk, an index that another process writes; Interrupted on Ctrl-C, when what is done
        was kept.
        """
        from diptych.index.updating.update import update

        with locked(self.path):
            self.check(model)
            with self.catalog.change() as connection:
                connection.execute("INSERT OR IGNORE INTO meta VALUES ('finished', '0')")
                connection.execute("UPDATE meta SET value = '0' WHERE key = 'finished'")
            self._collections = {}
            return update(self, model, progress, jobs, graph)

    def finish(self, store: Store, model: Model, graph: Any = None) -> None:
        """The end of an update: the calibration, and what stores that approximate find."""
        calibrate(self, store, model)
        finish_store(self, store, graph)
        with self.catalog.change() as connection:
            connection.execute("UPDATE meta SET value = '1' WHERE key = 'finished'")

    def move(self, store: str, options: Mapping[str, Any] | None = None, progress: Any = None, graph: Any = None) -> Moved:
        """Moves the vectors to a store of another kind (``milvus:URL`` for one elsewhere), with their ids; every vector and the top
        10 are compared before the old store is let go. A move that was stopped goes on with the same call. progress, graph: as of
        ``update``.
        """
        with locked(self.path):
            return move_store(self, store, options, progress, graph)

    def map(self, model: Model | None = None, groups: int | None = None) -> Map:
        """Pictures that are alike near each other in the plane, in groups that the model names (default: the model that the
        index was opened with); kept until the index changes.
        """
        return map_of(self, model or self.model, groups)

    # --- selections ---

    def select(self, name: str, ids: Sequence[int]) -> str:
        """Keeps pictures under a name, in place of those of that name before, and returns the address of the data:
        ``index:PATH?selection=NAME``.
        """
        self.selections_.put(name, ids, self.path)
        return f"index:{self.path}?selection={name}"

    def selections(self) -> dict[str, list[int]]:
        """The selections with their ids, in the order in which they were given."""
        return self.selections_.all()

    def delete_selection(self, name: str) -> None:
        """Removes a selection. DiptychError if there is none of that name."""
        self.selections_.delete(name, self.path)

    def close(self) -> None:
        """Lets go of all files."""
        if self._store is not None:
            self._store.close()
            self._store = None
        self.catalog.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}, {counted(len(self), 'picture')})"
