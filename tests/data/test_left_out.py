"""What a folder holds is read, or listed with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sources_fixture
from diptych.data.sources import open_source
from sources_fixture import picture, problems, put, tar_bytes

own_cache, root = sources_fixture.own_cache, sources_fixture.root  # pytest finds them here
pytestmark = pytest.mark.usefixtures("own_cache")


def test_every_picture_of_a_telephone_is_read_or_listed(root: str) -> None:
    for name in ("a.jfif", "b.JPE", "c.avif", "d.ppm"):
        put(f"{root}/{name}", picture(ord(name[0]), "PPM" if name.endswith("ppm") else "JPEG"))  # the bytes decide
    for name in ("IMG_0.HEIC", "e.jxl", "sub/f.CR2"):
        put(f"{root}/{name}", b"x")
    for stem in ("a", "b", "c", "d", "IMG_0", "e", "sub/f", "lone", "README"):
        put(f"{root}/{stem}.txt", "a caption")
    source = open_source(f"folder:{root}")
    assert [source[i].id for i in range(len(source))] == ["a.jfif", "b.JPE", "c.avif", "d.ppm"]
    found = problems(source)
    assert found.keys() == {"IMG_0.HEIC", "e.jxl", "sub/f.CR2", "lone.txt"}
    assert "HEIC is not read: convert it to JPEG" in found["IMG_0.HEIC"]
    assert "a camera's raw data is not read" in found["sub/f.CR2"]
    assert found["lone.txt"] == "a text without a picture of its name"


def test_a_table_and_class_folders_list_them_too(tmp_path: Path) -> None:
    put(f"{tmp_path}/a.png", picture(0))
    put(f"{tmp_path}/b.heic", b"\0\0\0\x18ftypheic" + bytes(100))
    put(f"{tmp_path}/c.heic", b"x")
    put(f"{tmp_path}/metadata.csv", "file_name,text\na.png,one\nb.heic,two\n")
    source = open_source(f"folder:{tmp_path}")
    assert problems(source) == {"c.heic": "not named in metadata.csv"} and len(source) == 2  # decoding refuses the other
    put(f"{tmp_path}/classes/dog/a.png", picture(0))
    put(f"{tmp_path}/classes/dog/b.heic", b"x")
    assert "HEIC is not read" in problems(open_source(f"classes:{tmp_path}/classes"))["dog/b.heic"]


def nested(root: str, folders: tuple[str, ...], name: str = "metadata.jsonl") -> None:
    for k, folder in enumerate(folders):
        for i in range(3):
            put(f"{root}/{folder}/{i}.png", picture(10 * k + i))
        rows = [{"file_name": f"{i}.png", "text": f"{folder} {i}"} for i in range(3)]
        put(f"{root}/{folder}/{name}", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("folders", [("train", "test"), ("train", "validation", "test"), ("train", "val/more")])
def test_tables_in_folders_are_read_and_folders_are_the_parts(root: str, folders: tuple[str, ...]) -> None:
    nested(root, folders)
    source = open_source(f"folder:{root}")
    assert source.problems == [] and len(source) == 3 * len(folders)
    for part in ("train", "validation", "test"):
        inside = {f for f in folders if f.startswith(part[:3])}
        one = source.split(part)
        assert {one.captions(i)[0] for i in range(len(one))} == {f"{f} {i}" for f in inside for i in range(3)}
    assert len(open_source(f"folder:{root}?split=train")) == 3
    assert len({source.split("train").split("train").fingerprint(), source.split("train").fingerprint()}) == 1


def test_other_folders_with_tables_are_split_by_hash_and_a_strange_table_is_a_problem(tmp_path: Path) -> None:
    nested(str(tmp_path), ("first", "second"), "captions.jsonl")
    put(f"{tmp_path}/first/9.png", picture(99))
    put(f"{tmp_path}/third/1.png", picture(77))
    put(f"{tmp_path}/third/1.txt", "a text next to it")
    put(f"{tmp_path}/third/metadata.csv", "when,where\n1,2\n")
    source = open_source(f"folder:{tmp_path}")
    assert [source.captions(i) for i in range(len(source))][-1] == ["a text next to it"] and len(source) == 7
    found = problems(source)
    assert found.keys() == {"first/9.png", "third/metadata.csv"} and found["first/9.png"] == "not named in first/captions.jsonl"
    parts = [source.split(part) for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 7


def test_texts_of_clips_that_are_not_read_and_members_without_an_ending(tmp_path: Path) -> None:
    for name in ("a.gif", "b.wmv"):
        put(f"{tmp_path}/clips/{name}", picture(1, "GIF"))
        put(f"{tmp_path}/clips/{name[0]}.txt", "a clip")
    for i in range(3):
        put(f"{tmp_path}/clips/c/{i}.png", picture(i))
    put(f"{tmp_path}/clips/c.txt", "a folder of frames")
    source = open_source(f"video:{tmp_path}/clips")
    assert len(source) == 2 and problems(source) == {"b.txt": "a text without a clip of its name"}
    members = [("a.png", picture(1)), ("a.txt", "one"), ("b", picture(2)), (".hidden", "x")]
    source = open_source("wds:" + put(f"{tmp_path}/t.tar", tar_bytes(members)))
    assert len(source) == 1 and problems(source) == {"t.tar:b": "no ending that says what it is"}
