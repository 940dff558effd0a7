"""Where vectors are kept and searched: in files, or by an engine of others (``open_store``)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.core.errors import DiptychError, nearest
from diptych.core.registry import resolve
from diptych.index.stores.base import Store

# Kinds, and their classes: ``Class(folder, width, **options)``.
STORES = {
    "exact": "diptych.index.stores.exact:Exact",
    "hnsw": "diptych.index.stores.faiss:Hnsw",
    "ivfpq": "diptych.index.stores.faiss:IvfPq",
    "lancedb": "diptych.index.stores.lance:Lance",
    "milvus": "diptych.index.stores.milvus:Milvus",
}
EXACT_TO = 1_000_000  # vectors; ``auto`` takes hnsw for more


def open_store(kind: str, folder: Path, width: int, options: Mapping[str, Any] | None = None) -> Store:
    """The store of that kind (or ``package.module:Class``) in a folder, which it makes if there is none. width: of the vectors.

    DiptychError for an unknown kind, a folder of another kind or width, or an option that the store does not have.
    """
    if kind not in STORES and ":" not in kind:
        raise DiptychError(f"there is no store '{kind}'{nearest(kind, STORES)}; your own: package.module:Class")
    make = resolve(kind, STORES, "store")
    try:
        inspect.signature(make).bind(folder, width, **(options or {}))
    except TypeError as error:
        raise DiptychError(f"store {kind}: {error}; its options: {', '.join(_options(make)) or 'none'}") from None
    store: Store = make(folder, width, **(options or {}))
    return store


def _options(make: Any) -> list[str]:
    return [name for name in inspect.signature(make).parameters if name not in ("folder", "width")]


def parse_store(text: str, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """The kind of a store and its options from what a user writes: ``hnsw``; ``milvus:https://host:19530`` (a place elsewhere, as
    the option ``url``); ``package.module:Class``.
    """
    kind, mark, rest = text.partition(":")
    if mark and kind in STORES:
        return kind, {"url": rest, **(options or {})}
    return text, dict(options or {})
