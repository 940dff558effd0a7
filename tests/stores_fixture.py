"""Stores of vectors for tests: options that make small ones behave like large ones, vectors with structure, plain references."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.index.filters import Condition, Where
from diptych.index.stores import open_store
from diptych.index.stores.base import Store

WIDTH = 16
OPTIONS: dict[str, dict[str, Any]] = {
    "exact": {},
    "hnsw": {"least": 100, "links": 8, "build": 40},
    "ivfpq": {"least": 100},
    "lancedb": {},
    "milvus": {},
}
MODULES = {"hnsw": "faiss", "ivfpq": "faiss", "lancedb": "lancedb", "milvus": "milvus_lite"}
APPROXIMATE = ("hnsw", "ivfpq")
ENGINES = ("lancedb", "milvus")


def opened(kind: str, folder: Path, width: int = WIDTH, **more: Any) -> Store:
    """A store of a kind; where it searches by an approximation, it also does so for few vectors and with filters."""
    store = open_store(kind, folder, width, OPTIONS[kind] | more)
    if kind in APPROXIMATE:
        store.few, store.worth = 8, 0.0  # type: ignore[attr-defined]
    return store


def settled(store: Store) -> Store:
    """The store, saved, with all its vectors in its graph."""
    store.save()
    if store.kind in APPROXIMATE:
        store.settle()  # type: ignore[attr-defined]
        assert store._graph is not None  # type: ignore[attr-defined]
    return store


def some_vectors(number: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """Unit vectors in a few groups, float32 [number, width]."""
    centres, rng = np.random.default_rng(123).normal(size=(12, width)), np.random.default_rng(seed)
    vectors = centres[rng.integers(0, len(centres), number)] + 0.6 * rng.normal(size=(number, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def plain_top(held: Mapping[int, np.ndarray], query: np.ndarray, k: int) -> list[tuple[int, float]]:
    """The k best by a plain loop in float64: (id, score as float32), equal scores in the order of the ids."""
    scored = []
    for id, vector in held.items():
        total = 0.0
        for a, b in zip(vector.tolist(), query.tolist(), strict=True):
            total += a * b
        scored.append((-float(np.float32(total)), id))
    return [(id, -score) for score, id in sorted(scored)[:k]]


def fulfils(row: Mapping[str, Any], condition: Condition) -> bool:
    """Whether the columns of a picture fulfil a condition, in plain Python."""
    value, operator, wanted = row.get(condition.column), condition.operator, condition.value
    if value is None:
        return False
    if operator == "in":
        return value in list(wanted)  # type: ignore[arg-type]
    if operator == "under":
        return bool(value == wanted or value.startswith(f"{wanted}/"))
    if operator == "words":
        return set(re.findall(r"\w+", str(wanted).lower())) <= set(re.findall(r"\w+", str(value).lower()))
    if operator in ("=", "!="):
        return bool((value == wanted) == (operator == "="))
    return bool({"<": value < wanted, "<=": value <= wanted, ">": value > wanted, ">=": value >= wanted}[operator])  # type: ignore[operator]


def where_of(rows: Mapping[int, Mapping[str, Any]], conditions: Sequence[Condition]) -> Where:
    """The filter of these conditions; its ids come from the plain loop."""
    return Where(
        tuple(conditions), lambda: np.array([i for i in sorted(rows) if all(fulfils(rows[i], c) for c in conditions)], np.int64)
    )
