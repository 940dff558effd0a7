"""The store of an index: moved to another kind, brought up to date and measured at the end of an update."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.core.errors import DiptychError
from diptych.core.extras import installed
from diptych.core.files import write_json
from diptych.index.judging import calibration
from diptych.index.stores import EXACT_TO, open_store, parse_store
from diptych.index.stores.base import Rows, Store, settle
from diptych.index.stores.move import Moved
from diptych.index.stores.move import move as move_vectors
from diptych.index.stores.recall import Recall, measure, probes

if TYPE_CHECKING:
    from diptych.index.index import Index

QUERIES = 100  # texts, and queries near the pictures, by which a store is measured
Progress = Callable[[int, int], object]  # done, of how many
GROWN = 0.1  # a store that grew or shrank by a larger share is measured again


def finish_store(index: Index, store: Store, graph: Progress | None = None) -> None:
    """What an update ends with: a store that approximates is brought up to date and measured; beyond a million pictures, an index
    of which the store was not chosen moves to one of another kind.
    """
    held = index.info["store"]
    if held["auto"] and held["kind"] == "exact" and len(store) > EXACT_TO and installed("faiss"):
        move_store(index, "auto", None, None, graph)
        return
    if held["kind"] == "exact":
        return
    texts = texts_of(index)
    settle(store, texts, graph)
    before = held.get("recall")
    if before is None or abs(before["count"] - len(store)) > GROWN * before["count"]:
        held["recall"] = measured(store, texts).as_json()
        write_json(index.path / "index.json", index.info)


def texts_of(index: Index) -> np.ndarray | None:
    """Vectors of texts, as queries of another kind than pictures; None for a model without them."""
    known = calibration(index)
    return None if known is None else known.texts[:: max(1, len(known.texts) // QUERIES)][:QUERIES]


def measured(store: Store, texts: np.ndarray | None) -> Recall:
    """What a store finds for queries near the pictures, and for texts."""
    near = probes(store, QUERIES)
    return measure(store, near if texts is None or not len(near) else np.concatenate([near, texts]))


def move_store(
    index: Index, store: str, options: Mapping[str, Any] | None, progress: Progress | None, graph: Progress | None = None
) -> Moved:
    """``Index.move``, with the index locked. The old store is there until the new one is complete and was compared with it."""
    from diptych.index.updating.update import recover, store_row

    held = index.info["store"]
    automatic = store == "auto"
    name = ("exact" if len(index) <= EXACT_TO else "hnsw") if automatic else store
    kind, chosen = parse_store(name, options)
    if kind == held["kind"] and chosen == held["options"]:
        raise DiptychError(f"{index.path}: its vectors are in a store of kind {kind} already")
    label = "".join(c if c.isalnum() else "-" for c in kind)
    folder = f"vectors-{label}" if held["folder"] != f"vectors-{label}" else "vectors"
    source, target = index.opened_store(), open_store(kind, index.path / folder, index.width, chosen)
    try:
        recover(index, source)

        def rows(ids: np.ndarray) -> Rows:
            """The columns of pictures."""
            known = index.catalog.rows_of(ids.tolist())
            return [store_row(known[int(i)], index.addresses) for i in ids]

        texts = texts_of(index)
        moved = move_vectors(source, target, rows, None, progress, texts, graph)
        recall = None if kind == "exact" else measured(target, texts).as_json()
    finally:
        source.close()
        target.close()
    before = index.path / held["folder"]
    index.info["store"] = {"kind": kind, "options": chosen, "auto": automatic, "folder": folder, "recall": recall}
    write_json(index.path / "index.json", index.info)
    index.catalog.touch()  # readers open the new store
    if held["options"].get("url") and hasattr(source, "drop"):  # what lies elsewhere
        old = open_store(held["kind"], before, index.width, held["options"])
        old.drop()  # type: ignore[attr-defined]
        old.close()
    shutil.rmtree(before, ignore_errors=True)
    return moved
