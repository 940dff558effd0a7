"""Pictures that are alike but for their colours: near copies by pHash and by the colours of fields."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from diptych.curation.engine.apply import reduce, rows_of
from diptych.curation.operators.duplicates.operators import NearImage
from diptych.data.hashes.perceptual import colours, phashes


def outputs(operator: NearImage, columns: dict, size: int) -> dict[str, list]:
    rows = rows_of(columns)
    shards = [rows.slice(start, size) for start in range(0, rows.num_rows, size)]
    return pa.Table.from_batches(reduce(operator, shards)).to_pydict()


def bottle(colour: tuple[int, int, int], side: int = 160, light: float = 1.0) -> np.ndarray:
    image = Image.new("RGB", (160, 160), (235, 235, 230))
    draw = ImageDraw.Draw(image)
    draw.rectangle((60, 60, 100, 145), fill=colour)
    draw.rectangle((72, 25, 88, 60), fill=colour)
    draw.rectangle((0, 146, 159, 159), fill=(120, 110, 100))
    return np.clip(np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) * light, 0, 255).astype(np.uint8)


COLOURS = [(200, 60, 60), (40, 140, 50), (60, 90, 210), (150, 120, 40), (150, 60, 170), (40, 130, 140)]


@pytest.mark.parametrize("size", [60, 5])
def test_one_thing_in_several_colours_is_several_pictures(size: int) -> None:
    pictures = [bottle(c) for c in COLOURS] + [bottle(c, 120) for c in COLOURS] + [bottle(c, light=0.95) for c in COLOURS]
    columns = {"phash": phashes(pictures), "colours": pa.array([colours(p) for p in pictures], pa.binary(48))}
    plain = outputs(NearImage(distance=10), columns, size)["near_image_of"]
    assert sum(pointer is None for pointer in plain) < 6, "pHash alone takes some of them for copies"
    found = outputs(NearImage(distance=10, colour=0.08), columns, size)["near_image_of"]
    assert found == [None] * 6 + [0, 1, 2, 3, 4, 5] * 2


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_a_copy_is_of_one_hash_and_one_colour(rows: list[tuple[int, int]]) -> None:
    """Of each hash and colour the first stays, and the others point to it."""
    shown = [np.tile(np.array([80 * c, 40, 240 - 80 * c], np.uint8), 16).tobytes() for _, c in rows]
    columns = {"phash": np.array([0xFFFF << (16 * h) for h, _ in rows], np.uint64), "colours": pa.array(shown, pa.binary(48))}
    found = outputs(NearImage(distance=4, colour=0.08), columns, 7)["near_image_of"]
    assert found == [None if rows.index(row) == i else rows.index(row) for i, row in enumerate(rows)]


def test_colours_of_no_rows_are_compared_too() -> None:
    columns = {"phash": np.empty(0, np.uint64), "colours": pa.array([], pa.binary(48))}
    state = NearImage(colour=0.08).combine(iter([NearImage(colour=0.08).summarise(rows_of(columns))]))
    assert state.num_rows == 0
