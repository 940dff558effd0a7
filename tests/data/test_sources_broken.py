"""Every format of data, as it comes in life."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import sources_fixture
from diptych.core.errors import DiptychError
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from sources_fixture import PICTURES, make_folder_json, make_folder_txt, picture, problems, put, put_images, put_parquet, tar_bytes

own_cache, root = sources_fixture.own_cache, sources_fixture.root  # pytest finds them here
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("foldr:photos", "did you mean 'folder'"),
        ("nowhere/at/all", "cannot open 'nowhere/at/all'.*known: scenes:, folder:"),
        ("folder:nowhere", "nowhere: there is no such directory"),
        ("csv:nowhere.csv", r"nowhere\.csv: there is no such file"),
        ("nowhere.csv", r"nowhere\.csv: there is no such file"),
        ("parquet:nowhere/*.parquet", "no file has such a name"),
        ("coco:nowhere.json", "there is no such file"),
        ("wds:nowhere/{0..2}.tar", "3 of 3 shards do not exist"),
        ("csv:memory://nowhere/x.csv", "there is no such file"),
        ("folder:memory://nowhere/at", "there is no such directory"),
        ("folder:nosuchprotocol://x", "nosuchprotocol"),
        ("folder:", "has no place"),
    ],
)
def test_wrong_addresses_are_named(address: str, message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        open_source(address)


def test_empty_data_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="empty data set: found no images"):
        open_source(f"folder:{tmp_path}")
    put_images(str(tmp_path))  # images, but not a caption
    with pytest.raises(DiptychError, match=r"(?s)empty data set.*a\.png: no caption"):
        open_source(f"folder:{tmp_path}")
    put(f"{tmp_path}/t.csv", "image,caption\n")
    with pytest.raises(DiptychError, match=r"t\.csv: empty data set"):
        open_source(f"csv:{tmp_path}/t.csv")
    put(f"{tmp_path}/x.tar", tar_bytes([]))
    with pytest.raises(DiptychError, match="empty data set"):
        open_source(f"wds:{tmp_path}/x.tar")


def test_a_missing_column_is_named_with_the_remedy(tmp_path: Path) -> None:
    url = put(f"{tmp_path}/t.csv", "image,words\na.png,x\n")
    with pytest.raises(DiptychError, match=r"t\.csv: no caption column.*columns: image, words.*\?caption=NAME"):
        open_source(f"csv:{url}")
    url = put_parquet(f"{tmp_path}/t.parquet", {"pixels": PICTURES, "caption": ["a", "b", "c"]})
    with pytest.raises(DiptychError, match=r"t\.parquet: no image column.*columns: pixels, caption.*\?image=NAME"):
        open_source(url)


def test_unusable_rows_are_recorded_and_the_rest_is_kept(root: str) -> None:
    put_images(root)
    rows = ["image,caption", "a.png,good", "c 3.png,", "none.png,there is none", "sub/bär.jpg,one, two", ",no image"]
    source = open_source("csv:" + put(f"{root}/t.csv", "\n".join(rows)))
    assert [s.captions for s in (source[i] for i in range(len(source)))] == [["good"]]
    found = problems(source)
    assert found.keys() == {"c 3.png", "none.png", "t.csv:5", "t.csv:6"}
    assert found["c 3.png"] == "empty caption"
    assert "there is no file" in found["none.png"] and "none.png" in found["none.png"]
    assert "3 fields" in found["t.csv:5"]


def test_one_empty_caption_among_several(tmp_path: Path) -> None:
    put_images(str(tmp_path))
    rows = [{"image": "a.png", "captions": ["one", " \t", "two"]}, {"image": "c 3.png", "captions": []}]
    put(f"{tmp_path}/captions.jsonl", "\n".join(map(json.dumps, rows)))
    source = open_source(f"folder:{tmp_path}")
    assert source[0].captions == ["one", "two"]
    assert problems(source) == {
        "a.png": "empty caption",
        "c 3.png": "no caption",
        "sub/bär.jpg": "not named in captions.jsonl",
    }


def test_captions_lose_control_characters_but_no_words(tmp_path: Path) -> None:
    long = "word " * 9_999 + "last"
    dirty = "\ufeffred\x00 \x1bsquare\u0085\tand\n\ud800more  "
    rows = [{"image": "a.png", "caption": dirty}, {"image": "c 3.png", "caption": long}]
    put_images(str(tmp_path))
    put(f"{tmp_path}/t.jsonl", "\n".join(map(json.dumps, rows)))
    source = open_source(f"{tmp_path}/t.jsonl")
    assert source[0].captions == ["red square and more"]
    assert source[1].captions == [long]
    put(f"{tmp_path}/t.jsonl", '{"image": "a.png", "caption": "one\u2028line"}\n')  # legal inside a JSON text
    assert open_source(f"{tmp_path}/t.jsonl")[0].captions == ["one line"]
    put(f"{tmp_path}/t.csv", f"image,caption\na.png,{'x' * 200_000}\n")
    assert len(open_source(f"{tmp_path}/t.csv")[0].captions[0]) == 200_000


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace(",", ";").encode(),
    ],
)
def test_what_spreadsheets_write(tmp_path: Path, encode: Callable[[str], bytes]) -> None:
    put_images(str(tmp_path))
    put(f"{tmp_path}/t.csv", encode('image,caption\na.png,"ein grüner\nBär"\n\nsub/bär.jpg,zwei\n'))
    source = open_source(f"csv:{tmp_path}/t.csv")
    assert [source[i].captions for i in range(len(source))] == [["ein grüner Bär"], ["zwei"]]
    assert source.problems == []


def test_marks_and_line_ends_in_txt(tmp_path: Path) -> None:
    put(f"{tmp_path}/a.png", PICTURES[0])
    put(f"{tmp_path}/a.txt", b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")
    assert open_source(f"folder:{tmp_path}")[0].captions == ["one", "two"]
    put(f"{tmp_path}/b.png", PICTURES[1])
    put(f"{tmp_path}/b.txt", "ä".encode("latin-1"))
    source = open_source(f"folder:{tmp_path}")
    assert len(source) == 1 and "line 1: not UTF-8" in problems(source)["b.png"]


def test_broken_json_names_file_and_line(tmp_path: Path) -> None:
    put_images(str(tmp_path))
    put(f"{tmp_path}/captions.jsonl", '{"image": "a.png", "caption": "x"}\n{"image": "c 3.png", "capt')
    with pytest.raises(DiptychError, match=r"captions\.jsonl, line 2: broken JSON"):
        open_source(f"folder:{tmp_path}")
    put(f"{tmp_path}/captions.jsonl", '{"image": "a.png", "caption": "x"}\n\n["a list"]\n')
    with pytest.raises(DiptychError, match=r"captions\.jsonl, line 3: expected a JSON object .* found list"):
        open_source(f"folder:{tmp_path}")
    put(f"{tmp_path}/c.json", '{"images": [')
    with pytest.raises(DiptychError, match=r"c\.json: broken JSON: .*line 1"):
        open_source(f"coco:{tmp_path}/c.json")
    put(f"{tmp_path}/c.json", '{"images": [], "categories": []}')
    with pytest.raises(DiptychError, match=r"not a COCO file.*has images, categories"):
        open_source(f"coco:{tmp_path}/c.json")


def test_broken_json_beside_one_image_costs_only_that_image(tmp_path: Path) -> None:
    make_folder_json(str(tmp_path))
    put(f"{tmp_path}/a.json", "{")
    source = open_source(f"folder:{tmp_path}")
    assert len(source) == 2 and "a.json: broken JSON" in problems(source)["a.png"]


def test_broken_images_are_named_when_read(root: str) -> None:
    put(f"{root}/good.png", PICTURES[0])
    put(f"{root}/text.jpg", "no image at all")
    put(f"{root}/cut.jpg", PICTURES[1][:-200])
    put(f"{root}/empty.png", b"")
    for stem in ("good", "text", "cut", "empty"):
        put(f"{root}/{stem}.txt", stem)
    source = open_source(f"folder:{root}")
    assert len(source) == 4
    reasons = {}
    for i in range(4):
        try:
            source[i]
        except BrokenItem as error:
            reasons[error.problem.item] = error.problem.reason
    assert reasons.keys() == {"text.jpg", "cut.jpg", "empty.png"}
    assert "not an image" in reasons["text.jpg"] and "truncated" in reasons["cut.jpg"] and "empty" in reasons["empty.png"]


def test_a_file_that_vanishes_is_a_broken_item(tmp_path: Path) -> None:
    source, again = (open_source(make_folder_txt(str(tmp_path))) for _ in range(2))
    (tmp_path / "a.png").unlink()
    (tmp_path / "c 3.png").unlink()
    with pytest.raises(BrokenItem, match=r"a\.png: cannot be read"):
        source[0]
    assert sum(len(source.split(n)) for n in ("train", "validation", "test")) == 3
    assert len(set(source.digests())) == 3 and source.digests() == again.digests()


def test_shards_group_by_key_up_to_the_first_dot(tmp_path: Path) -> None:
    members = [
        ("d.1/x.jpg", picture(1, "JPEG")),
        ("d.1/x.seg.png", PICTURES[0]),
        ("d.1/x.json", '{"caption": "one", "score": 2}'),
        ("d.1/x.cls", "7\n"),
        ("y.PNG", PICTURES[2]),
        ("y.txt", "two\n"),
        ("z.txt", "no image"),
        ("w.jpg", PICTURES[1]),
        ("v.jpg", PICTURES[1]),
        ("v.json", "{"),
    ]
    put(f"{tmp_path}/x.tar", tar_bytes(members))
    source = open_source(f"wds:{tmp_path}/x.tar")
    assert [source[i].id for i in range(len(source))] == ["x.tar:d.1/x", "x.tar:y"]
    assert source[0].captions == ["one"] and source[0].extra == {"score": 2, "cls": "7"}
    found = problems(source)
    assert found.keys() == {"x.tar:z", "x.tar:w", "x.tar:v"}
    assert "no image" in found["x.tar:z"] and found["x.tar:w"] == "no caption" and "broken JSON" in found["x.tar:v"]


@pytest.mark.parametrize("cut", [1540, 2048, 2100, 2600, 3588])  # in a text, between members, in a header, in a picture, in a text
def test_a_truncated_shard_gives_what_is_good(root: str, cut: int) -> None:
    members = [(f"{i}.{kind}", data) for i in range(9) for kind, data in (("png", picture(i)), ("txt", f"caption {i}"))]
    whole = tar_bytes(members)
    put(f"{root}/0.tar", whole[:cut])
    put(f"{root}/1.tar", tar_bytes([("good.png", PICTURES[0]), ("good.txt", "good")]))
    source = open_source(f"wds:{root}/*.tar")
    samples = [source[i] for i in range(len(source))]
    assert [s.captions for s in samples] == [[f"caption {i}"] for i in range(cut // 2048)] + [["good"]]
    assert "truncated" in problems(source)["0.tar"]


def test_a_picture_cut_short_at_the_end_of_a_shard_is_not_listed(tmp_path: Path) -> None:
    whole = tar_bytes([("a.txt", "one"), ("a.png", PICTURES[0]), ("b.txt", "two"), ("b.png", PICTURES[1])])
    put(f"{tmp_path}/0.tar", whole[: 3 * 1024 + 512 + 20])
    source = open_source(f"wds:{tmp_path}/0.tar")
    assert [source[i].captions for i in range(len(source))] == [["one"]]
    assert "b.png ends beyond the end of the file" in problems(source)["0.tar"]


def test_shards_that_are_none(tmp_path: Path) -> None:
    put(f"{tmp_path}/0.tar", b"this is no tar file" * 100)
    with pytest.raises(DiptychError, match=r"(?s)empty data set.*0\.tar: damaged or truncated"):
        open_source(f"wds:{tmp_path}/0.tar")
    with pytest.raises(DiptychError, match=r"1 of 2 shards do not exist: .*1\.tar"):
        open_source(f"wds:{tmp_path}/{{0..1}}.tar")
    put(f"{tmp_path}/x.parquet", b"PAR1 or so")
    with pytest.raises(DiptychError, match=r"x\.parquet: not a Parquet file"):
        open_source(f"{tmp_path}/x.parquet")


def test_malformed_entries_of_karpathys_files_are_named(tmp_path: Path) -> None:
    put_images(str(tmp_path))
    said = [{"tokens": ["it", 1]}, {"tokens": 7}, {"raw": None}, 5]
    good = {"filename": "a.png", "filepath": None, "sentences": said}
    images = [good, 5, {**good, "filename": 7}, {**good, "filepath": ["x"]}, {**good, "sentences": "x"}]
    put(f"{tmp_path}/d.json", json.dumps({"images": images}))
    source = open_source(f"karpathy:{tmp_path}/d.json")
    assert len(source) == 1 and source[0].id == "a.png" and source[0].captions == ["it 1"]
    found = problems(source)
    assert found.pop("a.png") == "empty caption"
    assert {item.removeprefix("d.json: "): reason for item, reason in found.items()} == {
        "image 1": "no field 'filename'",
        "image 2": "field 'filename' holds int; expected str",
        "image 3": "field 'filepath' holds list; expected str",
        "image 4": "field 'sentences' holds str; expected list",
    }


@pytest.mark.parametrize("scheme", ["parquet", "classes", "documents", "chat"])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, scheme: str) -> None:
    put(f"{tmp_path}/none.parquet", b"PAR1 or so")
    with pytest.raises(DiptychError, match=r"none\.parquet: not a Parquet file"):
        open_source(f"{scheme}:{tmp_path}/none.parquet")
    texts = [f"number {i}" for i in range(50)]
    url = put_parquet(f"{tmp_path}/x.parquet", {"image": ["a.png"] * 50, "caption": texts, "label": texts})
    whole = Path(url).read_bytes()
    put(url, whole[:4] + bytes(255 - b for b in whole[4:300]) + whole[300:])  # the index at the end is as it was
    with pytest.raises(DiptychError, match=r"x\.parquet: damaged Parquet file: .*copy or write it again"):
        open_source(f"{scheme}:{url}")


def test_parquet_rows_without_an_image(tmp_path: Path) -> None:
    put_parquet(f"{tmp_path}/t.parquet", {"image": [PICTURES[0], None], "caption": ["x", "y"], "n": [1, 2]})
    source = open_source(f"{tmp_path}/t.parquet")
    assert source[0].extra == {"n": 1}
    with pytest.raises(BrokenItem, match=r"t\.parquet:1: .*no image"):
        source[1]
