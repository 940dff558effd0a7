"""``diptych index`` and ``diptych search``: what they print, what they refuse, and that the second run goes on with the first."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli_fixture
from cli_fixture import Cli
from diptych.cli.index.search import filters_of
from diptych.core.errors import DiptychError
from index_fixture import COLOURS, fill, put

cli = cli_fixture.cli
MODEL = "index_fixture:Pixels"


def test_from_pictures_to_an_answer(cli: Cli, tmp_path: Path) -> None:
    photos = fill(tmp_path / "my" / "photos", 6)
    put(photos / "sea/blue.png", np.full((30, 40, 3), COLOURS["blue"], np.uint8))
    (photos / "sea/blue.txt").write_text("the sea at noon")
    (photos / "bad.jpg").write_bytes(b"no picture")
    done = cli("index", "folder:my/photos", "--model", MODEL, "--out", "my.index")
    assert done.code == 0 and "my.index: 7 pictures (7 new), by index_fixture:Pixels" in done.out
    assert "1 picture could not be read" in done.err and "bad.jpg: not an image" in done.err
    assert 'search: diptych search my.index "' in done.out
    put(photos / "red.png", np.full((30, 40, 3), COLOURS["red"], np.uint8))
    again = cli("index", "--out", "my.index")  # the addresses and the model are those of the index
    assert again.code == 0 and "8 pictures (1 new, 8 unchanged)" in again.out
    assert "bad.jpg: not an image" in cli("index", "--broken", "--out", "my.index").out
    shown = cli("search", "my.index", "blue", "--all", "-n", "3")
    assert shown.code == 0 and re.search(r"1\.000 +[\d.]+ +my/photos/sea/blue\.png +the sea at noon", shown.out)
    assert "3 of 8 pictures" in shown.out
    found = json.loads(cli("search", "my.index", "blue", "--all", "--json", "-n", "2", "--not", "red").out)
    first = found["hits"][0]
    assert first["name"] == "sea/blue.png" and first["path"] == "my/photos/sea/blue.png" and first["caption"] == "the sea at noon"
    assert len(found["hits"]) == 2 and found["total"] == 8 and found["selection"] is None
    kept = json.loads(
        cli(
            "search",
            "my.index",
            "--like",
            "my/photos/red.png",
            "--all",
            "-n",
            "2",
            "--select",
            "reds",
            "--sheet",
            "hits.png",
            "--json",
        ).out
    )
    assert kept["hits"][0]["name"] == "red.png" and kept["selection"] == "index:my.index?selection=reds"
    with Image.open("hits.png") as sheet:
        assert sheet.width > 400
    inspected = cli("data", "inspect", "index:my.index?selection=reds", "--json")
    assert inspected.code == 0 and json.loads(inspected.out)["items"] == 2
    listed = json.loads(cli("search", "my.index", "--where", "folder=sea", "--where", "words=noon", "--json").out)
    assert [hit["name"] for hit in listed["hits"]] == ["sea/blue.png"] and listed["total"] == 1
    similar = json.loads(cli("search", "my.index", "--like", str(first["id"]), "--all", "--json").out)
    assert first["id"] not in [hit["id"] for hit in similar["hits"]]


def test_what_is_wrong_is_said(cli: Cli, tmp_path: Path) -> None:
    fill(tmp_path / "photos", 3)
    fill(tmp_path / "other", 1)
    for words, message in (
        (["index", "--out", "none.index"], "there is no index at none.index; make one: diptych index folder:my/photos"),
        (["search", "none.index", "dog"], "there is no such directory"),
        (["index", "photos", "--model", "index_fixture:Blind"], "cannot turn an image into a vector"),
        (["index", "photos", "--model", MODEL, "--store", "exakt"], "there is no store 'exakt'; did you mean 'exact'"),
        (["index", "nowhere", "--model", MODEL], "nowhere"),
    ):
        done = cli(*words)
        assert done.code == 1 and message in done.err, done.err
    assert cli("index", "photos", "--model", MODEL).code == 0
    for words, message in (
        (["index", "other"], "is an index of"),
        (["index", "--store", "hnsw"], "move them first: --move hnsw"),
        (["index", "--limit", "3"], "was made with no --limit"),
        (["index", "photos", "--move", "hnsw"], "--move is about an index that is there"),
        (["index", "--move", "exact"], "are in a store of kind exact already"),
        (["search", "my.index", "dog", "--where", "folder"], "expected NAME=VALUE"),
        (["search", "my.index", "dog", "--where", "labl=1"], "there is no column 'labl'"),
        (["search", "my.index", "dog", "--since", "soon"], "expected a date such as"),
        (["search", "my.index", "--like", "none.jpg"], "there is no such file"),
        (["search", "my.index", "--like", "99"], "there is no picture 99"),
        (["search", "my.index", "--not", "dog"], "unwanted things alone"),
        (["search", "my.index", "dog", "--model", "colours_fixture:Mute"], "--model index_fixture:Pixels"),
    ):
        done = cli(*words)
        assert done.code == 1 and message in done.err, (words, done.err)


def test_another_store_has_the_same_answers(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    fill(tmp_path / "photos", 12)
    cli("index", "photos", "--model", MODEL)
    query = ["search", "my.index", "red", "--all", "--json"]
    before = json.loads(cli(*query).out)["hits"]
    moved = cli("index", "--move", "hnsw")
    assert moved.code == 0 and "12 vectors moved" in moved.out and "the store is hnsw now" in moved.out
    after = json.loads(cli(*query).out)["hits"]
    assert [(h["id"], h["name"]) for h in after] == [(h["id"], h["name"]) for h in before]
    assert [h["score"] for h in after] == pytest.approx([h["score"] for h in before], abs=1e-6)
    assert sorted(p.name for p in Path("my.index").iterdir() if p.is_dir()) == ["vectors-hnsw"]
    put(tmp_path / "photos/new.png", 50)
    assert "recall@10 1.000" in cli("index", "--out", "my.index").out


def test_conditions_of_the_command_line() -> None:
    columns = ["label", "price", "width", "when"]
    given = ["label=cat|dog", "price=1..20.5", "folder=a/b", "width=640", "min_height=5", "words=red shoes", "when=a=b..c"]
    assert filters_of(given, columns) == {
        "folder": "a/b",
        "min_height": "5",
        "words": "red shoes",
        "columns": {"label": ["cat", "dog"], "price": {"min": 1, "max": 20.5}, "width": "640", "when": "a=b..c"},
    }
    assert filters_of(["price=10.."], columns) == {"columns": {"price": {"min": 10}}}
    with pytest.raises(DiptychError, match="did you mean 'price'"):
        filters_of(["prize=3"], columns)


def test_a_second_model_judges_the_first_hits(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    rows = []
    for i in range(120):
        colour = ("red", "green", "blue", "yellow")[i % 4]
        pixels = np.clip(np.array(COLOURS[colour]) + np.random.default_rng(i).integers(-40, 41, (24, 32, 3)), 0, 255)
        rows.append({"image": put(tmp_path / f"elsewhere/{i}.png", pixels.astype(np.uint8)).name, "caption": f"a {colour} one"})
    (tmp_path / "elsewhere/rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for i, colour in enumerate(("red", "blue", "red", "blue")):
        pixels = np.clip(np.array(COLOURS[colour]) + np.random.default_rng(200 + i).integers(-40, 41, (24, 32, 3)), 0, 255)
        put(tmp_path / f"photos/{colour}-{i}.png", pixels.astype(np.uint8))
    done = cli("index", "folder:photos", "--model", MODEL, "--out", "i", "--background", "jsonl:elsewhere/rows.jsonl")
    assert done.code == 0
    found = json.loads(cli("search", "i", "red", "--rerank", MODEL, "--json", "--all").out)
    assert found["reranked"] and not found["nothing"] and found["hits"][0]["name"].startswith("red")
    absent = cli("search", "i", "green", "--rerank", MODEL)
    assert absent.code == 0 and absent.out.startswith("nothing here looks like that")
    assert not json.loads(cli("search", "i", "red", "--json", "--all").out)["reranked"]
