"""Vectors from one kind of store to another, with their ids."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from diptych.core.files import write_json
from diptych.index.stores import EXACT_TO, open_store

if TYPE_CHECKING:
    from diptych.index.index import Index

CHUNK = 16_384  # vectors at a time


def move(index: Index, kind: str, options: Mapping[str, Any] | None, progress: Callable[[int, int], Any] | None) -> None:
    """``Index.move``, with the index locked. The old store is there until the new one is complete."""
    from diptych.index.update import recover, store_row

    held = index.info["store"]
    automatic = kind == "auto"
    kind = ("exact" if len(index) <= EXACT_TO else "hnsw") if automatic else kind
    name = "vectors" if held["folder"] != "vectors" else f"vectors-{kind}"
    folder = index.path / name
    if folder.exists():  # of a move that was killed
        shutil.rmtree(folder)
    old = index.opened_store()
    recover(index, old)
    new = open_store(kind, folder, index.width, options)
    ids = old.ids()
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        rows = None
        if getattr(new, "holds_columns", False):
            known = index.catalog.rows_of(some.tolist())
            rows = [store_row(known[int(i)], index.addresses) for i in some]
        new.add(some, old.vectors(some), rows)
        new.save()
        if progress:
            progress(min(start + CHUNK, len(ids)), len(ids))
    new.close()
    old.close()
    before = index.path / held["folder"]
    index.info["store"] = {"kind": kind, "options": dict(options or {}), "auto": automatic, "folder": name}
    write_json(index.path / "index.json", index.info)
    with index.catalog.change():  # readers open the new store
        pass
    shutil.rmtree(before, ignore_errors=True)
