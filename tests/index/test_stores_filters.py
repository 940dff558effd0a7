"""Filters that exclude what is near a query, and how far an approximate search looks: measured, else exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.index.filters import Where
from diptych.index.stores import approximate, tuning
from diptych.index.stores.base import settle
from diptych.index.stores.recall import exact_searches, halves, probes, recall_of
from stores_fixture import WIDTH, opened, plain_top, settled, some_vectors

pytest.importorskip("faiss")


def groups(number: int, seed: int = 0) -> np.ndarray:
    """Unit vectors in groups that lie well apart, in the order of the groups."""
    rng, centres = np.random.default_rng(seed), np.random.default_rng(7).normal(size=(6, WIDTH))
    vectors = np.repeat(centres, number // 6, axis=0) + 0.25 * rng.normal(size=(number // 6 * 6, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_exact_searches_and_halves_against_plain_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.index.stores.recall.CHUNK", 41)
    store, vectors, queries = opened("exact", tmp_path / "s"), some_vectors(200), some_vectors(4, seed=1)
    store.add(np.arange(0, 400, 2), vectors)
    tests = [None, lambda ids, _: ids % 3 == 0, *halves(store)]
    found = exact_searches(store, queries, 5, tests)
    assert sorted([*found[2][0], *found[3][0]]) == list(range(0, 400, 2)) and abs(len(found[2][0]) - 100) <= 5
    for allowed, best in found:
        held = {int(i): vectors[i // 2] for i in allowed}
        for ids, query in zip(best.ids, queries, strict=True):
            assert ids.tolist() == [i for i, _ in plain_top(held, query, 5)]
    assert found[0][0].tolist() == list(range(0, 400, 2)) and found[1][0].tolist() == [i for i in range(0, 400, 2) if i % 3 == 0]
    inside = [int(i) // 2 for i in found[2][0]]
    outside = [int(i) // 2 for i in found[3][0]]
    assert (vectors[inside] @ vectors[inside].T).mean() > (vectors[inside] @ vectors[outside].T).mean() + 0.1  # alike


def test_a_filter_that_excludes_all_around_a_query_costs_no_recall(tmp_path: Path) -> None:
    import faiss

    store, vectors = opened("hnsw", tmp_path / "s", recall=0.99), groups(3000)
    store.add(np.arange(3000), vectors)
    settled(store)
    assert store._effort is not None and store._pick is not None  # type: ignore[attr-defined]
    queries, allowed = groups(60, seed=5)[:20], np.arange(1000, 3000)  # the queries are of the two groups that are excluded
    held = {int(i): vectors[i] for i in allowed}
    truth = [[i for i, _ in plain_top(held, q, 10)] for q in queries]
    found = store.search(queries, 10, Where(ids=lambda: allowed))
    assert found.ids.tolist() == truth
    # The cause: a graph that passes over what does not count returns ten hits, but not the best ones.
    marks = np.zeros(3000, bool)
    marks[allowed] = True
    only = faiss.IDSelectorBitmap(np.packbits(marks, bitorder="little"))
    _, naive = store._graph.search(queries, 10, params=faiss.SearchParametersHNSW(efSearch=512, sel=only))  # type: ignore[attr-defined]
    full = (naive >= 0).all(1)
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(naive.tolist(), truth, strict=True)]
    assert not full.any() or np.mean(np.array(shares)[full]) < 0.9 or np.mean(shares) < 0.9


def test_of_a_random_half_the_graph_finds_the_best_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, vectors = opened("hnsw", tmp_path / "s", recall=0.99), some_vectors(2000)
    store.add(np.arange(2000), vectors)
    settled(store)
    exactly: list[int] = []
    real = store._exactly  # type: ignore[attr-defined]
    monkeypatch.setattr(store, "_exactly", lambda queries, *more: exactly.append(len(queries)) or real(queries, *more))
    queries, allowed = some_vectors(40, seed=2), np.sort(np.random.default_rng(3).choice(2000, 1000, replace=False))
    found = store.search(queries, 10, Where(ids=lambda: allowed))
    held = {int(i): vectors[i] for i in allowed}
    shares = [
        len({i for i, _ in plain_top(held, q, 10)} & set(ids.tolist())) / 10 for q, ids in zip(queries, found.ids, strict=True)
    ]
    assert np.mean(shares) >= 0.98 and sum(exactly) < 10


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_search_is_exact_where_no_effort_finds_enough(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "recall_of", lambda found, truth: 0.9)
    store, vectors, queries = opened(kind, tmp_path / "s"), some_vectors(400), some_vectors(5, seed=1)
    store.add(np.arange(400), vectors)
    settled(store)
    store.close()
    store = opened(kind, tmp_path / "s")
    assert store._graph is not None and store._effort is None  # type: ignore[attr-defined]
    held = dict(enumerate(vectors))
    assert store.search(queries, 10).ids.tolist() == [[i for i, _ in plain_top(held, q, 10)] for q in queries]
    some = {i: v for i, v in held.items() if i % 2}
    where = Where(ids=lambda: np.arange(1, 400, 2))
    assert store.search(queries, 10, where).ids.tolist() == [[i for i, _ in plain_top(some, q, 10)] for q in queries]


def test_the_effort_is_enough_for_queries_of_another_kind(tmp_path: Path) -> None:
    """Texts lie elsewhere than pictures; each kind has to find enough by itself."""
    vectors = some_vectors(3000)
    far = np.random.default_rng(1).normal(size=(100, WIDTH)).astype(np.float32)
    far /= np.linalg.norm(far, axis=1, keepdims=True)
    efforts = []
    for queries in (None, far):
        store = opened("hnsw", tmp_path / str(queries is None), links=4, build=4, recall=0.97)
        store.add(np.arange(3000), vectors)
        store.save()
        settle(store, queries)
        efforts.append(store._effort)  # type: ignore[attr-defined]
        if queries is not None and store._effort is not None:  # type: ignore[attr-defined]
            truth = exact_searches(store, far, 10, [None])[0][1]
            assert recall_of(store.search(far, 10), truth) >= 0.97
    assert efforts[1] is None or efforts[0] is None or efforts[1] >= efforts[0]


def test_a_graph_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "CHUNK", 100)
    monkeypatch.setattr(approximate, "WAITING", 10)
    monkeypatch.setattr(approximate, "SECONDS", 0.0)
    store, vectors = opened("hnsw", tmp_path / "s", least=50), some_vectors(1000)
    store.exact.add(np.arange(1000), vectors)  # type: ignore[attr-defined]
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 400:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.settle(progress=stop)  # type: ignore[attr-defined]
    store.close()
    assert seen == [100, 200, 300, 400]
    store, queries = opened("hnsw", tmp_path / "s", least=50), some_vectors(5, seed=1)
    assert store._graph.ntotal == 400 and store._effort is None  # type: ignore[attr-defined]
    held = dict(enumerate(vectors))
    truth = [[i for i, _ in plain_top(held, q, 10)] for q in queries]
    assert store.search(queries, 10).ids.tolist() == truth  # nothing is missing meanwhile
    added: list[int] = []
    store.settle(progress=lambda done, total: added.append(done))  # type: ignore[attr-defined]
    assert added == [500, 600, 700, 800, 900, 1000] and store._graph.ntotal == 1000  # type: ignore[attr-defined]
    assert store._effort is not None  # type: ignore[attr-defined]
    assert recall_of(store.search(probes(store, 50), 10), exact_searches(store, probes(store, 50), 10, [None])[0][1]) >= 0.99


def test_settle_gives_a_store_what_it_takes() -> None:
    given: list[Any] = []

    class Plain:
        def settle(self) -> None:
            given.append("plain")

    class Asking:
        def settle(self, queries: np.ndarray | None = None, progress: Any = None) -> None:
            given.append((queries, progress))

    for store in (object(), Plain(), Asking()):
        settle(store, np.ones((1, 2)), None)  # type: ignore[arg-type]
    assert given[0] == "plain" and given[1][0].shape == (1, 2) and given[1][1] is None
