"""The catalog of an index: a row for each picture, in SQLite. What it holds is what the index holds.

One connection for each thread; one process writes at a time (``updating.lock``), any number read. Changes of one ``change()`` are
all there or none, whenever a process dies.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError
from diptych.core.words import words as words_of
from diptych.index.facts import PictureFacts

SCHEMA = """
CREATE TABLE IF NOT EXISTS pictures (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  source INTEGER NOT NULL,
  name TEXT NOT NULL,
  folder TEXT NOT NULL,
  path BLOB,
  position INTEGER NOT NULL,
  stamp TEXT NOT NULL,
  digest BLOB,
  bytes INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL,
  date TEXT NOT NULL,
  caption TEXT NOT NULL,
  words TEXT NOT NULL,
  columns TEXT NOT NULL,
  phash BLOB,
  colours BLOB,
  leader INTEGER NOT NULL,
  state TEXT NOT NULL,
  reason TEXT NOT NULL,
  UNIQUE (source, name)
);
CREATE INDEX IF NOT EXISTS by_digest ON pictures (digest);
CREATE INDEX IF NOT EXISTS by_folder ON pictures (folder);
CREATE INDEX IF NOT EXISTS by_date ON pictures (date);
CREATE INDEX IF NOT EXISTS by_leader ON pictures (leader);
CREATE INDEX IF NOT EXISTS by_state ON pictures (state);
CREATE TABLE IF NOT EXISTS selections (name TEXT NOT NULL, rank INTEGER NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (name, id));
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
# path: of the file, where the name is not its UTF-8; position: in the source, -1 for files of a folder; stamp: changes when the
# picture does; words: of the captions, with spaces around each; leader: the first of its near-duplicates.
COLUMNS = (
    "source", "name", "folder", "path", "position", "stamp", "digest", "bytes", "mtime_ns", "width", "height", "date", "caption",
    "words", "columns", "phash", "colours", "leader", "state", "reason",
)  # fmt: skip
FACTS = "id, source, name, folder, width, height, bytes, date, caption, columns, leader, state, reason"
MANY = 500  # parameters of one statement


class Catalog:
    """The pictures of an index. All ids are of this table; they are never used again."""

    def __init__(self, path: Path):
        self.path = path
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        with self._problems():
            self._connection.executescript(SCHEMA)

    @property
    def _connection(self) -> sqlite3.Connection:
        pid, found = getattr(self._local, "connection", (0, None))
        if found is None or pid != os.getpid():  # a connection must not be shared with a forked process
            found = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            found.execute("PRAGMA journal_mode=WAL")
            found.execute("PRAGMA synchronous=FULL")
            found.execute("PRAGMA cache_size=-65536")
            self._local.connection = (os.getpid(), found)
            self._opened.append(found)
        return found

    @contextmanager
    def _problems(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            text = str(error)
            if "full" in text or "disk I/O" in text:
                raise OSError(f"{self.path}: cannot be written ({text})") from error
            if "locked" in text or "readonly" in text or "unable to open" in text:
                raise DiptychError(f"{self.path}: {text}; may the folder be written, and is no other command using it?") from error
            if "malformed" in text or "not a database" in text:
                raise DiptychError(
                    f"{self.path}: damaged ({text}); restore it from a copy, or delete the index and index again"
                ) from error
            raise

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """A transaction: what is done in it is lasting when it ends, all or nothing."""
        with self._problems():
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("INSERT INTO meta VALUES ('generation', '1') ON CONFLICT (key) DO UPDATE SET value = value + 1")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def touch(self) -> None:
        """Raises the generation: readers open anew what they hold."""
        with self.change():
            pass

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._problems():
            return self._connection.execute(sql, values).fetchall()

    def column(self, sql: str, values: Sequence[Any] = ()) -> np.ndarray:
        """The one integer column of a query, int64."""
        with self._problems():
            return np.fromiter((row[0] for row in self._connection.execute(sql, values)), np.int64)

    def one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first value of the first row; None if there is no row."""
        with self._problems():
            row = self._connection.execute(sql, values).fetchone()
        return None if row is None else row[0]

    def generation(self) -> int:
        """A number that grows with every change."""
        return int(self.one("SELECT value FROM meta WHERE key = 'generation'") or 0)

    def next_id(self) -> int:
        """The id of the next picture: above all that there ever were."""
        return int(self.one("SELECT seq FROM sqlite_sequence WHERE name = 'pictures'") or 0) + 1

    def facts(self, ids: Sequence[int], addresses: Sequence[str]) -> dict[int, PictureFacts]:
        """The pictures of these ids, as far as there are any. addresses: of the sources."""
        found: dict[int, PictureFacts] = {}
        for start in range(0, len(ids), MANY):
            some = [int(i) for i in ids[start : start + MANY]]
            marks = ",".join("?" * len(some))
            for row in self.rows(f"SELECT {FACTS} FROM pictures WHERE id IN ({marks})", some):
                found[row[0]] = _picture(row, addresses)
        return found

    def present(self, ids: Sequence[int]) -> set[int]:
        """Which of these ids are those of pictures that can be searched."""
        found: set[int] = set()
        for start in range(0, len(ids), MANY):
            some = [int(i) for i in ids[start : start + MANY]]
            sql = f"SELECT id FROM pictures WHERE state = 'ok' AND id IN ({','.join('?' * len(some))})"
            found.update(row[0] for row in self.rows(sql, some))
        return found

    def rows_of(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Whole rows, by id, as dicts of ``id`` and ``COLUMNS``."""
        names = ("id", *COLUMNS)
        found = {}
        for start in range(0, len(ids), MANY):
            some = [int(i) for i in ids[start : start + MANY]]
            sql = f"SELECT {', '.join(names)} FROM pictures WHERE id IN ({','.join('?' * len(some))})"
            found.update({row[0]: dict(zip(names, row, strict=True)) for row in self.rows(sql, some)})
        return found

    def close(self) -> None:
        """Closes all connections."""
        for connection in self._opened:
            connection.close()
        self._opened = []
        self._local = threading.local()


def _picture(row: tuple[Any, ...], addresses: Sequence[str]) -> PictureFacts:
    id, source, name, folder, width, height, size, date, caption, columns, leader, state, reason = row
    return PictureFacts(
        id, name, addresses[source], folder, width, height, size, date, caption, json.loads(columns), leader, state, reason
    )


def insert(connection: sqlite3.Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows, or replaces those of the same id. Each has ``id`` and all of ``COLUMNS``."""
    names = ("id", *COLUMNS)
    assigned = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS)
    connection.executemany(
        f"INSERT INTO pictures ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) "
        f"ON CONFLICT (id) DO UPDATE SET {assigned}",
        [tuple(row[name] for name in names) for row in rows],
    )


def searchable(texts: Iterable[str]) -> str:
    """The words of texts, each with a space on both sides, letter case and form folded: ``words`` of the table."""
    found = dict.fromkeys(word.casefold() for text in texts for word in words_of(text))
    return f" {' '.join(found)} " if found else ""
