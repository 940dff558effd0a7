"""The operators' frame: declared columns, rows that fail alone, randomness by hash."""

from __future__ import annotations

import gc
import io
import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from diptych.core.errors import DiptychError
from diptych.curation.engine.apply import apply, reduce, rows_of
from diptych.curation.operators.base import Operator, Reduce, RowError, arrays, pixels_of, uniform
from diptych.curation.operators.images.size import ImageSize
from diptych.curation.operators.text.length import TextLength


def jpeg(width: int, height: int, turn: int | None = None) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    if turn:
        exif[0x0112] = turn
    Image.new("RGB", (width, height)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_text_length_counts_characters_and_words_as_python_does():
    texts = ["", "  ", "one", " two  words ", "a\tb\nc", "日本語 テキスト", "né\u0301e 🐻"]
    found = apply(TextLength(), rows_of({"text": texts})).to_pydict()
    assert found["words"] == [len(t.split()) for t in texts]
    assert found["characters"] == [len(t) for t in texts]


def test_image_size_reads_the_header_and_minds_exif():
    files = [jpeg(30, 20), jpeg(30, 20, turn=6), b"no image", b""]
    found = apply(ImageSize(), rows_of({"image": pa.array(files, pa.binary())})).to_pydict()
    assert found["width"] == [30, 20, None, None] and found["height"] == [20, 30, None, None]
    assert found["aspect"][:2] == [1.5, 1.5] and found["shorter_side"][:2] == [20, 20]
    assert found["file_bytes"][0] == len(files[0])
    assert found["error"][:2] == [None, None] and all("image" in reason for reason in found["error"][2:])


@dataclass(frozen=True, kw_only=True)
class Fussy(Operator):
    name = "fussy"
    inputs = ("text",)
    outputs = {"n": pa.int32()}  # noqa: RUF012

    def compute(self, batch):
        values = batch["text"].to_pylist()
        if "bad" in values:
            raise RowError("it is bad")
        if "worse" in values:
            raise KeyError("worse")
        return {"n": [len(v) for v in values]}


def test_one_bad_row_costs_no_other_row():
    texts = [f"row {i}" for i in range(50)]
    texts[7], texts[31] = "bad", "worse"
    found = apply(Fussy(), rows_of({"text": texts})).to_pydict()
    assert found["n"] == [None if t in ("bad", "worse") else len(t) for t in texts]
    assert found["error"][7] == "it is bad" and found["error"][31] == "KeyError: 'worse'"
    assert sum(e is not None for e in found["error"]) == 2


def test_an_operator_that_breaks_its_declaration_is_named():
    @dataclass(frozen=True, kw_only=True)
    class Short(Fussy):
        name = "short"

        def compute(self, batch):
            return {"n": [1]}

    with pytest.raises(DiptychError, match="'short' returned 1 value of 'n' for 3 rows"):
        apply(Short(), rows_of({"text": ["a", "b", "c"]}))


@dataclass(frozen=True, kw_only=True)
class Share(Reduce):
    """Of all characters, those in this row."""

    name = "share"
    inputs = ("text",)
    outputs = {"share": pa.float64()}  # noqa: RUF012

    def summarise(self, batch):
        return pa.table({"n": [sum(map(len, batch["text"].to_pylist()))]})

    def combine(self, summaries):
        return pa.table({"n": [sum(s["n"][0].as_py() for s in summaries)]})

    def decide(self, batch, state):
        return {"share": [len(t) / state["n"][0].as_py() for t in batch["text"].to_pylist()]}


def test_a_reduce_does_not_depend_on_how_rows_are_cut():
    rows = rows_of({"text": ["a", "bb", "ccc", "dddd"]})
    whole = reduce(Share(), [rows])[0]["share"].to_pylist()
    cut = [v for part in reduce(Share(), [rows.slice(0, 1), rows.slice(1, 3)]) for v in part["share"].to_pylist()]
    assert whole == cut == [0.1, 0.2, 0.3, 0.4]


def test_pixels_go_into_a_column_and_back():
    pictures = [np.random.default_rng(i).integers(0, 256, (3 + i, 5, 3), dtype=np.uint8) for i in range(4)]
    column = pixels_of(pictures)
    for start in (0, 1):
        for picture, view in zip(pictures[start:], arrays(column.slice(start)), strict=True):
            np.testing.assert_array_equal(picture, view)


def test_uniform_is_uniform_and_its_streams_are_independent():
    hashes = np.arange(200_000, dtype=np.uint64)  # the mixer must do the work
    a, b = uniform(hashes, "a"), uniform(hashes, "b")
    for u in (a, b):
        assert u.min() >= 0 and u.max() < 1
        counts = np.histogram(u, 20, (0, 1))[0]
        assert ((counts - 10_000) ** 2 / 10_000).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(a))
    np.testing.assert_array_equal(uniform(hashes[::-1], "a")[::-1], a)


def test_pictures_in_a_column_are_given_back():
    """A batch that is done with must not stay in memory, or a run grows with its rows."""
    picture = np.full((300, 300, 3), 7, np.uint8)
    references = sys.getrefcount(picture)
    column = pixels_of([picture] * 20)
    assert np.array_equal(arrays(column)[19], picture)
    del column
    gc.collect()
    assert sys.getrefcount(picture) == references
