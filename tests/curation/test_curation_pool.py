"""The dirty pool: what the truth says is so, and nothing but the truth file says it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.curation.dirty_pool.pool import FAULTS, DirtyPool, write_pool
from diptych.curation.explain import Result, explain
from diptych.curation.run import curate, decisions
from diptych.data.image import decode
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("made") / "dirty", 300, seed=3, progress=False)


@pytest.fixture(scope="module")
def rows(made: Path) -> dict[str, dict]:
    truths = {t["id"]: t for t in pq.read_table(made / "truth.parquet").to_pylist()}
    read = [*pq.read_table(made / "pool").to_pylist(), *pq.read_table(made / "evaluation").to_pylist()]
    return {row["id"]: {**row, **truths.get(row["id"], {})} for row in read}


def of(rows: dict[str, dict], fault: str) -> list[dict]:
    return [row for row in rows.values() if row.get("fault") == fault]


def test_every_fault_is_planted_as_often_as_it_says(made: Path, rows: dict[str, dict]) -> None:
    counts = read_json(made / "pool.json")["faults"]
    assert set(counts) == set(FAULTS) and min(counts.values()) >= 1
    for fault, count in counts.items():
        assert len(of(rows, fault)) == count == max(1, round(FAULTS[fault] * 300))


def test_nothing_that_a_curator_sees_tells_the_fault(made: Path) -> None:
    assert pq.read_schema(made / "pool" / "00000.parquet").names == ["id", "image", "caption", "url"]


def test_pictures_are_as_the_truth_says(rows: dict[str, dict]) -> None:
    for row in rows.values():
        fault = row.get("fault")
        if fault == "broken":
            with pytest.raises(BrokenItem):
                decode(row["image"], row["id"])
            continue
        shown = decode(row["image"], row["id"])
        short, long = sorted(shown.shape[:2])
        if fault == "tiny":
            assert short <= 150
        elif fault == "huge":
            assert short >= 2600
        elif fault == "banner":
            assert short >= 200 and long / short > 3
        else:
            assert short >= 200 and long / short <= 1.2 and len(row["image"]) >= (5000 if fault is None else 0)
        if fault == "dark":
            assert shown.mean() < 45
        if fault == "light":
            assert shown.mean() > 220
        if fault == "grey":
            assert np.ptp(shown.astype(int), axis=-1).mean() < 3


def test_copies_and_leaks_point_to_what_they_copy(rows: dict[str, dict]) -> None:
    for fault in ("exact", "resized", "recompressed", "cropped", "recoloured"):
        for row in of(rows, fault):
            original = rows[row["twin"]]
            assert original["fault"] is None and original["meaning"] == row["meaning"]
            if fault == "exact":
                assert (decode(row["image"], "") == decode(original["image"], "")).all()
    assert len({row["twin"] for row in rows.values() if row.get("twin")}) >= sum(len(of(rows, f)) for f in ("exact", "resized"))
    assert of(rows, "leaked") and all(rows[row["twin"]]["caption"] == row["caption"] for row in of(rows, "leaked"))


def test_captions_are_as_the_truth_says(rows: dict[str, dict]) -> None:
    for row in rows.values():
        words = row["caption"].split()
        if row.get("fault") == "short":
            assert len(words) <= 2 or len(row["caption"]) <= 5
        elif row.get("fault") is None:
            assert len(words) > 2 and all(
                c in row["caption"] for c in row.get("concepts", [])[:1] if row["meaning"].startswith("1 ")
            )
        if row.get("fault") == "mismatched":
            assert not any(f" {concept}" in f" {row['caption']}" for concept in row["concepts"] if len(concept) > 3)
    assert len({row["language"] for row in of(rows, "foreign")}) >= 5


def test_concepts_have_a_long_tail() -> None:
    pool = DirtyPool(3000)
    shown = [pool.graph(spec.seed) for spec in pool.specs]
    counts = np.sort(np.unique([g.things[0].concept for g, sprite in shown if sprite], return_counts=True)[1])[::-1]
    assert counts[0] > 20 * np.median(counts) and len(counts) > 80


def test_the_same_call_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    a, b, c = (write_pool(tmp_path / name, 100, seed, progress=False) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    for name in ("pool/00000.parquet", "truth.parquet", "evaluation/00000.parquet"):
        assert (a / name).read_bytes() == (b / name).read_bytes() != (c / name).read_bytes()
    with pytest.raises(DiptychError, match="already holds a pool"):
        write_pool(a, 100)
    with pytest.raises(DiptychError, match="at least 100"):
        DirtyPool(99)


def test_a_source_reads_it_and_lists_what_is_broken(made: Path, rows: dict[str, dict]) -> None:
    source = open_source(f"parquet:{made}/pool")
    bad = 0
    for i in range(len(source)):
        try:
            source[i]
        except BrokenItem:
            bad += 1
    assert bad + len(source.problems) == len(of(rows, "broken"))


def test_decisions_join_the_truth_by_the_ids_of_the_data(made: Path, tmp_path: Path) -> None:
    truth = pq.read_table(made / "truth.parquet").to_pylist()
    out = tmp_path / "out"
    steps = ["text_length", {"keep": {"column": "words", "above": 0}}]
    curate({"name": "t", "steps": steps}, f"parquet:{made / 'pool'}", out, runner="inline")
    decided = [row for table in decisions(out, ["id", "own_id"]) for row in table.to_pylist()]
    assert sorted(row["own_id"] for row in decided) == sorted(t["id"] for t in truth)
    (found,) = explain(Result(out), truth[7]["id"])
    assert found.id == next(row["id"] for row in decided if row["own_id"] == truth[7]["id"])
