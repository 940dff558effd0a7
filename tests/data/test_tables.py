"""Tables as people write them: every line that goes in comes out as a row or as a problem."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest

import sources_fixture
from diptych.data.sources import open_source
from diptych.data.storage.separated import records
from sources_fixture import picture, problems, put

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
