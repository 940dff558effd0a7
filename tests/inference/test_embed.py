"""``diptych embed`` as a user runs it: the vectors are the model's, with ids, captions and reasons, in both kinds of file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import cli_fixture
from cli_fixture import Cli, make_photos
from diptych.core.errors import Interrupted
from diptych.data.sources import open_source
from diptych.inference.load import load
from diptych.inference.predict import parts
from diptych.inference.predict.embed import embed
from diptych.inference.predict.pictures import pictures_of
from predict_fixture import ADDRESS, make_adapted, noisy

cli = cli_fixture.cli


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine pictures in nested folders, and a broken one in between."""
    for i in range(9):
        path = tmp_path / "new" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy("red", i)).save(path)
    (tmp_path / "new" / "b" / "0.jpg").write_bytes(b"")
    return tmp_path / "new"


def test_vectors_in_parquet(cli: Cli, photos: Path, tmp_path: Path) -> None:
    result = cli("embed", ADDRESS, photos, "--out", "v.parquet", "--batch", 4)
    assert result.code == 1 and "1 picture of 10 could not be read" in result.err and "vectors of width 4" in result.out
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 4) and table.column_names == ["id", "vector", "reason"]
    about = {k.decode(): v.decode() for k, v in table.schema.metadata.items() if k.startswith(b"diptych")}
    assert about == {"diptych.model": ADDRESS, "diptych.key": "", "diptych.data": str(photos)}
    model, found = load(ADDRESS), table.to_pylist()
    assert [r["id"] for r in found] == sorted(r["id"] for r in found) and len(found) == 10
    for row in found:
        if row["id"] == "b/0.jpg":
            assert row["vector"] is None and row["reason"] == "the file is empty"
        else:
            assert np.float32(row["vector"]).tolist() == model.embed_image([np.asarray(Image.open(photos / row["id"]))])[0].tolist()


def test_the_key_of_the_weights_is_kept_and_compared(cli: Cli, photos: Path, tmp_path: Path, monkeypatch) -> None:
    assert cli("embed", "predict_fixture:Slow", photos, "-o", "v.parquet").code == 1
    assert pq.read_schema(tmp_path / "v.parquet").metadata[b"diptych.key"] == b"slow-1"
    monkeypatch.setattr("predict_fixture.Slow.key", "slow-2")
    result = cli("embed", "predict_fixture:Slow", photos, "-o", "v.parquet")
    assert result.code == 1 and "other settings (weights: slow-1, now slow-2)" in result.err


def test_captions_in_both_kinds_of_file(cli: Cli, tmp_path: Path) -> None:
    address = make_photos(tmp_path / "p", 7)
    (tmp_path / "p" / "p000.txt").write_text("a red wall\na green one\n")
    assert cli("embed", ADDRESS, address, "--text", "--out", "v.parquet").code == 0
    found = pq.read_table(tmp_path / "v.parquet").to_pylist()
    source, model = open_source(address), load(ADDRESS)
    expected = []
    for i in range(7):
        expected.append((source[i].id, "image", None, model.embed_image([source[i].image])[0].tolist()))
        expected += [(source[i].id, "text", c, model.embed_text([c])[0].tolist()) for c in source[i].captions]
    assert [(r["id"], r["kind"], r["text"], np.float32(r["vector"]).tolist()) for r in found] == expected and len(found) == 15
    assert cli("embed", ADDRESS, address, "--text", "--out", "v.npy").code == 0
    array = np.load(tmp_path / "v.npy")
    ids = [json.loads(line) for line in (tmp_path / "v.ids.jsonl").read_text().splitlines()]
    assert array.dtype == np.float32 and array.tolist() == [e[3] for e in expected]
    assert [(r["id"], r["kind"], r["text"]) for r in ids] == [e[:3] for e in expected]
    assert "is complete already" in cli("embed", ADDRESS, address, "--text", "--out", "v.npy").err


def test_an_array_with_a_broken_picture_continues(cli: Cli, photos: Path, tmp_path: Path) -> None:
    assert cli("embed", ADDRESS, photos, "-o", "v.npy").code == 1
    before = np.load(tmp_path / "v.npy")
    assert before.shape == (10, 4) and np.flatnonzero(np.isnan(before).any(1)).tolist() == [3]
    Image.fromarray(noisy("blue", 1)).save(photos / "a" / "9.png")
    assert cli("embed", ADDRESS, photos, "-o", "v.npy").code == 1
    after = np.load(tmp_path / "v.npy")
    np.testing.assert_array_equal(after[:10], before)
    ids = [json.loads(line)["id"] for line in (tmp_path / "v.ids.jsonl").read_text().splitlines()]
    assert ids[-1] == "a/9.png" and len(ids) == 11 and np.isfinite(after[-1]).all()


def test_an_adapted_model_gives_the_vectors_of_its_own_model(cli: Cli, photos: Path, tmp_path: Path) -> None:
    make_adapted(tmp_path / "adapted", 4)
    cli("embed", "adapted", photos, "-o", "a.npy")
    cli("embed", ADDRESS, photos, "-o", "b.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_stopped_between_batches_and_continued(photos: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parts, "SECONDS", 1e9)
    model, calls = load(ADDRESS), []
    given = model.embed_image

    def stops(images):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return given(images)

    model.embed_image = stops  # type: ignore[method-assign]
    out = tmp_path / "v.parquet"
    with pytest.raises(Interrupted, match=r"6 of 10 pictures are kept in .*v.parquet.parts; the same command continues"):
        embed(model, ADDRESS, pictures_of(str(photos)), out, batch=3, quiet=True)
    calls.extend([0] * 10)
    assert embed(model, ADDRESS, pictures_of(str(photos)), out, batch=3, quiet=True)["pictures"] == 10
    assert calls[14:] == [1, 3, 1], "the width, then only what was missing"
    model.embed_image = given  # type: ignore[method-assign]
    embed(model, ADDRESS, pictures_of(str(photos)), tmp_path / "w.parquet", quiet=True)
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "w.parquet"))


def test_a_crash_while_the_file_is_joined(photos: Path, tmp_path: Path, monkeypatch) -> None:
    model, out = load(ADDRESS), tmp_path / "v.parquet"

    def full(*given, **more):
        raise OSError(28, "No space left on device")

    original = parts.write_json

    def full_in_the_end(path, data):
        return full() if path.name.endswith("about.json") else original(path, data)

    for where, broken in (("table.pq.ParquetWriter", full), ("parts.write_json", full_in_the_end)):
        with monkeypatch.context() as patch:
            patch.setattr(f"diptych.inference.predict.{where}", broken)
            with pytest.raises(OSError, match="No space"):
                embed(model, ADDRESS, pictures_of(str(photos)), out, quiet=True)
        assert (tmp_path / "v.parquet.parts" / "settings.json").is_file() and not list(tmp_path.glob(".v.parquet.*tmp"))
    assert embed(model, ADDRESS, pictures_of(str(photos)), out, quiet=True)["broken"] == 1
    assert pq.read_table(out).num_rows == 10 and not (tmp_path / "v.parquet.parts").exists()


def test_what_cannot_be_embedded(cli: Cli, photos: Path, tmp_path: Path) -> None:
    assert (
        "cannot turn an image into a vector; it can: generate" in cli("embed", "predict_fixture:Blind", photos, "-o", "v.npy").err
    )
    result = cli("embed", ADDRESS, photos, "--text", "-o", "v.npy")
    assert result.code == 1 and "with a caption" in result.err
    assert "ends in .parquet or .npy" in cli("embed", ADDRESS, photos, "-o", "v.csv").err
    assert not list(tmp_path.glob("v.*"))
