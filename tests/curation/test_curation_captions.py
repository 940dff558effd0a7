"""Captions of a pool that are no texts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sources_fixture
from curation_fixture import picture, plan
from diptych.curation import curate
from diptych.curation.run import decisions

own_cache = sources_fixture.own_cache  # pytest finds it here


@pytest.mark.parametrize(("option", "kept"), [("", 0), ("?caption=captions.raw", 2)])
def test_objects_are_rows_with_a_reason_or_give_their_text(tmp_path: Path, own_cache: None, option: str, kept: int) -> None:
    captions = [[{"raw": "the first text", "n": 1}], [{"raw": "the second text", "n": 2}], None]
    pq.write_table(pa.table({"image": [picture(i) for i in range(3)], "captions": captions}), tmp_path / "t.parquet")
    steps = plan("text_length", {"keep": {"column": "words", "min": 2}})
    done = curate(steps, f"parquet:{tmp_path}/t.parquet{option}", tmp_path / "out", runner="inline")
    rows = [row for table in decisions(tmp_path / "out") for row in table.to_pylist()]
    assert done.manifest["kept"] == kept and len(rows) == 3
    assert [row["text"] for row in rows if row["kept"]] == ["the first text", "the second text"][:kept]
    errors = [row["errors"][0] for row in rows if not row["kept"]]
    assert errors[-1] == "no caption" and all("name the one that holds the text: ?caption=COLUMN.raw" in e for e in errors[:-1])
