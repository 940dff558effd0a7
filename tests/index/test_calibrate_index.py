"""The cut-off of an index: against packaged texts, and against captioned pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from diptych.index.index import Index
from diptych.index.judging import calibration
from diptych.index.query import Query
from index_fixture import COLOURS, Pixels, fill, made, put

NAMES = ("red", "green", "blue", "yellow")


def coloured(folder: Path, n: int, colours: tuple[str, ...]) -> str:
    """Pictures of one colour each, a little different, with captions."""
    rows = []
    for i in range(n):
        rng, colour = np.random.default_rng(i), colours[i % len(colours)]
        picture = np.clip(np.array(COLOURS[colour]) + rng.integers(-30, 31, (24, 32, 3)) + rng.integers(-40, 41, 3), 0, 255)
        rows.append({"image": put(folder / f"{i}.png", picture.astype(np.uint8)).name, "caption": f"something {colour}, {i}"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return f"jsonl:{folder / 'rows.jsonl'}"


def test_an_index_is_calibrated_against_packaged_texts(tmp_path: Path) -> None:
    with made(tmp_path / "i", fill(tmp_path / "photos", 12)) as index:
        known = calibration(index)
        assert known is not None and not known.background.two_sided and known.total == 12
        answer = index.search(Query(texts=("an unrelated thing",)), Pixels())
        assert all(h.relevance is not None and 0 <= h.relevance <= 1 for h in answer.hits)


def test_an_index_is_calibrated_against_captioned_pictures(tmp_path: Path) -> None:
    address = coloured(tmp_path / "elsewhere", 60, NAMES)
    coloured(tmp_path / "photos", 10, ("red", "blue"))
    with made(tmp_path / "i", f"folder:{tmp_path / 'photos'}", background=address) as index:
        known = calibration(index)
        assert known is not None and known.background.two_sided and len(known.background.pictures) == 60
        best = {}
        for colour in NAMES:
            answer = index.search(Query(texts=(f"something {colour}",)), Pixels())
            best[colour] = max(h.relevance or 0 for h in answer.hits)
            if colour in ("green", "yellow"):
                assert answer.nothing and answer.reason.startswith("nothing here looks like that")
        assert min(best["red"], best["blue"]) > 0.8 and max(best["green"], best["yellow"]) < 0.3
    with Index.open(tmp_path / "i") as again:  # the background is part of what is saved
        held = calibration(again)
        assert held is not None and np.array_equal(held.background.absent, known.background.absent, equal_nan=True)
