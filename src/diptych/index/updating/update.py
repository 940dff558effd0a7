"""Bringing an index up to date: only what changed is read, only new contents get vectors.

Vectors are saved before the rows that name them, and rows are deleted before their vectors: whenever the process dies, the rows are
right, and vectors without a row are removed by the next update.
"""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, Interrupted, counted
from diptych.core.signals import handled
from diptych.index.catalog import insert, searchable
from diptych.index.facts import Changes
from diptych.index.filters import OWN
from diptych.index.stores.base import Store
from diptych.index.stores.engine import Engine
from diptych.index.updating.duplicates import leaders
from diptych.index.updating.plan import Plan, Task, caption_of, columns_text, plan
from diptych.index.updating.reading import Read, read
from diptych.index.updating.scan import Collection, check_clips, collection

if TYPE_CHECKING:
    from diptych.index.index import Index

BATCH = 64  # pictures that the model gets at a time
CHUNK = 512  # pictures that become lasting together,
SECONDS = 5.0  # or after so long
IN_FLIGHT = 1 << 29  # bytes of decoded pixels that wait for the model
Progress = Callable[[int, int], Any]  # pictures done, of how many


class _Stop:
    """Ctrl-C while vectors are made ends the work after the batch, so that it is kept; at other times, and twice, at once."""

    def __init__(self) -> None:
        self.gentle = self.asked = False

    def __call__(self, number: int, frame: Any) -> None:
        if not self.gentle or self.asked:
            raise KeyboardInterrupt
        self.asked = True


def update(
    index: Index, model: Model, progress: Progress | None = None, jobs: int | None = None, graph: Progress | None = None
) -> Changes:
    """``Index.update``, with the index locked."""
    began = time.monotonic()
    changes = Changes()
    stop = _Stop()
    workers = jobs or min(8, os.cpu_count() or 1)
    with handled([signal.SIGINT, signal.SIGTERM], stop), _room(index), ThreadPoolExecutor(workers) as pool:
        store = index.opened_store()
        try:
            recover(index, store)
            collections = [collection(address, index.limit) for address in index.addresses]
            check_clips(collections, model)
            todo = plan(index.catalog, collections, pool)
            changes.unchanged = todo.unchanged
            _apply(index, store, todo, changes)
            stop.gentle = True
            _embed(index, store, model, collections, todo, pool, changes, stop, progress)
            stop.gentle = False
            if stop.asked:
                raise KeyboardInterrupt
            if changes.new or changes.changed or changes.deleted or not index.finished:
                regroup(index)
            index.finish(store, model, graph)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise Interrupted(
                f"stopped: {counted(len(store), 'picture')} are kept in {index.path}; the same command continues"
            ) from None
        finally:
            store.close()
    changes.seconds = time.monotonic() - began
    return changes


@contextmanager
def _room(index: Index) -> Iterator[None]:
    """A full disk as an error with a remedy."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        number = getattr(error, "errno", None)
        short = "cannot be written" in str(error) or (number is None and "requested" in str(error))  # SQLite's, and NumPy's words
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not short:
            raise
        raise DiptychError(
            f"{index.path}: the disk is full ({getattr(error, 'strerror', None) or error}). What was indexed before is kept: make "
            "room, and the same command continues"
        ) from error


def recover(index: Index, store: Store) -> None:
    """Removes vectors of pictures that are not in the catalog: a process died between the two."""
    known = index.catalog.column("SELECT id FROM pictures WHERE state = 'ok' ORDER BY id")
    held = store.ids()
    if len(held) == len(known) and np.array_equal(held, known):
        return
    extra = np.setdiff1d(held, known)
    lost = np.setdiff1d(known, held)
    if len(extra):
        store.delete(extra)
        store.save()
    if len(lost):  # never by a crash; a store that lost them, or was restored from an older copy
        with index.catalog.change() as connection:
            connection.executemany("DELETE FROM pictures WHERE id = ?", [(int(i),) for i in lost])


def _apply(index: Index, store: Store, todo: Plan, changes: Changes) -> None:
    """Renames, new texts and deletions."""
    changes.renamed = sum(same.moved for same in todo.same)
    changes.described = sum(same.described and not same.moved for same in todo.same)
    changes.deleted = len(todo.gone)
    rows = [_facts_of(same.source, same.item, same.stamp) | {"id": same.id} for same in todo.same]
    if not rows and not todo.gone:
        return
    if rows and holds_columns(store):
        moved = np.array([row["id"] for row in rows], np.int64)
        states = {i for (i,) in index.catalog.rows("SELECT id FROM pictures WHERE state = 'ok'")}
        moved = moved[[int(i) in states for i in moved]]
        known = index.catalog.facts(moved.tolist(), index.addresses)
        fresh = {row["id"]: row for row in rows}
        store.add(moved, store.vectors(moved), [store_row(_updated(known[i], fresh[i]), index.addresses) for i in moved.tolist()])
        store.save()
    with index.catalog.change() as connection:
        connection.executemany("DELETE FROM pictures WHERE id = ?", [(i,) for i in todo.gone])
        # A name may pass from one picture to another: all give theirs up first.
        connection.executemany("UPDATE pictures SET name = char(0) || id WHERE id = ?", [(s.id,) for s in todo.same if s.moved])
        names = ("source", "name", "folder", "path", "position", "stamp", "mtime_ns", "caption", "words", "columns")
        connection.executemany(f"UPDATE pictures SET {', '.join(f'{name} = :{name}' for name in names)} WHERE id = :id", rows)
    if todo.gone:
        store.delete(np.array(todo.gone, np.int64))
        store.save()


def _updated(known: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: getattr(known, name) for name in ("width", "height", "bytes", "date")}
    return {**row, **own}


def holds_columns(store: Store) -> bool:
    """Whether a store filters by itself, and so has to know when the facts of a picture change."""
    return bool(getattr(store, "holds_columns", isinstance(store, Engine)))


def store_row(row: Mapping[str, Any], addresses: Sequence[str]) -> dict[str, Any]:
    """The columns of a picture for a store that filters by itself: those of ``filters.FACTS``, and ``column_NAME``."""
    import json

    facts = {name: row[name] for name in ("folder", "name", "date", "width", "height", "bytes", "caption")}
    own = {f"{OWN}{name}": value for name, value in json.loads(row["columns"]).items()}
    return {"address": addresses[row["source"]], **facts, **own}


def _facts_of(source: int, item: Any, stamp: str) -> dict[str, Any]:
    """What a row says of an item that was not read."""
    return {
        "source": source, "name": item.name, "folder": item.folder, "path": item.raw,
        "position": item.position, "stamp": stamp, "mtime_ns": _held(item.mtime_ns), "caption": caption_of(item),
        "words": searchable(item.captions), "columns": columns_text(item),
    }  # fmt: skip


def _row_of(task: Task, found: Read) -> dict[str, Any]:
    height, width = found.pixels.shape[-3:-1] if found.pixels is not None else (0, 0)
    return {
        **_facts_of(task.source, task.item, found.stamp),
        "digest": found.digest or None, "bytes": found.size, "mtime_ns": _held(found.mtime_ns), "width": width, "height": height,
        "date": found.date, "phash": found.phash or None, "colours": found.colours or None, "leader": 0,
        "state": "broken" if found.reason else "ok", "reason": found.reason,
    }  # fmt: skip


def _embed(
    index: Index,
    store: Store,
    model: Model,
    collections: Sequence[Collection],
    todo: Plan,
    pool: ThreadPoolExecutor,
    changes: Changes,
    stop: _Stop,
    progress: Progress | None,
) -> None:
    """Reads all items of the plan and gives them vectors, in order. Pictures are decoded while the model works."""
    done = todo.total - len(todo.tasks)
    if progress:
        progress(done, todo.total)
    pending: list[tuple[Task, dict[str, Any], np.ndarray | None]] = []
    last = time.monotonic()

    def flush() -> None:
        """Makes lasting what is pending."""
        nonlocal pending, last
        if pending:
            _commit(index, store, pending, changes)
        pending, last = [], time.monotonic()

    try:
        for batch in _batches(todo.tasks, collections, pool):
            pending += _with_vectors(model, batch)
            done += len(batch)
            if len(pending) >= CHUNK or time.monotonic() - last > SECONDS or stop.asked:
                flush()
            if progress:
                progress(done, todo.total)
            if stop.asked:
                return
    finally:
        flush()


def _batches(
    tasks: Sequence[Task], collections: Sequence[Collection], pool: ThreadPoolExecutor
) -> Iterator[list[tuple[Task, Read]]]:
    """Tasks with what was read, in order, in batches for the model; the next ones are read meanwhile."""
    waiting: deque[tuple[Task, Future[Read]]] = deque()
    batch: list[tuple[Task, Read]] = []
    position = held = 0
    while position < len(tasks) or waiting:
        ready = sum(_size(f) for _, f in waiting if f.done())
        while position < len(tasks) and len(waiting) < 2 * BATCH and (len(waiting) < 4 or ready + held < IN_FLIGHT):
            task = tasks[position]
            waiting.append((task, pool.submit(read, task.item, collections[task.source])))
            position += 1
        task, future = waiting.popleft()
        found = future.result()
        batch.append((task, found))
        held += _size(future)
        if len(batch) >= BATCH or held > IN_FLIGHT // 2:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _size(future: Future[Read]) -> int:
    pixels = future.result().pixels
    return 0 if pixels is None else pixels.nbytes


def _with_vectors(model: Model, batch: Sequence[tuple[Task, Read]]) -> list[tuple[Task, dict[str, Any], np.ndarray | None]]:
    """Each task with its row and its vector; None if it is broken. Pixels are let go."""
    good = [found.pixels for _, found in batch if found.pixels is not None and not found.reason]
    vectors = iter(_unit(np.asarray(model.embed_image(good), np.float32)) if good else ())
    result = []
    for task, found in batch:
        row, vector = _row_of(task, found), None
        if found.pixels is not None and not found.reason:
            vector = next(vectors)
            if not np.isfinite(vector).all() or not vector.any():
                row["state"], row["reason"], vector = "broken", f"model '{model.name}' has no finite vector of it", None
        found.pixels = None
        result.append((task, row, vector))
    return result


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; those that have it stay as they are, to the bit."""
    far = np.abs(np.linalg.norm(vectors, axis=1) - 1) > 1e-3
    return np.where(far[:, None], unit_rows(vectors), vectors) if far.any() else vectors


def _commit(
    index: Index, store: Store, pending: Sequence[tuple[Task, dict[str, Any], np.ndarray | None]], changes: Changes
) -> None:
    """Saves vectors, then rows."""
    free = index.catalog.next_id()
    ids = []
    for task, row, _ in pending:
        row["id"] = free if task.id is None else task.id
        row["leader"] = row["id"]
        free += task.id is None
        ids.append(row["id"])
    good = [(row, vector) for _, row, vector in pending if vector is not None]
    if good:
        rows = [store_row(row, index.addresses) for row, _ in good] if holds_columns(store) else None
        store.add(np.array([row["id"] for row, _ in good], np.int64), np.stack([vector for _, vector in good]), rows)
        store.save()
    with index.catalog.change() as connection:
        insert(connection, [row for _, row, _ in pending])
    spoilt = [row["id"] for task, row, vector in pending if vector is None and task.id is not None]
    if spoilt:
        store.delete(np.array(spoilt, np.int64))
        store.save()
    for task, row, vector in pending:
        if vector is None:
            changes.broken[row["name"]] = row["reason"]
        elif task.id is None:
            changes.new += 1
        else:
            changes.changed += 1


def regroup(index: Index) -> None:
    """Finds the near-duplicates among all pictures."""
    rows = index.catalog.rows("SELECT id, phash, colours, leader FROM pictures WHERE state = 'ok' ORDER BY id")
    if not rows:
        return
    ids = np.array([row[0] for row in rows], np.int64)
    hashes = np.frombuffer(b"".join(row[1] for row in rows), ">u8").astype(np.uint64)
    shown = np.frombuffer(b"".join(row[2] for row in rows), np.uint8).reshape(len(rows), -1)
    leader = ids[leaders(hashes, shown)]
    before = np.array([row[3] for row in rows], np.int64)
    other = np.flatnonzero(leader != before)
    if len(other):
        with index.catalog.change() as connection:
            values = [(int(leader[i]), int(ids[i])) for i in other]
            connection.executemany("UPDATE pictures SET leader = ? WHERE id = ?", values)


def _held(mtime_ns: int) -> int:
    """A time of change as a number that the catalog can hold: those after 2262 are its largest."""
    return max(-(2**63), min(mtime_ns, 2**63 - 1))
