"""``documents:``: OBELICS, MMC4, lists of parts, Markdown."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diptych.core.errors import DiptychError
from diptych.data.inspect import inspect, print_inspection
from diptych.data.loader import loader_for
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.sources.documents import markdown_parts
from diptych.data.text import Tokenizer
from sources_fixture import own_cache, picture, problems, put, root  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("own_cache")

ROWS = [
    {"images": ["a.png", None, "b.png", None], "texts": [None, "first  text", None, "second\ntext"], "url": "http://x"},
    {"text_list": ["one", "two"], "image_info": [{"image_name": "b.png", "matched_text_index": 1}, {"image_name": "a.png", "matched_text_index": 0}]},
    {"id": "mine", "parts": [{"text": "begin"}, {"image": "a.png"}, {"text": "end"}]},
]  # fmt: skip
PARTS = [["I", "first text", "I", "second text"], ["I", "one", "I", "two"], ["begin", "I", "end"]]


def images(place: str) -> None:
    for name in "ab":
        put(f"{place}/img/{name}.png", picture(ord(name)))


def jsonl(place: str, rows=ROWS) -> str:
    images(place)
    put(f"{place}/docs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return f"documents:{place}/docs.jsonl?images=img"


def shape(sample) -> list[str]:
    return [part if isinstance(part, str) else "I" for part in sample.fields["document"].parts]


def test_three_layouts_of_rows(root):  # noqa: F811
    source = open_source(jsonl(root))
    found = [source[i] for i in range(len(source))]
    assert [shape(s) for s in found] == PARTS and [s.id for s in found] == ["docs.jsonl:1", "docs.jsonl:2", "mine"]
    assert [s.captions for s in found] == [["first text second text"], ["one two"], ["begin end"]]
    assert [source.captions(i) for i in range(3)] == [s.captions for s in found] and not source.problems
    assert found[0].extra == {"url": "http://x"} and source.fields == ("document", "text")
    mmc4 = [part for part in found[1].fields["document"].parts if not isinstance(part, str)]
    obelics = [part for part in found[0].fields["document"].parts if not isinstance(part, str)]
    assert (mmc4[0] == obelics[0]).all() and (mmc4[1] == obelics[1]).all(), "an image stands before its text"


def test_parquet_with_bytes(tmp_path):
    rows = {
        "images": [[{"bytes": picture(1), "path": None}, None], [None, {"bytes": picture(2), "path": None}]],
        "texts": [[None, "after"], ["before", None]],
    }
    file = io.BytesIO()
    pq.write_table(pa.table(rows), file)
    put(f"{tmp_path}/d.parquet", file.getvalue())
    source = open_source(f"documents:{tmp_path}/d.parquet")
    assert [shape(source[i]) for i in range(2)] == [["I", "after"], ["before", "I"]]
    assert len(set(source.digests())) == 2 and sum(len(source.split(n)) for n in ("train", "validation", "test")) == 2


def test_what_is_missing_or_broken(tmp_path):
    rows = [
        {"parts": [{"text": "kept"}, {"image": "gone.png"}]},
        {"parts": [{"image": "gone.png"}]},
        {"images": ["a.png"], "texts": ["x", "y"]},
        {"text_list": ["x"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]},
        {"parts": [{"text": "x", "image": "a.png"}]},
        {"words": "none"},
        {"parts": [{"text": "half a picture"}, {"image": "cut.png"}]},
        {"parts": [{"image": "a.png"}]},
        {"text_list": ["x"], "image_info": 5},
    ]
    put(f"{tmp_path}/img/cut.png", picture(5)[:40])
    source = open_source(jsonl(str(tmp_path), rows))
    assert len(source) == 3 and shape(source[0]) == ["kept"] and shape(source[2]) == ["I"] and source[2].captions == []
    with pytest.raises(BrokenItem, match=r"docs.jsonl:7: image 1: not an image"):
        source[1]
    named: dict[str, list[str]] = {}
    for p in source.problems:
        named.setdefault(p.item.removeprefix("docs.jsonl:"), []).append(p.reason)
    assert set(named) == {"1", "2", "3", "4", "5", "6", "9"} and len(named["2"]) == 2
    assert named["9"] == ["image_info given as int; expected a list of {image_name, matched_text_index}"]
    assert "no file" in named["1"][0] and "parallel" in named["3"][0] and "matched_text_index 1, of 1 texts" in named["4"][0]
    assert len(source) + len(set(named) - {"1"}) == len(rows), "a document stays if anything is left"
    with pytest.raises(DiptychError, match="found no documents"):
        open_source(jsonl(f"{tmp_path}/none", [{"words": "none"}]))


def test_ids_are_unique(tmp_path):
    names = ["a", "a", "a#2", "a"]
    source = open_source(jsonl(str(tmp_path), [{"id": name, "parts": [{"text": f"x{i}"}]} for i, name in enumerate(names)]))
    ids = [source[i].id for i in range(4)]
    assert ids[:2] == ["a", "a#2"] and len(set(ids)) == 4


def test_the_kept_hash_of_a_document_goes_with_the_order_of_its_parts(tmp_path):
    parts = [{"text": "x"}, {"image": "a.png"}, {"image": "b.png"}]
    images(str(tmp_path))
    kept = set()
    for order in ((0, 1, 2), (1, 0, 2), (0, 2, 1)):  # the file is edited between runs, its images are not
        put(f"{tmp_path}/docs.jsonl", json.dumps({"parts": [parts[i] for i in order]}))
        kept |= set(open_source(f"documents:{tmp_path}/docs.jsonl?images=img").digests())
    assert len(kept) == 3


def test_markdown(tmp_path):
    images(str(tmp_path))
    put(f"{tmp_path}/note.md", '# A title\n\nSome text.\n\n![a fish](img/a.png "big")\n\nmore ![](<img/b.png>) end')
    put(f"{tmp_path}/sub/other.md", "![x](../img/a%2Epng)")
    put(f"{tmp_path}/empty.md", "\n")
    source = open_source(f"documents:{tmp_path}")
    found = {source[i].id: source[i] for i in range(len(source))}
    assert shape(found["note.md"]) == ["# A title Some text.", "I", "more", "I", "end"] and found["note.md"].extra == {
        "alt": ["a fish", ""]
    }
    assert shape(found["sub/other.md"]) == ["I"] and problems(source) == {"empty.md": "no text and no image is left"}
    assert markdown_parts("a ![b](c d.png) e")[0][1] == ("image", "c d.png")


def test_splits_mixtures_batches_and_inspection(tmp_path, capsys):
    rows = [
        {"parts": [{"text": f"document {i}"}, {"image": "ab"[i % 2] + ".png"}, {"text": f"the {i}th"}][: 2 + i % 2]}
        for i in range(30)
    ]
    source = open_source(jsonl(str(tmp_path), rows))
    parts = {name: source.split(name) for name in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 30 and len(parts["train"]) > 15
    assert source.fingerprint() == open_source(source.address).fingerprint() != parts["train"].fingerprint()
    mixture = open_source(f"mix:1*{source.address}+1*scenes:albums?length=10")
    assert mixture.fields == ("document", "text", "negatives") and mixture.captions(1) == ["document 1 the 1th"]
    tokenizer = Tokenizer.train(["document the 0 1 2 3th"], 400, 12)
    batch = loader_for(source, tokenizer, 16, 6, fields=("document",)).rows(0, 0, 6)["document"]
    assert int((batch.kind == 1).sum()) == 6 == len(batch.images) and len(batch.texts) == int((batch.kind == 0).sum())
    found = inspect(source.address, tmp_path / "out", progress=False)
    assert found.document_texts["max"] == 2 and found.document_images == dict.fromkeys(found.document_images, 1) and found.sheet
    print_inspection(found)
    assert "texts of a document" in capsys.readouterr().out
