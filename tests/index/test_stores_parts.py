"""What single stores do besides the contract: conditions in other languages, tokens, graphs of faiss, recall."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.core.errors import DiptychError
from diptych.index.filters import Condition, Where
from diptych.index.stores.base import Found
from diptych.index.stores.conditions import MILVUS, SQL, stored, translated, type_of
from diptych.index.stores.recall import Recall, exact_search, measure, probes, recall_of
from stores_fixture import WIDTH, opened, plain_top, settled, some_vectors

# --- conditions ---


@pytest.mark.parametrize("value", ["it's", "''", "'; DROP TABLE t; --", 'a"b', "\\", "\\'", "ünï", "\n", "", "%_"])
def test_a_text_in_sql_means_itself(value: str) -> None:
    """SQLite reads what we write; a quote too few or too many would be an error or another value."""
    said = translated(Where((Condition("label", "=", value),)), {"label": "text"}, SQL)
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE t (`label` TEXT)")
    database.executemany("INSERT INTO t VALUES (?)", [(value,), (value + "x",), ("other",)])
    assert database.execute(f"SELECT label FROM t WHERE {said}").fetchall() == [(value,)]
    assert database.execute("SELECT count(*) FROM t").fetchone() == (3,)


def test_a_text_for_milvus_is_one_constant() -> None:
    said = translated(Where((Condition("label", "=", 'x" or id >= 0 or "\\'),)), {"label": "text"}, MILVUS)
    assert said == '(label == "x\\" or id >= 0 or \\"\\\\")'


def test_names_of_columns_are_safe_and_never_meet() -> None:
    names = ["label", "Label", "id", "vector", "u_6964", "a b", "a.b", "`", "ü", "", "x" * 70, "1a", "a`; --"]
    kept = [stored(name) for name in names]
    assert len(set(kept)) == len(names) and kept[0] == "label"
    assert all(name.isascii() and name.replace("_", "a").isalnum() for name in kept) and not {"id", "vector"} & set(kept)


@pytest.mark.parametrize(
    "condition",
    [
        Condition("label", "=", 3),
        Condition("number", "=", "3"),
        Condition("number", "=", True),
        Condition("number", "<", float("nan")),
        Condition("number", "=", 2**60 + 1),
        Condition("number", "in", ()),
        Condition("number", "in", (1, "2")),
        Condition("label", "in", "text"),
        Condition("label", "=", "a\0b"),
        Condition("label", "words", "a"),
        Condition("folder", "under", ""),
        Condition("truth", "<", True),
        Condition("unknown", "=", "a"),
    ],
)
def test_what_an_engine_would_read_otherwise_is_left_to_the_catalog(condition: Condition) -> None:
    types: Any = {"label": "text", "folder": "text", "number": "number", "truth": "truth"}
    for language in (SQL, MILVUS):
        assert translated(Where((Condition("label", "=", "a"), condition)), types, language) is None
    assert translated(Where(), types, SQL) is None


def test_types_of_values() -> None:
    values = [True, np.bool_(False), 3, np.int64(3), 2.5, "a", [1], 2**53, 2**53 + 1, float("inf"), "\ud800"]
    wanted = ["truth", "truth", "number", "number", "number", "text", None, "number", None, None, None]
    assert [type_of(value) for value in values] == wanted


# --- tokens and addresses ---


def test_the_token_of_milvus_is_used_and_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pymilvus = pytest.importorskip("pymilvus")
    from diptych.index.stores.milvus import Milvus

    secret, given = "s3cret-token-of-mine", {}
    monkeypatch.setenv("DIPTYCH_MILVUS_TOKEN", secret)

    def refuse(**options: Any) -> None:
        given.update(options)
        raise pymilvus.MilvusException(message=f"no server, token {secret}")

    monkeypatch.setattr(pymilvus, "MilvusClient", refuse)
    with pytest.raises(DiptychError, match="DIPTYCH_MILVUS_TOKEN") as caught:
        Milvus(tmp_path / "s", WIDTH, url="https://localhost:19530")
    assert given["token"] == secret and secret not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_text()]


@pytest.mark.parametrize("kind", ["lancedb", "milvus"])
@pytest.mark.parametrize("url", ["https://me:pass@host:19530", "s3://key:secret@bucket/x", "https://host:19530?token=abc"])
def test_addresses_with_secrets_are_refused(kind: str, url: str, tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="kept on disk") as caught:
        opened(kind, tmp_path / "s", url=url)
    assert "pass" not in str(caught.value).replace("password", "") and not (tmp_path / "s").exists()


def test_a_file_of_milvus_ends_in_db(tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    with pytest.raises(DiptychError, match="ends in .db"):
        opened("milvus", tmp_path / "s", url=str(tmp_path / "file.txt"))


def test_a_place_of_ones_own_for_lancedb(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    for name in ("a", "b"):  # two indexes in one database do not meet
        store = opened("lancedb", tmp_path / name, url=str(tmp_path / "database"))
        store.add(np.arange(5), some_vectors(5, seed=ord(name)))
        store.save()
    store = opened("lancedb", tmp_path / "a", url=str(tmp_path / "database"))
    np.testing.assert_array_equal(store.vectors(np.arange(5)), some_vectors(5, seed=ord("a")))
    store.drop()  # type: ignore[attr-defined]
    with pytest.raises(DiptychError, match="cannot be opened"):
        opened("lancedb", tmp_path / "a", url=str(tmp_path / "database"))
    assert len(opened("lancedb", tmp_path / "b", url=str(tmp_path / "database"))) == 5


def test_lancedb_with_an_index_of_its_own_finds_nearly_all(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    from diptych.index.stores import lance

    store = opened("lancedb", tmp_path / "s", least=300, probes=8)
    vectors, queries = some_vectors(600), some_vectors(10, seed=1)
    store.add(np.arange(600), vectors, [{"n": i} for i in range(600)])
    store.save()
    assert store._indexed  # type: ignore[attr-defined]
    held = dict(enumerate(vectors))
    found = store.search(queries, 10)
    right = sum(len({i for i, _ in plain_top(held, q, 10)} & set(ids.tolist())) for q, ids in zip(queries, found.ids, strict=True))
    assert right >= 95
    # Few that fulfil a filter are compared one by one, so none of them is missed.
    where = Where((Condition("n", "<", 40),), lambda: np.arange(40))
    assert lance.FEW > 40
    few = {i: vectors[i] for i in range(40)}
    assert store.search(queries, 10, where).ids.tolist() == [[i for i, _ in plain_top(few, q, 10)] for q in queries]


# --- graphs of faiss ---


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_a_damaged_or_missing_graph_costs_time_only(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    store, vectors = opened(kind, tmp_path / "s"), some_vectors(300)
    store.add(np.arange(300), vectors)
    settled(store)
    store.close()
    (graph,) = (tmp_path / "s").glob("graph-*.faiss")
    for damage in (lambda: graph.write_bytes(graph.read_bytes()[:200]), graph.unlink):
        damage()
        store = opened(kind, tmp_path / "s")
        assert store.search(vectors[:3], 1).ids[:, 0].tolist() == [0, 1, 2]
    settled(store)
    assert [p.name for p in (tmp_path / "s").glob("graph-*.faiss")] != [graph.name]
    assert opened(kind, tmp_path / "s")._graph is not None  # type: ignore[attr-defined]


def test_what_waits_is_found_and_a_graph_of_many_dead_rows_is_made_anew(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    store, vectors = opened("hnsw", tmp_path / "s"), some_vectors(300)
    store.add(np.arange(300), vectors)
    settled(store)
    first = store._graph  # type: ignore[attr-defined]
    store.add(np.array([1000, 5]), np.stack([vectors[7], -vectors[5]]))
    store.delete(np.array([9]))
    assert store.search(vectors[7:8], 2).ids[0].tolist() == [7, 1000]
    assert 5 not in store.search(vectors[5:6], 10).ids and store.search(-vectors[5:6], 1).ids[0, 0] == 5
    assert 9 not in store.search(vectors[9:10], 20).ids
    store.settle()  # type: ignore[attr-defined]
    assert store._graph is first  # type: ignore[attr-defined]  # two that wait are not worth it
    store.delete(np.arange(100, 200))
    store.settle()  # type: ignore[attr-defined]
    assert store._graph is not first and store._graph.ntotal == len(store) == 200  # type: ignore[attr-defined]
    assert not set(range(100, 200)) & set(store.search(vectors[100:110], 20).ids.ravel().tolist())


def test_a_store_that_grows_does_not_change_another_that_reads(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    from diptych.index.stores import approximate

    writer, vectors = opened("hnsw", tmp_path / "s"), some_vectors(400)
    writer.add(np.arange(300), vectors[:300])
    settled(writer)
    writer.close()
    reader, writer = opened("hnsw", tmp_path / "s"), opened("hnsw", tmp_path / "s")
    assert reader._graph is writer._graph  # type: ignore[attr-defined]  # read once
    before = reader.search(vectors[300:310], 5)
    writer.add(np.arange(300, 400), vectors[300:])
    writer.exact.save()  # type: ignore[attr-defined]
    waiting, approximate.WAITING = approximate.WAITING, 10
    try:
        writer.settle()  # type: ignore[attr-defined]
    finally:
        approximate.WAITING = waiting
    assert reader._graph.ntotal == 300 and writer._graph.ntotal == 400  # type: ignore[attr-defined]
    assert np.array_equal(reader.search(vectors[300:310], 5).ids, before.ids)
    assert writer.search(vectors[300:310], 1).ids[:, 0].tolist() == list(range(300, 310))


def test_the_effort_is_the_least_that_reaches_the_recall(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    efforts, vectors = [], some_vectors(3000, width=64)
    vectors = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)  # noise: difficult for lists
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for recall in (0.3, 0.999):
        store = opened("ivfpq", tmp_path / str(recall), 64, recall=recall, lists=70)
        store.add(np.arange(3000), vectors)
        settled(store)
        efforts.append(store._effort)  # type: ignore[attr-defined]
    assert efforts[0] < efforts[1]
    fixed = opened("ivfpq", tmp_path / "0.3", 64, effort=16)
    assert fixed._effort == 16  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("hnsw", {"links": 1}),
        ("hnsw", {"build": 3}),
        ("hnsw", {"recall": 1.5}),
        ("ivfpq", {"bytes": 5}),
        ("ivfpq", {"lists": 0}),
        ("ivfpq", {"effort": 0}),
    ],
)
def test_options_out_of_range_are_refused(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    with pytest.raises(DiptychError, match=f"store {kind}"):
        opened(kind, tmp_path / "s", **options)


# --- recall ---


def test_recall_by_hand() -> None:
    truth = Found(np.array([[1, 2, 3], [4, 5, -1]]), np.array([[0.9, 0.8, 0.7], [0.5, 0.4, -np.inf]], np.float32))
    found = Found(np.array([[1, 3, 8], [5, 4, 6]]), np.array([[0.9, 0.7, 0.6], [0.4, 0.5, 0.3]], np.float32))
    assert recall_of(found, truth) == pytest.approx((2 / 3 + 1) / 2)
    equal = Found(np.array([[1, 2, 8], [5, 4, 6]]), np.array([[0.9, 0.8, 0.7], [0.5, 0.4, 0.3]], np.float32))
    assert recall_of(equal, truth) == 1  # 8 scores as well as 3
    better = Found(np.array([[7, 1, 2], [5, 4, 6]]), np.array([[0.99, 0.9, 0.8], [0.5, 0.4, 0.3]], np.float32))
    assert recall_of(better, truth) == pytest.approx((2 / 3 + 1) / 2)  # 7 does not fulfil the filter
    assert (
        recall_of(Found(np.full((1, 3), -1), np.full((1, 3), -np.inf)), Found(np.full((1, 3), -1), np.full((1, 3), -np.inf))) == 1
    )


def test_exact_search_is_the_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.index.stores.recall.CHUNK", 37)
    store, vectors, queries = opened("exact", tmp_path / "s"), some_vectors(200), some_vectors(5, seed=1)
    vectors[50:90] = vectors[50]  # more equal ones than wanted, over several chunks
    queries[0] = vectors[50]
    store.add(np.arange(200), vectors)
    for allowed in (None, np.arange(0, 300, 7), np.arange(3)):
        held = {i: vectors[i] for i in range(200) if allowed is None or i in allowed}
        found = exact_search(store, queries, 10, allowed)
        for ids, query in zip(found.ids, queries, strict=True):
            wanted = [i for i, _ in plain_top(held, query, 10)]
            assert ids.tolist() == wanted + [-1] * (10 - len(wanted))


def test_measure_says_what_a_store_misses(tmp_path: Path) -> None:
    store = opened("exact", tmp_path / "s")
    assert measure(store).count == 0
    store.add(np.arange(1000), some_vectors(1000))
    full = measure(store, number=20)
    assert (full.recall, full.filtered, full.count, full.queries) == (1.0, 1.0, 1000, 20)
    assert 0 < full.median <= full.p95 and "recall@10 1.000" in str(full) and Recall(**full.as_json()) == full  # type: ignore[arg-type]
    search = store.search

    def forgetful(queries: np.ndarray, k: int, where: Where | None = None) -> Found:
        found = search(queries, k, where)
        found.ids[:, 7:], found.scores[:, 7:] = -1, -np.inf
        return found

    store.search = forgetful  # type: ignore[method-assign]
    poor = measure(store, number=20)
    assert poor.recall == pytest.approx(0.7) and poor.filtered == pytest.approx(0.7)
    with pytest.raises(DiptychError, match="width"):
        measure(store, some_vectors(3, width=5))


def test_probes_are_near_the_vectors_and_not_among_them(tmp_path: Path) -> None:
    store, vectors = opened("exact", tmp_path / "s"), some_vectors(500)
    store.add(np.arange(500), vectors)
    made, cosines = probes(store, 50), None
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    cosines = (made @ vectors.T).max(1)
    own = np.sort(vectors @ vectors.T, axis=1)[:, -2]
    held_out = (some_vectors(200, seed=3) @ vectors.T).max(1)
    assert cosines.max() < 0.9999 and abs(np.median(cosines) - np.median(held_out)) < 0.1 and np.median(own) > 0.5
    for few in (1, 2, 3):
        small = opened("exact", tmp_path / f"s{few}")
        small.add(np.arange(few), vectors[:few])
        assert probes(small, 4).shape == (4, WIDTH)


def test_the_snippet_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    text = (Path(__file__).parents[2] / "docs" / "stores.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/stores.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "2,000 vectors moved (2,000 copied now); recall@10 1.000 before" in printed and "recall@10" in printed.splitlines()[-1]
