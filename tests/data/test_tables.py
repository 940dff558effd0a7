"""Tables as people write them: every line that goes in comes out as a row or as a problem."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from pathlib import Path

import pytest

import sources_fixture
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from diptych.data.storage.separated import records
from sources_fixture import picture, problems, put, put_parquet

own_cache = sources_fixture.own_cache  # pytest finds it here
pytestmark = pytest.mark.usefixtures("own_cache")

LINES = ["a plain caption", '"Summer" by the lake', "another", '"unfinished title', "a third", '24" monitor', "the last"]


def put_rows(root: Path, texts: list[str], name: str, mark: str) -> str:
    for i in range(len(texts)):
        put(f"{root}/{i}.png", picture(i))
    return put(f"{root}/{name}", f"image{mark}caption\n" + "".join(f"{i}.png{mark}{text}\n" for i, text in enumerate(texts)))


@pytest.mark.parametrize(("name", "mark"), [("t.csv", ","), ("t.tsv", "\t"), ("s.csv", ";")])
@pytest.mark.parametrize("later", ["never", "in a text", "as a whole"])
def test_an_open_quote_costs_no_row(tmp_path: Path, name: str, mark: str, later: str) -> None:
    texts = [*LINES, {"never": "no quote", "in a text": 'he said "yes"', "as a whole": '"a text in quotes"'}[later]]
    source = open_source(put_rows(tmp_path, texts, name, mark))
    kept = [*texts[:-1], texts[-1].strip('"') if later == "as a whole" else texts[-1]]
    assert [source.captions(i) for i in range(len(source))] == [[text] for text in kept]
    assert list(problems(source)) == [f"{name}:5"] and "a quote opens and is not closed" in problems(source)[f"{name}:5"]


def test_a_quote_that_a_later_row_would_close(tmp_path: Path) -> None:
    source = open_source(put_rows(tmp_path, ["one", '"open', "two", 'a screen of 24"'], "t.csv", ","))
    assert [source.captions(i) for i in range(len(source))] == [["one"], ['"open'], ["two"], ['a screen of 24"']]
    assert list(problems(source)) == ["t.csv:3"]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_what_the_standard_library_writes_is_read_back(mark: str) -> None:
    numbers = random.Random(0)
    rows = [["".join(numbers.choice('ab",;\t| \n') for _ in range(numbers.randrange(12))) for _ in range(3)] for _ in range(300)]
    file = io.StringIO()
    csv.writer(file, delimiter=mark, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    text = file.getvalue()
    found = list(records(text.removesuffix("\n"), mark))
    assert [fields for _, fields, _ in found] == rows and not any(is_open for *_, is_open in found)
    assert [line for line, *_ in found] == [1 + sum(1 + "".join(row).count("\n") for row in rows[:i]) for i in range(len(rows))]


def test_a_space_before_a_quote_or_after_it_is_not_part_of_the_text(tmp_path: Path) -> None:
    source = open_source(put_rows(tmp_path, [' "a dog, running" ', '"two\nlines, one text"'], "t.csv", ","))
    assert [source.captions(i) for i in range(len(source))] == [["a dog, running"], ["two lines, one text"]]
    assert source.problems == []


LISTS = [
    """['a dog 0', "it's a dog 0"]""",  # Python's, as pandas writes it
    '["a dog 0", "it\'s a dog 0"]',  # JSON's
    """['a dog 0'\n "it's a dog 0"]""",  # numpy's
]


@pytest.mark.parametrize("text", LISTS)
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_a_list_written_as_a_text_is_several_captions(tmp_path: Path, name: str, text: str) -> None:
    source = open_source(put_table(tmp_path, name, [text, "[sic] a cat", "[2019]" if name != "t.csv" else "a cat [2019]"]))
    assert [source.captions(i) for i in range(3)] == [
        ["a dog 0", "it's a dog 0"],
        ["[sic] a cat"],
        ["[2019]" if name != "t.csv" else "a cat [2019]"],
    ]
    assert source.problems == []


def put_table(root: Path, name: str, captions: list, column: str = "captions") -> str:
    for i in range(len(captions)):
        put(f"{root}/{i}.png", picture(i))
    paths = [f"{i}.png" for i in range(len(captions))]
    if name.endswith(".parquet"):
        return put_parquet(f"{root}/{name}", {"image": paths, column: captions})
    if name.endswith(".jsonl"):
        return put(
            f"{root}/{name}", "".join(json.dumps({"image": p, column: c}) + "\n" for p, c in zip(paths, captions, strict=True))
        )
    file = io.StringIO()
    csv.writer(file).writerows([["image", column], *zip(paths, captions, strict=True)])
    return put(f"{root}/{name}", file.getvalue())


STRUCTURES = [
    ({"caption": "cap", "id": 3}, "an object with the keys caption, id.*\\?caption=COLUMN.caption"),
    ({"en": "cap", "de": "Bild"}, "an object with the keys en, de"),
    ([{"raw": "cap", "tokens": ["cap"]}], "an object with the keys raw, tokens"),
    ([["cap"]], "given as list"),
    (7, "given as int 7"),
    ([1.5], "given as float 1.5"),
    (True, "given as bool"),
]


@pytest.mark.parametrize(("value", "reason"), STRUCTURES)
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, value: object, reason: str) -> None:
    source = open_source(put_table(tmp_path, "t.jsonl", ["kept", value]))
    assert [source.captions(i) for i in range(len(source))] == [["kept"]]
    assert re.search(reason, problems(source)["1.png"])
    put(f"{tmp_path}/photos/a.png", picture(1))
    put(f"{tmp_path}/photos/a.json", json.dumps({"caption": value}))
    with pytest.raises(DiptychError, match=f"(?s)empty data set.*{reason}"):
        open_source(f"folder:{tmp_path}/photos")
    if isinstance(value, (dict, list)) and value != [1.5]:
        kept = open_source(put_table(tmp_path, "t.csv", ["kept", str(value)]))  # as pandas writes it
        assert len(kept) == 1 and re.search(reason, problems(kept)["1.png"])
    whole = put_parquet(f"{tmp_path}/t.parquet", {"image": ["0.png"], "captions": [value]})
    with pytest.raises(DiptychError, match=f"(?s)empty data set.*{reason}"):
        open_source(whole)


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_the_key_of_an_object_can_be_named(tmp_path: Path, name: str) -> None:
    url = put_table(tmp_path, name, [[{"raw": "one", "n": 1}, {"raw": "two", "n": 2}], [{"raw": "three", "n": 3}]])
    source = open_source(f"{url}?caption=captions.raw")
    assert [source.captions(i) for i in range(2)] == [["one", "two"], ["three"]]
    with pytest.raises(DiptychError, match="no caption column 'caption.raw'; did you mean"):
        open_source(f"{url}?caption=caption.raw")


def test_classes_may_be_numbers_and_documents_and_phrases_are_texts(tmp_path: Path) -> None:
    assert open_source("classes:" + put_table(tmp_path, "t.jsonl", [3, 4], "label")).classes == ["3", "4"]
    row = {"image": "0.png", "regions": [{"box": [0, 0, 5, 5], "label": 3}, {"box": [0, 0, 5, 5], "label": 3, "name": "a dog"}]}
    source = open_source("regions:" + put(f"{tmp_path}/r.jsonl", json.dumps(row)))
    assert [r.phrase for r in source[0].fields["regions"]] == ["a dog"]
    assert problems(source) == {"r.jsonl:1, region 1": "no phrase: 'label' holds int; expected a text"}
    rows = [{"images": [None], "texts": [{"en": "x"}]}, {"images": [None], "texts": ["kept"]}]
    source = open_source("documents:" + put(f"{tmp_path}/d.jsonl", "\n".join(map(json.dumps, rows))))
    assert len(source) == 1 and list(problems(source).values()) == ["a text given as dict; expected a text"]
    sentences = [{"raw": {"en": "x"}}, {"raw": "kept"}, {"tokens": ["kept", "too"]}]
    content = {"images": [{"filename": "0.png", "sentences": sentences}]}
    source = open_source("karpathy:" + put(f"{tmp_path}/k.json", json.dumps(content)))
    assert source[0].captions == ["kept", "kept too"] and "sentence 0" in problems(source)["0.png"]
