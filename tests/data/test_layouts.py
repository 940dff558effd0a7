"""Layouts that give no hint of what they are: read, or refused with the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sources_fixture
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from sources_fixture import CAPTIONS, NAMES, PICTURES, problems, put, put_images, put_parquet

own_cache, root = sources_fixture.own_cache, sources_fixture.root  # pytest finds them here
pytestmark = pytest.mark.usefixtures("own_cache")

ROWS: list[dict[str, Any]] = [{"image": n, "caption": c} for n, c in zip(NAMES, CAPTIONS, strict=True)]
TALKS = [{"image": n, "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": c[0]}]} for n, c in zip(NAMES, CAPTIONS, strict=True)]  # fmt: skip
COCO = {
    "images": [{"id": i, "file_name": n} for i, n in enumerate(NAMES)],
    "annotations": [{"image_id": i, "caption": c} for i, cs in enumerate(CAPTIONS) for c in cs],
}
KARPATHY = {"images": [{"filename": n, "sentences": [{"raw": c} for c in cs]} for n, cs in zip(NAMES, CAPTIONS, strict=True)]}


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("content", "scheme"),
    [
        (json.dumps(ROWS), "jsonl"),
        (json.dumps(ROWS, indent=1), "jsonl"),
        (lines(ROWS), "jsonl"),
        (json.dumps(TALKS), "llava"),
        (lines(TALKS), "chat"),
        (json.dumps(COCO), "coco"),
        (json.dumps(COCO, indent=1), "coco"),
        (json.dumps(KARPATHY), "karpathy"),
        ("\ufeff" + json.dumps(ROWS), "jsonl"),
    ],
)
def test_a_json_is_read_as_what_it_holds(root: str, content: str, scheme: str) -> None:
    put_images(root)
    url = put(f"{root}/data.json", content)
    for source in (open_source(url), open_source(f"{scheme}:{url}")):
        found = [source.captions(i)[-1] for i in range(3)]
        assert found == [c[0] if scheme in ("llava", "chat") else c[-1] for c in CAPTIONS] and source.problems == []
    for other in {"coco", "karpathy", "llava"} - {scheme, "llava" if scheme == "chat" else scheme}:
        with pytest.raises(DiptychError, match=f"expected .*{scheme}:{url}"):
            open_source(f"{other}:{url}")


@pytest.mark.parametrize("content", ["[1, 2]", '[{"image": "a.png"}, ["x"]]', "[", "[{}"])
def test_a_broken_list_names_the_entry(tmp_path: Path, content: str) -> None:
    with pytest.raises(DiptychError, match=r"data\.json(, entry [01]: expected a JSON object|: broken JSON)"):
        open_source(put(f"{tmp_path}/data.json", content))


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json", "t.parquet"])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_numbers_called_image_and_paths_of_windows(root: str, name: str, slash: str) -> None:
    put_images(f"{root}/img")
    rows = [{"image": i, "file_name": f"img{slash}{n.replace('/', slash)}", "caption": c[0]} for i, (n, c) in enumerate(zip(NAMES, CAPTIONS, strict=True))]  # fmt: skip
    if name.endswith("parquet"):
        put_parquet(f"{root}/{name}", {key: [row[key] for row in rows] for key in rows[0]})
    elif name.endswith("csv"):
        put(
            f"{root}/{name}",
            "image,file_name,caption\n" + "".join(f'{r["image"]},{r["file_name"]},"{r["caption"]}"\n' for r in rows),
        )
    else:
        put(f"{root}/{name}", lines(rows) if name.endswith("l") else json.dumps(rows))
    source = open_source(f"{root}/{name}")
    assert [source[i].id for i in range(3)] == [f"img/{n}" for n in NAMES] and source.problems == []


def test_a_backslash_may_be_part_of_a_name(tmp_path: Path) -> None:
    put(f"{tmp_path}/a\\b.png", PICTURES[0])
    put(f"{tmp_path}/metadata.csv", "file_name,text\na\\b.png,one\n")
    source = open_source(f"folder:{tmp_path}")
    assert source[0].id == "a\\b.png" and problems(source) == {}


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_the_column_of_captions_is_named_where_there_are_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    put_images(str(tmp_path))
    columns = {"title": ["IMG_0", "IMG_1"], "file_name": [NAMES[0], NAMES[2]], "description": ["a fox", "a cat"]}
    if name == "t.csv":
        rows = zip(*columns.values(), strict=True)
        url = put(f"{tmp_path}/{name}", "\n".join([",".join(columns), *(",".join(row) for row in rows)]))
    else:
        url = put_parquet(f"{tmp_path}/{name}", columns)
    for _ in range(2):
        assert open_source(url).captions(0) == ["IMG_0"]
    note = capsys.readouterr().err
    assert note == f"note: {url}: the caption is read from the column 'title'; others: ?caption=description\n"
    assert open_source(f"{url}?caption=description").captions(0) == ["a fox"] and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("t.xlsx", "a spreadsheet is not read: save the sheet as .csv"),
        ("t.csv.gz", "compressed: unpack it first"),
        ("t.tar.gz", "compressed: unpack it first"),
        ("photos.zip", "an archive is not read: unpack it, and give the folder"),
    ],
)
def test_files_that_are_not_read_get_the_remedy(tmp_path: Path, name: str, remedy: str) -> None:
    put(f"{tmp_path}/{name}", b"x")
    with pytest.raises(DiptychError, match=f"{name}: {remedy}"):
        open_source(f"{tmp_path}/{name}")
    with pytest.raises(DiptychError, match="there is no such file"):
        open_source(f"{tmp_path}/other-{name}")


def test_endings_may_be_capital_letters(tmp_path: Path) -> None:
    put_images(str(tmp_path))
    for name, content in (("A.JSONL", lines(ROWS)), ("B.JSON", json.dumps(ROWS)), ("C.NDJSON", lines(ROWS)), ("D.TSV", "image\tcaption\na.png\tx")):  # fmt: skip
        assert len(open_source(put(f"{tmp_path}/{name}", content))) == (1 if name == "D.TSV" else 3)
