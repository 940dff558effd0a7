"""What every store promises, over all of them: against plain loops in float64, in files and after kill -9."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.core.errors import DiptychError
from diptych.index.filters import Condition, Where
from diptych.index.stores import open_store
from diptych.index.stores.base import Found, Store
from diptych.index.stores.move import move
from stores_fixture import APPROXIMATE, ENGINES, MODULES, OPTIONS, WIDTH, opened, plain_top, settled, some_vectors, where_of

KINDS = ("exact", "hnsw", "ivfpq", "lancedb", "milvus")
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name in MODULES and importlib.util.find_spec(MODULES[name]) is None:
        pytest.skip(f"{MODULES[name]} is not installed")
    return name


@pytest.fixture
def store(kind: str, tmp_path: Path) -> Iterator[Store]:
    made = opened(kind, tmp_path / "store")
    yield made
    made.close()


def agree(found: Found, held: dict[int, np.ndarray], queries: np.ndarray, k: int, kind: str, least: float = 0.95) -> None:
    """The results are the plain loop's: to the order, or for approximate stores as many as ``least``, with exact scores."""
    assert found.ids.shape == found.scores.shape == (len(queries), k)
    assert found.ids.dtype == np.int64 and found.scores.dtype == np.float32
    right = total = 0
    for query, ids, scores in zip(queries, found.ids, found.scores, strict=True):
        wanted = plain_top(held, query, k)
        count = len(wanted)
        assert (ids[count:] == -1).all() and np.isneginf(scores[count:]).all()
        if kind in APPROXIMATE:
            assert len(set(ids[:count].tolist())) == count and (ids[:count] >= 0).all()
            pairs = sorted(zip((-scores[:count]).tolist(), ids[:count].tolist(), strict=True))
            assert [i for _, i in pairs] == ids[:count].tolist()
            for id, score in zip(ids[:count].tolist(), scores[:count].tolist(), strict=True):
                assert score == pytest.approx(float(np.dot(held[id].astype(float), query.astype(float))), abs=1e-6)
        else:
            assert ids[:count].tolist() == [id for id, _ in wanted]
            np.testing.assert_allclose(scores[:count], [score for _, score in wanted], atol=1e-6)
        right += len(set(ids[:count].tolist()) & {id for id, _ in wanted})
        total += count
    assert right >= least * total


def test_a_search_finds_the_nearest(store: Store) -> None:
    vectors, queries = some_vectors(400), some_vectors(12, seed=1)
    ids = np.random.default_rng(2).permutation(4000)[:400]
    store.add(ids, vectors)
    held = dict(zip(ids.tolist(), vectors, strict=True))
    agree(store.search(queries, 10), held, queries, 10, store.kind)  # before it is saved
    settled(store)
    agree(store.search(queries, 10), held, queries, 10, store.kind)
    agree(store.search(queries, 1), held, queries, 1, store.kind, 0.9)
    again = store.search(queries, 10)
    assert np.array_equal(again.ids, store.search(queries[::-1], 10).ids[::-1])  # a query does not depend on the others


def test_what_is_added_replaced_and_deleted_stays_so_when_opened_again(kind: str, tmp_path: Path) -> None:
    rng, held, saved = np.random.default_rng(3), {}, {}
    store, queries = opened(kind, tmp_path / "s"), some_vectors(4, seed=9)
    for step in range(12):
        ids = rng.choice(500, int(rng.integers(1, 90)), replace=False)
        vectors = some_vectors(len(ids), seed=100 + step)
        store.add(ids, vectors)
        held |= dict(zip(ids.tolist(), vectors, strict=True))
        gone = rng.choice(600, 25, replace=False)
        store.delete(gone)
        held = {id: vector for id, vector in held.items() if id not in set(gone.tolist())}
        if step == 6:
            settled(store)
            saved = dict(held)
        elif step % 3 == 2:
            store.save()
            saved = dict(held)
        agree(store.search(queries, 5), held, queries, 5, kind, 0.9)
        assert store.ids().tolist() == sorted(held) and store.ids().dtype == np.int64 and len(store) == len(held)
        some = rng.choice(sorted(held), 20)
        np.testing.assert_array_equal(store.vectors(some), np.stack([held[int(i)] for i in some]))
        if step % 4 == 3:  # what was not saved is gone
            store.close()
            store, held = opened(kind, tmp_path / "s"), dict(saved)
            assert store.ids().tolist() == sorted(held)
            agree(store.search(queries, 5), held, queries, 5, kind, 0.9)
    store.close()


def test_equal_vectors_come_in_the_order_of_their_ids(store: Store) -> None:
    vectors = some_vectors(150)
    vectors[40:60] = vectors[40]
    ids = np.random.default_rng(0).permutation(150) + 7
    store.add(ids, vectors)
    settled(store)
    found = store.search(vectors[40:41], 20)
    equal = [id for id, score in zip(found.ids[0].tolist(), found.scores[0], strict=True) if score == found.scores[0, 0]]
    assert equal == sorted(equal) and set(equal) <= set(ids[40:60].tolist())
    assert len(equal) == 20 if store.kind not in APPROXIMATE else len(equal) >= 12  # equal vectors are a graph's weak side


def test_vectors_are_kept_to_the_bit(store: Store, tmp_path: Path) -> None:
    vectors = some_vectors(120)
    store.add(np.arange(120), vectors)
    settled(store)
    order = np.array([5, 119, 0, 5])
    np.testing.assert_array_equal(store.vectors(order), vectors[order])
    other = opened(store.kind, tmp_path / "store")
    np.testing.assert_array_equal(other.vectors(order), vectors[order])
    other.close()
    np.testing.assert_array_equal(store.vectors(order), vectors[order])  # the one who closes takes nothing from the other
    assert store.search(vectors[:2], 1).ids[:, 0].tolist() == [0, 1]


# --- what is refused, and what is empty ---


def test_wrong_vectors_are_refused(store: Store) -> None:
    good = some_vectors(3)
    store.add(np.arange(3), good)
    broken = good.copy()
    broken[1, 2] = np.nan
    for ids, vectors, message in (
        ([7, 8, 9], some_vectors(3, width=WIDTH + 1), "vectors"),
        ([7, 8], good, "vectors"),
        ([7, 8, 9], broken, "id 8 is not finite"),
        ([7, 8, 7], good, "twice"),
    ):
        with pytest.raises(DiptychError, match=message):
            store.add(np.array(ids), vectors)
    assert store.ids().tolist() == [0, 1, 2]
    with pytest.raises(DiptychError, match="no vector of the id 9"):
        store.vectors(np.array([1, 9]))


def test_wrong_queries_are_refused(store: Store) -> None:
    store.add(np.arange(150), some_vectors(150))
    settled(store)
    with pytest.raises(DiptychError, match=f"width {WIDTH - 1}"):
        store.search(some_vectors(1, width=WIDTH - 1), 3)
    broken = some_vectors(2)
    broken[1, 0] = np.inf
    with pytest.raises(DiptychError, match="not finite"):
        store.search(broken, 3)


def test_an_empty_store_and_a_k_above_the_count(store: Store, tmp_path: Path) -> None:
    queries = some_vectors(2)
    for _ in range(2):
        found = store.search(queries, 3)
        assert len(store) == 0 and store.ids().tolist() == [] and (found.ids == -1).all() and np.isneginf(found.scores).all()
        assert found.ids.shape == (2, 3)
        store.delete(np.array([4]))
        store.save()
    held = dict(enumerate(some_vectors(130)))
    store.add(np.arange(130), np.stack(list(held.values())))
    settled(store)
    agree(store.search(queries, 140), held, queries, 140, store.kind, 1.0)
    store.delete(np.arange(130))
    settled_ids = store.search(queries, 3).ids
    store.save()
    assert (settled_ids == -1).all() and (store.search(queries, 3).ids == -1).all() and len(store) == 0


def test_a_folder_of_another_width_or_kind_is_refused(kind: str, tmp_path: Path) -> None:
    store = opened(kind, tmp_path / "s")
    store.add(np.arange(120), some_vectors(120))
    settled(store)
    store.close()
    with pytest.raises(DiptychError, match=f"width {WIDTH}"):
        opened(kind, tmp_path / "s", WIDTH + 2)
    with pytest.raises(DiptychError, match="its options|it has none|options: none"):
        open_store(kind, tmp_path / "t", WIDTH, {"no_such_option": 1})


@pytest.mark.parametrize("kind", sorted(MODULES))
def test_a_missing_package_is_named_with_its_extra(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"hnsw": "index", "ivfpq": "index"}.get(kind, kind)
    monkeypatch.setitem(sys.modules, MODULES[kind], None)
    with pytest.raises(DiptychError, match=rf"store {kind}.*pip install 'diptych\[{extra}\]'"):
        open_store(kind, tmp_path / "s", WIDTH, {})


# --- filters ---

NAMES = [
    "dog",
    'it\'s "a" dog',
    "ünï\\cø∂e 猫",
    "50%_off",
    "a' OR 1=1 --",
    'x" or id >= 0 or "',
    "",
    "Dog",
    "🐕",
    "line\nbreak\ttab",
]


def pictures() -> dict[int, dict[str, Any]]:
    """Columns of 200 pictures; every fifth lacks a label, and one column has values of two types."""
    rng, rows = np.random.default_rng(5), {}
    folders = ["a", "a/b", "a/b/c", "ab", "a b/it's", "", "ä/ö", "a%", "a_/x"]
    for id in range(200):
        row: dict[str, Any] = {
            "folder": folders[int(rng.integers(len(folders)))],
            "date": ["2024-01-01T10:00:00", "2023-05-05T00:00:00", ""][id % 3],
            "width": int(rng.integers(100, 110)),
            "column_score": float(np.round(rng.normal(), 1)),
            "column_seen": bool(id % 2),
            "column_ünï \"q'`": NAMES[id % 4],
            "column_mixed": [1, "one"][id % 2],
            "caption": ["a dog on a beach", "The Beach, without a DOG", "a cat"][id % 3],
        }
        if id % 5:
            row["column_label"] = NAMES[int(rng.integers(len(NAMES)))]
        rows[id] = row
    return rows


SAID = [  # what engines can say themselves
    *[("column_label", "=", name) for name in NAMES],
    *[("column_label", "!=", name) for name in NAMES[:3]],
    ("column_label", "in", tuple(NAMES[1:5])),
    ("column_label", "<", "dog"),
    ("column_label", ">=", "ü"),
    ("column_ünï \"q'`", "=", NAMES[1]),
    ("folder", "under", "a"),
    ("folder", "under", "a/b"),
    ("folder", "under", "a b/it's"),
    ("folder", "under", "a%"),
    ("folder", "under", "a_"),
    ("width", "<", 105),
    ("width", "<=", 105),
    ("width", ">", 104.5),
    ("width", ">=", 105),
    ("width", "=", 103),
    ("width", "!=", 103),
    ("width", "in", (101, 103, 999)),
    ("column_score", ">", 0.3),
    ("column_score", "=", 0.5),
    ("column_seen", "=", True),
    ("column_seen", "!=", True),
    ("date", ">=", "2024"),
]
UNSAID = [  # what only the catalog knows
    ("caption", "words", "dog beach"),
    ("caption", "words", "Beach"),
    ("column_mixed", "=", 1),
    ("column_seen", "=", 1),
    ("width", "in", ()),
]


def check_filter(
    store: Store, vectors: np.ndarray, rows: dict[int, dict[str, Any]], conditions: list[Condition], where: Where
) -> None:
    allowed = {id: vectors[id] for id in where_of(rows, conditions).ids().tolist()}
    queries = some_vectors(2, seed=8)
    found = store.search(queries, 7, where)
    assert set(found.ids.ravel().tolist()) - {-1} <= set(allowed), conditions
    agree(found, allowed, queries, 7, store.kind, 0.85)


def test_filters_let_through_what_they_should(store: Store) -> None:
    rows, vectors = pictures(), some_vectors(200)
    ids = np.arange(200)
    store.add(ids[:150], vectors[:150], [rows[i] for i in range(150)])
    settled(store)

    def refuse() -> np.ndarray:
        raise AssertionError("the engine could have said this itself")

    for saved in (False, True):  # some vectors wait, then all are saved
        if not saved:
            store.add(ids[100:], vectors[100:], [rows[i] for i in range(100, 200)])
        else:
            store.save()
        for number, (column, operator, value) in enumerate([*SAID, *UNSAID]):
            conditions = [Condition(column, operator, value)]  # type: ignore[arg-type]
            where = where_of(rows, conditions)
            if store.kind in ENGINES and saved and number < len(SAID):
                where = Where(where.conditions, refuse)
            check_filter(store, vectors, rows, conditions, where)
    both = [Condition("folder", "under", "a"), Condition("width", ">", 103), Condition("column_label", "!=", "dog")]
    check_filter(store, vectors, rows, both, where_of(rows, both))
    none = [Condition("width", ">", 10_000)]
    assert (store.search(vectors[:2], 3, where_of(rows, none)).ids == -1).all()
    assert (store.search(vectors[:2], 3, Where(ids=lambda: np.zeros(0, np.int64))).ids == -1).all()
    gone = Where(ids=lambda: np.array([3, 5, 900]))  # the catalog may list what the store does not have
    assert store.search(vectors[:1], 3, gone).ids[0].tolist() == [
        id for id, _ in plain_top({3: vectors[3], 5: vectors[5]}, vectors[0], 3)
    ] + [-1]


def test_a_date_that_is_unknown_is_not_before_another(store: Store) -> None:
    rows, vectors = pictures(), some_vectors(200)
    store.add(np.arange(200), vectors, [rows[i] for i in range(200)])
    settled(store)
    known = np.array([i for i in rows if rows[i]["date"] and rows[i]["date"] <= "2023-12-31"])
    found = store.search(vectors[:3], 10, Where((Condition("date", "<=", "2023-12-31"),), lambda: known))
    assert set(found.ids.ravel().tolist()) <= set(known.tolist())


def test_without_columns_engines_filter_by_ids(store: Store) -> None:
    vectors = some_vectors(150)
    store.add(np.arange(75), vectors[:75], [{"width": 1}] * 75)
    store.add(np.arange(75, 150), vectors[75:])
    settled(store)
    where = Where((Condition("width", "=", 1),), lambda: np.arange(60, 120))
    agree(store.search(vectors[:2], 5, where), {i: vectors[i] for i in range(60, 120)}, vectors[:2], 5, store.kind)


# --- kill -9 ---

KILLED = """
import os, signal, sys
import numpy as np
sys.path[:0] = [{tests!r}]
from pathlib import Path
from stores_fixture import opened, some_vectors, settled
store = opened({kind!r}, Path({folder!r}))
store.add(np.arange(200), some_vectors(200), [{{"n": i}} for i in range(200)])
settled(store)
def die(*rest, **more):
    os.kill(os.getpid(), signal.SIGKILL)
store.add(np.arange(150, 350), some_vectors(200, seed=1), [{{"n": i}} for i in range(200)])
store.delete(np.arange(20))
{point}
die()
"""
POINTS = {  # where a process dies, and whether what it was saving is there then
    "add": ("", False),
    "exact": ("store.exact.save = die; store.save()", False),
    "graph": ("store.least = 10; store._write_graph = die; store.save(); store.settle()", True),
    "file": (
        "store.least = 10; store._write_faiss = die; store._drop(); store.settle()",
        True,
    ),
    "journal": ("store._write_journal = die; store.save()", False),
    "delete": ("store._remove = die; store.save()", True),
    "upsert": ("store._upsert = die; store.save()", True),
    "half": (
        "half = store._upsert; store._upsert = lambda i, v, r: (half(i[:90], v[:90], r[:90]), die()); store.save()",
        True,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "point"),
    [
        *[(kind, "add") for kind in KINDS],
        ("hnsw", "exact"),
        ("hnsw", "graph"),
        ("ivfpq", "file"),
        ("lancedb", "journal"),
        ("lancedb", "half"),
        ("milvus", "delete"),
        ("milvus", "half"),
    ],
)
def test_nothing_is_lost_or_half_there_after_kill_9(kind: str, point: str, tmp_path: Path) -> None:
    pytest.importorskip(MODULES.get(kind, "numpy"))
    action, there = POINTS[point]
    script = KILLED.format(tests=str(ROOT / "tests"), kind=kind, folder=str(tmp_path / "s"), point=action)
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    held = dict(enumerate(some_vectors(200)))
    if there:
        held |= dict(zip(range(150, 350), some_vectors(200, seed=1), strict=True))
        held = {id: vector for id, vector in held.items() if id >= 20}
    queries = some_vectors(5, seed=4)
    for _ in range(2):
        store = opened(kind, tmp_path / "s")
        assert store.ids().tolist() == sorted(held)
        np.testing.assert_array_equal(store.vectors(store.ids()), np.stack([held[id] for id in sorted(held)]))
        agree(store.search(queries, 10), held, queries, 10, kind)
        settled(store)
        agree(store.search(queries, 10), held, queries, 10, kind)
        store.close()
    left = [path.name for path in (tmp_path / "s").rglob("*.tmp")] + [p.name for p in (tmp_path / "s").glob("journal*")]
    assert not left


# --- moving ---


def test_a_move_keeps_ids_vectors_and_the_top_ten(kind: str, tmp_path: Path) -> None:
    ids, vectors = np.arange(0, 900, 3), some_vectors(300)
    source = opened("exact", tmp_path / "source")
    source.add(ids, vectors)
    source.save()
    target = opened(kind, tmp_path / "target")
    rows = lambda some: [{"n": int(i)} for i in some]  # noqa: E731
    moved = move(source, target, rows)
    assert (moved.count, moved.copied, moved.before) == (300, 300, 1.0) and moved.after >= 0.95
    target.close()
    target = opened(kind, tmp_path / "target")
    assert target.ids().tolist() == ids.tolist()
    np.testing.assert_array_equal(target.vectors(ids), vectors)
    where = Where((Condition("n", ">", 600),), lambda: ids[ids > 600])
    held = {int(i): v for i, v in zip(ids, vectors, strict=True) if i > 600}
    agree(target.search(vectors[:2], 5, where), held, vectors[:2], 5, kind, 0.9)
    back = opened("exact", tmp_path / "back")
    assert move(target, back).copied == 300
    np.testing.assert_array_equal(back.vectors(ids), vectors)
    target.close()


def test_a_move_that_was_stopped_goes_on(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.index.stores.move.CHUNK", 60)
    source, target = opened("exact", tmp_path / "source"), opened(kind, tmp_path / "target")
    source.add(np.arange(300), some_vectors(300))
    source.save()

    def stop(done: int, total: int) -> None:
        assert total == 300
        if done == 180:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        move(source, target, progress=stop)
    target.close()
    source.add(np.arange(10, 20), some_vectors(10, seed=5))  # meanwhile some change, and some go
    source.delete(np.arange(100, 110))
    source.save()
    target = opened(kind, tmp_path / "target")
    moved = move(source, target)
    assert (moved.count, moved.copied) == (290, 130)
    np.testing.assert_array_equal(target.vectors(source.ids()), source.vectors(source.ids()))
    target.close()


def test_a_move_into_a_store_that_finds_less_is_refused(tmp_path: Path) -> None:
    source, target = opened("exact", tmp_path / "source"), opened("exact", tmp_path / "target")
    source.add(np.arange(300), some_vectors(300))
    source.save()
    search = target.search
    target.search = lambda queries, k, where=None: search(-queries, k, where)  # type: ignore[method-assign]
    with pytest.raises(DiptychError, match="finds 0.000 of the true top 10"):
        move(source, target)
    target.search = search  # type: ignore[method-assign]
    vectors = target.vectors
    target.vectors = lambda ids: vectors(ids) * np.float32(0.5)  # type: ignore[method-assign]
    with pytest.raises(DiptychError, match="other vectors"):
        move(source, target)
    assert len(source) == 300


def test_options_of_the_table_are_options() -> None:
    assert set(OPTIONS) == set(KINDS)
