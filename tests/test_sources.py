"""Every format of data, in good order and in bad; all made here."""

from __future__ import annotations

import csv
import io
import json
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diptych.data.inspect import inspect, print_inspection
from diptych.data.source import BrokenItem, Source
from diptych.data.sources import files, open_source
from diptych.errors import DiptychError

NAMES = ["a.png", "sub/bär.jpg", "c 3.png"]
CAPTIONS = [["a red square", "red"], ["ein grüner Bär 🐻"], ["a blue, 'quoted' thing"]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else "memory://bucket/data"


def picture(seed: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    colour = tuple(int(c) for c in np.random.default_rng(seed).integers(0, 256, 3))
    Image.new("RGB", (12, 8), colour).save(file, kind)
    return file.getvalue()


PICTURES = [picture(i, "JPEG" if name.endswith("jpg") else "PNG") for i, name in enumerate(NAMES)]


def put(url: str, content: bytes | str) -> str:
    """Writes a file; a text in UTF-8."""
    with fsspec.open(url, "wb", auto_mkdir=True) as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return url


def put_images(root: str) -> None:
    for name, data in zip(NAMES, PICTURES, strict=True):
        put(f"{root}/{name}", data)


def make_folder_txt(root: str) -> str:
    put_images(root)
    for name, captions in zip(NAMES, CAPTIONS, strict=True):
        put(f"{root}/{name.rpartition('.')[0]}.txt", "\n".join(captions))
    return f"folder:{root}"


def make_folder_json(root: str) -> str:
    put_images(root)
    for name, captions in zip(NAMES, CAPTIONS, strict=True):
        put(f"{root}/{name.rpartition('.')[0]}.json", json.dumps({"captions": captions, "colour": 7}))
    return f"folder:{root}/"


def make_folder_jsonl(root: str) -> str:
    put_images(root)
    rows = [{"image": n, "captions": c} for n, c in zip(NAMES, CAPTIONS, strict=True)]
    put(f"{root}/captions.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return f"folder:{root}"


def make_folder_metadata(root: str) -> str:
    put(f"{root}/metadata.csv", table_text("file_name", "text"))
    put_images(root)
    return f"folder:{root}"


def table_text(image: str = "image", caption: str = "caption", **dialect) -> str:
    file = io.StringIO()
    writer = csv.writer(file, **dialect)
    writer.writerow([image, caption])
    writer.writerows([name, c] for name, captions in zip(NAMES, CAPTIONS, strict=True) for c in captions)
    return file.getvalue()


def make_csv(root: str) -> str:
    put_images(root)
    return "csv:" + put(f"{root}/table.csv", table_text())


def make_tsv(root: str) -> str:
    put_images(root)
    return "tsv:" + put(f"{root}/table.tsv", table_text(delimiter="\t"))


def make_jsonl(root: str) -> str:
    make_folder_jsonl(root)
    return f"jsonl:{root}/captions.jsonl"


def put_parquet(url: str, columns: dict, **options) -> str:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return put(url, file.getvalue())


def make_parquet_bytes(root: str) -> str:
    return "parquet:" + put_parquet(f"{root}/t.parquet", {"image": PICTURES, "caption": CAPTIONS}, row_group_size=1)


def make_parquet_hf(root: str) -> str:
    images = [{"bytes": PICTURES[0], "path": NAMES[0]}, {"bytes": None, "path": NAMES[1]}, {"bytes": PICTURES[2]}]
    put_images(root)
    put_parquet(f"{root}/train-0.parquet", {"image": images[:2], "text": CAPTIONS[:2]})
    put_parquet(f"{root}/train-1.parquet", {"image": images[2:], "text": [CAPTIONS[2]]})
    return f"parquet:{root}/train-*.parquet"


def make_parquet_paths(root: str) -> str:
    put_images(root)
    flat = [(n, c) for n, cs in zip(NAMES, CAPTIONS, strict=True) for c in cs]
    names, captions = zip(*flat, strict=True)
    return "parquet:" + put_parquet(f"{root}/t.parquet", {"file_name": names, "caption": captions})


def make_coco(root: str) -> str:
    put_images(f"{root}/images")
    content = {
        "images": [{"id": i, "file_name": n, "width": 12} for i, n in enumerate(NAMES)],
        "annotations": [{"image_id": i, "caption": c} for i, cs in enumerate(CAPTIONS) for c in cs],
    }
    return "coco:" + put(f"{root}/captions.json", json.dumps(content))


def tar_bytes(members: list[tuple[str, bytes | str]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def make_wds(root: str) -> str:
    for i, (name, data, captions) in enumerate(zip(NAMES, PICTURES, CAPTIONS, strict=True)):
        stem, _, kind = name.rpartition(".")
        put(f"{root}/{i:03d}.tar", tar_bytes([(f"{stem}.{kind}", data), (f"{stem}.txt", "\n".join(captions))]))
    return f"wds:{root}/{{000..002}}.tar"


MAKERS = [value for name, value in sorted(globals().items()) if name.startswith("make_")]


@pytest.mark.parametrize("make", MAKERS)
def test_every_format_gives_the_same_samples(make: Callable[[str], str], root: str) -> None:
    address = make(root)
    source = open_source(address)
    assert isinstance(source, Source)
    assert source.address == address
    assert source.problems == []
    assert len(source) == 3
    samples = [source[i] for i in range(3)]
    assert len({s.id for s in samples}) == 3
    found = {s.captions[0]: s for s in samples}
    for data, captions in zip(PICTURES, CAPTIONS, strict=True):
        sample = found[captions[0]]
        assert sample.captions == captions
        with Image.open(io.BytesIO(data)) as image:
            assert sample.image is not None and np.abs(sample.image.astype(int) - np.asarray(image)).max() <= 2
    again = pickle.loads(pickle.dumps(source))  # loader workers
    assert [again[i].id for i in range(3)] == [s.id for s in samples]
    assert again.fingerprint() == source.fingerprint()
    assert sum(len(source.split(n)) for n in ("train", "validation", "test")) == 3


def test_same_content_same_fingerprint_whatever_the_format(tmp_path: Path) -> None:
    plain = [make_folder_txt, make_csv, make_parquet_bytes, make_wds]
    prints = [open_source(m(str(tmp_path / m.__name__))).fingerprint() for m in plain]
    assert len(set(prints)) == 1
    put(f"{tmp_path}/make_folder_txt/a.txt", "another caption")
    assert open_source(f"folder:{tmp_path}/make_folder_txt").fingerprint() != prints[0]
    put(f"{tmp_path}/make_csv/a.png", picture(99))
    assert open_source(f"csv:{tmp_path}/make_csv/table.csv").fingerprint() != prints[0]


@pytest.mark.parametrize("make", [make_folder_txt, make_csv, make_tsv, make_parquet_bytes, make_coco, make_wds])
def test_a_bare_path_is_understood(make: Callable[[str], str], root: str) -> None:
    assert len(open_source(make(root).partition(":")[2])) == 3


def test_extra_fields_are_kept(tmp_path: Path) -> None:
    assert open_source(make_folder_json(f"{tmp_path}/j"))[0].extra == {"colour": 7}
    assert open_source(make_coco(f"{tmp_path}/c"))[1].extra == {"coco_id": 1, "width": 12}
    put_images(f"{tmp_path}")
    put(f"{tmp_path}/t.csv", "image,caption,licence\na.png,x,CC0\n")
    assert open_source(f"{tmp_path}/t.csv")[0].extra == {"licence": "CC0"}


def test_options_name_the_columns(tmp_path: Path) -> None:
    put_images(str(tmp_path))
    put(f"{tmp_path}/t.csv", "bild,wort,caption\na.png,rot,no\n")
    assert open_source(f"csv:{tmp_path}/t.csv?image=bild&caption=wort")[0].captions == ["rot"]
    with pytest.raises(DiptychError, match=r"t\.csv: no caption column 'word'; did you mean 'wort'\?"):
        open_source(f"csv:{tmp_path}/t.csv?image=bild&caption=word")
    with pytest.raises(DiptychError, match=r"unknown option 'captoin'; did you mean 'caption'\?"):
        open_source(f"csv:{tmp_path}/t.csv?captoin=wort")


def test_coco_images_elsewhere(tmp_path: Path) -> None:
    make_coco(str(tmp_path))
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(DiptychError, match="empty data set"):
        open_source(f"coco:{tmp_path}/captions.json")
    assert len(open_source(f"coco:{tmp_path}/captions.json?images={tmp_path}/elsewhere")) == 3
    assert len(open_source(f"coco:{tmp_path}/captions.json?images=elsewhere")) == 3


class Own:
    def __init__(self, rest: str, *, times: int = 1):
        self.address, self.problems, self.rest, self.times = "", [], rest, times

    def __len__(self) -> int:
        return self.times

    def __getitem__(self, index: int):
        raise IndexError

    def fingerprint(self) -> str:
        return "x"

    def split(self, name: str) -> Own:
        return Own(f"{self.rest}/{name}")


def test_a_source_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mypackage.sources", sys.modules[__name__])
    monkeypatch.setitem(sys.modules, "mypackage", sys.modules[__name__])
    source = open_source("mypackage.sources:Own:some/place:1?times=4")
    assert isinstance(source, Own) and source.rest == "some/place:1" and source.times == 4
    assert open_source("mypackage.sources:Own:x?split=test").rest == "x/test"  # type: ignore[attr-defined]
    with pytest.raises(DiptychError, match="has no 'Ownn'"):
        open_source("mypackage.sources:Ownn:x")
    with pytest.raises(DiptychError, match=r"cannot import 'nopackage.sources'"):
        open_source("nopackage.sources:Own:x")
    with pytest.raises(DiptychError, match="lacks address"):
        open_source("pathlib:Path:x")


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
        ("folder:", "names no place"),
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


def problems(source: Source) -> dict[str, str]:
    return {p.item: p.reason for p in source.problems}


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


def test_rows_of_the_same_image_are_one_sample(tmp_path: Path) -> None:
    put_images(str(tmp_path))
    put(f"{tmp_path}/t.csv", "image,caption\na.png,one\nc 3.png,x\n./a.png,two\na.png,one\n")
    source = open_source(f"csv:{tmp_path}/t.csv")
    assert [source[i].captions for i in range(len(source))] == [["one", "two"], ["x"]]


def test_captions_lose_control_characters_but_no_words(tmp_path: Path) -> None:
    long = "word " * 9_999 + "last"
    dirty = "\ufeffred\x00 \x1bsquare\u0085\tand\n\ud800more  "
    rows = [{"image": "a.png", "caption": dirty}, {"image": "c 3.png", "caption": long}]
    put_images(str(tmp_path))
    put(f"{tmp_path}/t.jsonl", "\n".join(map(json.dumps, rows)))
    source = open_source(f"{tmp_path}/t.jsonl")
    assert source[0].captions == ["red square and more"]
    assert source[1].captions == [long]
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
    source = open_source(make_folder_txt(str(tmp_path)))
    (tmp_path / "a.png").unlink()
    with pytest.raises(BrokenItem, match=r"a\.png: cannot be read"):
        source[0]
    assert sum(len(source.split(n)) for n in ("train", "validation", "test")) == 3


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


def test_shards_that_are_none(tmp_path: Path) -> None:
    put(f"{tmp_path}/0.tar", b"this is no tar file" * 100)
    with pytest.raises(DiptychError, match=r"(?s)empty data set.*0\.tar: damaged or truncated"):
        open_source(f"wds:{tmp_path}/0.tar")
    with pytest.raises(DiptychError, match=r"1 of 2 shards do not exist: .*1\.tar"):
        open_source(f"wds:{tmp_path}/{{0..1}}.tar")
    put(f"{tmp_path}/x.parquet", b"PAR1 or so")
    with pytest.raises(DiptychError, match=r"x\.parquet: not a Parquet file"):
        open_source(f"{tmp_path}/x.parquet")


def test_parquet_rows_without_an_image(tmp_path: Path) -> None:
    put_parquet(f"{tmp_path}/t.parquet", {"image": [PICTURES[0], None], "caption": ["x", "y"], "n": [1, 2]})
    source = open_source(f"{tmp_path}/t.parquet")
    assert source[0].extra == {"n": 1}
    with pytest.raises(BrokenItem, match=r"t\.parquet:1: .*no image"):
        source[1]


def test_parquet_holds_no_more_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(make_parquet_bytes(str(tmp_path)))
    monkeypatch.setattr("diptych.data.sources.parquet.HELD_BYTES", 10)
    for i in (0, 1, 2, 0):
        assert source[i].captions == CAPTIONS[i]
        assert len(source._held) == 1  # type: ignore[attr-defined]


def many(directory: Path, n: int = 150, name: str = "{:03d}") -> str:
    directory.mkdir()
    for i in range(n):
        stem = name.format(i)
        (directory / f"{stem}.png").write_bytes(picture(i))
        (directory / f"{stem}.txt").write_text(f"picture {i}")
    return f"folder:{directory}"


def parts(source: Source) -> dict[str, set[str]]:
    split = {name: source.split(name) for name in ("train", "validation", "test")}
    return {name: {p[i].captions[0] for i in range(len(p))} for name, p in split.items()}


def test_splits_are_disjoint_whole_and_stable_under_renaming(tmp_path: Path) -> None:
    first = open_source(many(tmp_path / "one"))
    found = parts(first)
    assert set.union(*found.values()) == {f"picture {i}" for i in range(150)}
    assert sum(len(p) for p in found.values()) == 150
    assert 100 <= len(found["train"]) <= 138 and len(found["validation"]) >= 5 and len(found["test"]) >= 5
    second = open_source(many(tmp_path / "two", name="renamed-{}"))
    assert parts(second) == found
    assert second.fingerprint() == first.fingerprint()
    assert second.split("test").fingerprint() != second.fingerprint()


def test_equal_images_are_always_in_the_same_part(tmp_path: Path) -> None:
    directory = tmp_path / "x"
    address = many(directory, 40)
    for i in range(40):
        (directory / f"copy{i:03d}.png").write_bytes(picture(i))
        (directory / f"copy{i:03d}.txt").write_text(f"picture {i}")
    source = open_source(address)
    found = parts(source)
    assert len(source) == 80 and sum(len(p) for p in found.values()) == 40
    assert sum(len(source.split(name)) for name in found) == 80


def test_split_by_address(tmp_path: Path) -> None:
    address = many(tmp_path / "x", 40)
    part = open_source(f"{address}?split=test")
    assert part.address == f"{address}?split=test"
    same = open_source(address).split("test")
    assert 0 < len(part) == len(same)
    assert [part[i].id for i in range(len(part))] == [same[i].id for i in range(len(part))]
    assert part.split("test") is part
    with pytest.raises(DiptychError, match="only the test part"):
        part.split("train")
    with pytest.raises(DiptychError, match="no split 'tset'; did you mean 'test'"):
        open_source(address).split("tset")


def test_hashes_are_kept_for_files_that_did_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = many(tmp_path / "x", 12)
    first = open_source(address).fingerprint()
    (tmp_path / "x" / "003.png").write_bytes(picture(1003) + b"longer")
    reads = []
    read = files.read
    monkeypatch.setattr(files, "read", lambda url, *rest: (reads.append(url), read(url, *rest))[1])
    assert open_source(address).fingerprint() != first
    assert [Path(r).name for r in reads] == ["003.png"]


def test_an_unwritable_cache_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", put(f"{tmp_path}/a-file", "x"))
    assert open_source(make_folder_txt(f"{tmp_path}/d")).fingerprint()


def test_braces() -> None:
    assert files.braces("s/{008..011}.tar") == ["s/008.tar", "s/009.tar", "s/010.tar", "s/011.tar"]
    assert files.braces("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    assert files.braces("{8..10}") == ["8", "9", "10"]
    assert files.braces("plain{x}") == ["plain{x}"]


def test_inspection_counts_and_names_what_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder_txt(str(tmp_path))
    put(f"{tmp_path}/again.png", PICTURES[0])
    put(f"{tmp_path}/again.txt", "the same red square")
    put(f"{tmp_path}/bad.jpg", "text")
    put(f"{tmp_path}/bad.txt", "a caption")
    put(f"{tmp_path}/alone.png", PICTURES[2])
    result = inspect(f"folder:{tmp_path}", None, progress=False)
    assert (result.items, result.looked_at, result.good, result.captions) == (5, 5, 4, 5)
    assert result.captions_per_item == {1: 3, 2: 1}
    assert result.width["median"] == 12 and result.height["max"] == 8 and result.aspect["min"] == 1.5
    assert result.words["min"] == 1 and result.word_counts[3] == 2 and result.frequent["red"] == 3
    assert result.duplicates == [["a.png", "again.png"]]
    assert {p.item: p.reason.split(" (")[0] for p in result.broken} == {"alone.png": "no caption", "bad.jpg": "not an image"}
    assert sum(result.splits.values()) == 5
    assert json.loads(json.dumps(result.to_dict()))["fingerprint"] == open_source(f"folder:{tmp_path}").fingerprint()
    print_inspection(result)
    printed = capsys.readouterr().out
    assert "bad.jpg" in printed and "5 items" in printed
    assert inspect(f"folder:{tmp_path}", limit=2, progress=False).looked_at == 2


def test_inspection_writes_its_numbers_and_a_contact_sheet(tmp_path: Path) -> None:
    pytest.importorskip("diptych.data.sheet")
    result = inspect(make_folder_txt(f"{tmp_path}/d"), tmp_path / "out", progress=False)
    assert json.loads((tmp_path / "out" / "inspection.json").read_text())["good"] == 3
    with Image.open(result.sheet) as sheet:
        assert sheet.width > 30
