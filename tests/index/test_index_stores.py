"""An index in every store: the same answers to the same searches and filters, after updates, renames and moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.index.index import Index, Query
from index_fixture import Pixels, ids_by_name, made, paint, put
from stores_fixture import MODULES

FILTERS: list[dict[str, Any]] = [
    {},
    {"folder": "a"},
    {"folder": "a/it's"},
    {"since": "2020", "until": "2020"},
    {"words": "dog"},
    {"min_width": 20, "max_width": 40},
    {"columns": {"label": 'it\'s "ü"'}},
    {"columns": {"label": ["cat", "10"]}},
    {"columns": {"price": {"min": 2, "max": 9}}},
    {"columns": {"price": 10}},
    {"columns": {"mixed": 10}},
    {"columns": {"seen": True}},
    {"columns": {"seen": 1}},
    {"columns": {"label": "cat"}, "folder": "a", "min_bytes": 100},
]


def collection(root: Path) -> Path:
    """Thirty pictures in folders, most with columns."""
    for i in range(30):
        path = put(root / ["a", "a/it's", "b", "ab"][i % 4] / f"{i:02d}.png", paint(i, height=16, width=16 + i))
        if i % 5:
            columns = {"label": ["cat", "10", 'it\'s "ü"'][i % 3], "price": [1, 2.5, 10][i % 3], "mixed": [10, "10", 7][i % 3]}
            path.with_suffix(".json").write_text(json.dumps({"caption": ["a dog", "Dogs"][i % 2], "seen": bool(i % 2), **columns}))
    return root


def answers(index: Index, model: Pixels) -> list[list[tuple[str, float]]]:
    """Names and scores of the hits of each filter."""
    found = []
    for filters in FILTERS:
        answer = index.search(Query(texts=("red",)), model, n=20, filters=filters or None, cutoff=False)
        found.append([(hit.picture.name, round(hit.score, 5)) for hit in answer.hits])
    return found


@pytest.mark.parametrize("kind", ["hnsw", "lancedb", "milvus"])
def test_an_index_answers_alike_in_every_store(kind: str, tmp_path: Path) -> None:
    pytest.importorskip(MODULES[kind])
    photos, model = collection(tmp_path / "photos"), Pixels()
    reference = made(tmp_path / "exact", photos, model)
    wanted = answers(reference, model)
    assert sum(map(len, wanted)) > 40
    index = made(tmp_path / "index", photos, model, store=kind)
    assert answers(index, model) == wanted
    (photos / "b/02.png").rename(photos / "a/renamed.png")  # its folder is another now, its vector the same
    (photos / "b/02.json").rename(photos / "a/renamed.json")
    (photos / "a/04.png").unlink()
    put(photos / "new.png", paint(99))
    for each in (reference, index):
        each.update(model)
    wanted = answers(reference, model)
    assert any("a/renamed.png" in dict(hits) for hits in wanted[1:2]) and answers(index, model) == wanted
    ids = ids_by_name(index)
    index.move("exact")
    assert answers(index, model) == wanted and ids_by_name(index) == ids
    index.move(kind)
    assert answers(index, model) == wanted and index.store.kind == kind
    index.close()
    again = Index.open(tmp_path / "index", model)
    assert answers(again, model) == wanted
    again.close()


def test_a_move_away_leaves_nothing_elsewhere(tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    model, url = Pixels(), str(tmp_path / "database")
    index = made(tmp_path / "index", collection(tmp_path / "photos"), model, store="lancedb", options={"url": url})
    wanted = answers(index, model)
    assert len(lancedb.connect(url).table_names()) == 1
    index.move("exact")
    assert answers(index, model) == wanted and lancedb.connect(url).table_names() == []
    index.close()
