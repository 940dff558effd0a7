"""What changed since the last update: new, changed, renamed and deleted pictures, by stamps and hashes of their content."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diptych.core.errors import DiptychError
from diptych.index.catalog import Catalog
from diptych.index.updating.reading import digest_of
from diptych.index.updating.scan import Collection, Item

KNOWN = "id, name, stamp, digest, bytes, position, caption, columns, state"


class Known(NamedTuple):
    """A row of the catalog, as far as a comparison needs it."""

    id: int
    name: str
    stamp: str
    digest: bytes | None
    bytes: int
    position: int
    caption: str
    columns: str
    state: str


class Task(NamedTuple):
    """An item that has to be read. id: of the picture that it replaces; None: it is a new one. source: its number."""

    source: int
    item: Item
    id: int | None


class Same(NamedTuple):
    """A known content. stamp: of the item now. moved: whether its name is another. described: whether its texts are others."""

    id: int
    source: int
    item: Item
    stamp: str
    moved: bool
    described: bool


@dataclass
class Plan:
    """What an update has to do. same: known pictures with another stamp, name or text; gone: ids that are no longer there."""

    tasks: list[Task] = field(default_factory=list)
    same: list[Same] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    unchanged: int = 0
    total: int = 0


def caption_of(item: Item) -> str:
    """The captions of an item as the catalog holds them: a line for each."""
    return "\n".join(" ".join(caption.split()) for caption in item.captions)


def columns_text(item: Item) -> str:
    """The columns of an item as the catalog holds them."""
    return json.dumps(item.columns, ensure_ascii=False, sort_keys=True)


def plan(catalog: Catalog, collections: Sequence[Collection], pool: ThreadPoolExecutor) -> Plan:
    """Compares what is there with what the catalog holds. Reads the files of which the stamp changed, and new ones that may be
    renamed ones. DiptychError if a collection with pictures in the index is empty now.
    """
    result = Plan()
    new: list[tuple[int, Item]] = []
    touched: list[tuple[int, Item, Known]] = []
    missing: list[Known] = []
    for source, collection in enumerate(collections):
        rows = catalog.rows(f"SELECT {KNOWN} FROM pictures WHERE source = ?", (source,))
        known = {row[1]: Known(*row) for row in rows}
        before = len(known)
        count = 0
        for item in collection.items():
            count += 1
            row = known.pop(item.name, None)
            if row is None:
                new.append((source, item))
            elif item.stamp and item.stamp == row.stamp:
                result.unchanged += 1
                if described(item, row) or item.position != row.position:
                    result.same.append(Same(row.id, source, item, row.stamp, False, described(item, row)))
            else:
                touched.append((source, item, row))
        if before and not count:
            raise DiptychError(
                f"{collection.address}: no pictures in it now, {before:,} in the index: is a disk not mounted? If they are gone, "
                "delete the index"
            )
        missing += known.values()
        result.total += count
    _compare(result, collections, pool, new, touched, missing)
    return result


def described(item: Item, row: Known) -> bool:
    """Whether an item has other captions or columns than its row."""
    return caption_of(item) != row.caption or columns_text(item) != row.columns


def _compare(
    result: Plan,
    collections: Sequence[Collection],
    pool: ThreadPoolExecutor,
    new: list[tuple[int, Item]],
    touched: list[tuple[int, Item, Known]],
    missing: list[Known],
) -> None:
    """Sorts items by their content: the same, a known one under another name, or one to be read."""
    hashes = pool.map(lambda t: digest_of(t[1], collections[t[0]]), touched)
    changed: list[tuple[int, Item, Known, bytes, str]] = []
    for (source, item, row), (digest, stamp) in zip(touched, hashes, strict=True):
        if digest and digest == row.digest:
            result.unchanged += 1
            result.same.append(Same(row.id, source, item, stamp or item.stamp, False, described(item, row)))
        else:
            changed.append((source, item, row, digest, stamp))
    free: dict[bytes, deque[Known]] = defaultdict(deque)  # contents that are no longer where they were
    for row in sorted([*missing, *(row for _, _, row, _, _ in changed)]):
        if row.digest and row.state == "ok":
            free[row.digest].append(row)
    sizes = {row.bytes for rows in free.values() for row in rows}
    likely = [(s, item) for s, item in new if free and (item.size in sizes or item.size < 0)]
    found = dict(zip((id(item) for _, item in likely), pool.map(lambda t: digest_of(t[1], collections[t[0]]), likely), strict=True))
    moved: set[int] = set()
    left: list[tuple[int, Item, Known | None]] = []
    arrived: Iterable[tuple[int, Item, Known | None, bytes, str]] = [
        *((s, item, None, *found.get(id(item), (b"", ""))) for s, item in new),
        *((s, item, row, digest, stamp) for s, item, row, digest, stamp in changed),
    ]
    for source, item, own, digest, stamp in arrived:
        if digest and free.get(digest):
            row = free[digest].popleft()
            moved.add(row.id)
            result.same.append(Same(row.id, source, item, stamp or item.stamp, True, described(item, row)))
        else:
            left.append((source, item, own))
    kept: set[int] = set()
    for source, item, own in left:
        replaced = None if own is None or own.id in moved else own.id
        kept |= set() if replaced is None else {replaced}
        result.tasks.append(Task(source, item, replaced))
    result.tasks.sort(key=lambda t: (t.source, t.item.position, t.item.name))
    gone: list[Any] = [*missing, *(row for _, _, row, _, _ in changed)]
    result.gone = sorted(row.id for row in gone if row.id not in moved and row.id not in kept)
