"""Every format of data, in good order."""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sources_fixture
from diptych.core.errors import DiptychError
from diptych.data.inspect import inspect, print_inspection
from diptych.data.source import Source
from diptych.data.sources import open_source
from diptych.data.storage import files
from sources_fixture import (
    CAPTIONS,
    MAKERS,
    PICTURES,
    make_coco,
    make_csv,
    make_folder_json,
    make_folder_txt,
    make_parquet_bytes,
    make_tsv,
    make_wds,
    picture,
    problems,
    put,
    put_images,
    put_parquet,
)

own_cache, root = sources_fixture.own_cache, sources_fixture.root  # pytest finds them here
pytestmark = pytest.mark.usefixtures("own_cache")


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
    with pytest.raises(DiptychError, match="does not have address"):
        open_source("pathlib:Path:x")


def test_rows_of_the_same_image_are_one_sample(tmp_path: Path) -> None:
    put_images(str(tmp_path))
    put(f"{tmp_path}/t.csv", "image,caption\na.png,one\nc 3.png,x\n./a.png,two\na.png,one\n")
    source = open_source(f"csv:{tmp_path}/t.csv")
    assert [source[i].captions for i in range(len(source))] == [["one", "two"], ["x"]]


def test_equal_paths_in_files_of_unlike_directories_are_unlike_samples(root: str) -> None:
    for i, part in enumerate("xy"):
        put(f"{root}/{part}/a.png", picture(i))
        put(f"{root}/shared.png", picture(9))
        put(f"{root}/{part}/t.csv", f"image,caption,label\na.png,of {part},{part}\n../shared.png,shared {part},s\n,none,s\n")
        rows = [
            {"image": name, "caption": f"of {part}", "box": [0, 0, 2, 2], "phrase": part} for name in ("a.png", "../shared.png")
        ]
        put(f"{root}/{part}/r.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        put_parquet(f"{root}/{part}/p.parquet", {"image": ["a.png"], "caption": [f"of {part}"]})
        put(f"{root}/{part}/d.jsonl", json.dumps({"parts": [{"image": "a.png"}]}))
    for address in ("csv:{}/*/t.csv", "classes:{}/*/t.csv", "regions:{}/*/r.jsonl", "parquet:{}/*/p.parquet"):
        source = open_source(address.format(root))
        found = {source[i].id: source[i] for i in range(len(source))}
        shared = found.pop("shared.png", None)
        assert list(found) == ["x/a.png", "y/a.png"] and len(source) == len(found) + (shared is not None)
        assert (shared is None) == address.startswith("parquet") and (shared is None or len(shared.captions) in (1, 2))
        assert (found["x/a.png"].image != found["y/a.png"].image).any()
    assert set(problems(open_source(f"csv:{root}/*/t.csv"))) == {"x/t.csv:4", "y/t.csv:4"}
    one = open_source(f"csv:{root}/x/t.csv")
    assert [one[i].id for i in range(2)] == ["a.png", "../shared.png"], "names are as they stand in a file that is alone"
    there = open_source(f"regions:{root}/*/r.jsonl?images={root}/x")
    assert [there[i].id for i in range(len(there))] == ["a.png", "../shared.png"] and len(there[0].fields["regions"]) == 2
    documents = open_source(f"documents:{root}/*/d.jsonl")
    assert [documents[i].id for i in range(2)] == ["x/d.jsonl:1", "y/d.jsonl:1"]


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


def test_openmoji_needs_no_files() -> None:
    source = open_source("openmoji:noflags?size=32")
    assert isinstance(source, Source) and source.problems == []
    samples = {s.captions[0]: s for s in (source[i] for i in range(40))}
    assert 1500 < len(source) < 1800 and len(samples) == 40
    assert all(s.image is not None and s.image.shape == (32, 32, 3) for s in samples.values())
    assert len({s.image.tobytes() for s in samples.values()}) == 40  # no drawing twice
    for _ in range(2):  # the second time from the cache of hashes
        parts = {name: len(open_source(f"openmoji:noflags?size=32&split={name}")) for name in ("train", "validation", "test")}
        assert sum(parts.values()) == len(source) and min(parts.values()) > 120, parts
    assert len(open_source("openmoji:all?size=32")) > len(source) + 200
    with pytest.raises(DiptychError, match="there is openmoji:all and openmoji:noflags"):
        open_source("openmoji:animals")
    with pytest.raises(DiptychError, match="size"):
        open_source("openmoji:all?size=4")
