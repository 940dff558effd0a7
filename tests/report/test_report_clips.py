"""Clips on report pages: strips of frames, and a player that steps through them, from the data opened again and from files."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.benchmarks.run import evaluate, save_items
from diptych.benchmarks.tasks import task
from diptych.core.capabilities import Adapter
from diptych.data.clips import Frames, strip
from diptych.data.sources import open_source
from diptych.report.drawing.films import film, film_of
from report_fixture import page_of
from video_fixture import number, painted, write


class Constant(Adapter):
    """A model of clips that finds all texts alike."""

    name, shows, key = "constant", "video", "k"
    capabilities = frozenset({"score"})

    def score(self, images: Any, texts: Any, pairs: Any = None) -> np.ndarray:
        return np.zeros((len(images), len(texts)) if pairs is None else len(pairs), dtype=np.float32)

    def frame_weights(self, clips: Any, texts: Any) -> list[np.ndarray]:
        """All on the fourth frame."""
        return [np.eye(len(c), dtype=np.float32)[3] for c in clips]


def frames_of(address: str, n: int) -> list[np.ndarray]:
    row = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))
    return np.split(row, n, axis=1)


def clip(n: int, step: float = 0.5) -> Frames:
    made = np.stack([painted(k) for k in range(n)]).view(Frames)
    made.seconds = [step * k for k in range(n)]
    return made


def test_a_strip_shows_frames_evenly_spread_in_their_order() -> None:
    row, numbers = strip(clip(16), 8)
    assert numbers == [1, 3, 5, 7, 9, 11, 13, 15] and [number(f) for f in np.split(row, 8, axis=1)] == numbers
    grid, _ = strip(clip(6), 8, columns=4)
    assert grid.shape == (2 * 48, 4 * 80, 3) and (grid[48:, 160:] == 128).all(), "what is left of the grid is grey"
    small, _ = strip(clip(4), height=24)
    assert small.shape == (24, 4 * 40, 3)


def test_the_element_of_a_clip() -> None:
    made = film_of(clip(16), weights=[1.0 if k == 3 else 0.0 for k in range(16)])
    assert (made.frames, made.step, round(made.ratio, 3)) == (8, 1.0, round(80 / 48, 3)), "two frames of half a second each"
    assert [number(f) for f in frames_of(made, 8)] == [1, 3, 5, 7, 9, 11, 13, 15]
    html = film(made, 'a "quoted" <b>text</b>')
    assert "<b>" not in html and 'alt="8 frames of a clip: a &quot;quoted&quot;' in html and "--n:8;--t:1s;--r:1.667" in html
    assert html.count("<i ") == 8 and "height:100%" in html and "0%, 100%, 0%" in html
    assert "weights" not in film(film_of(clip(4)), "x") and film_of(np.asarray(clip(4))).step == 0.25


def test_clips_of_the_data_are_on_the_page(tmp_path: Path) -> None:
    data = open_source("scenes:clips?actions=all&size=32&concepts=6&clip_frames=16").split("test")
    evaluate(Constant(), data, [task("actions?n=6"), task("temporal?n=2&skills=order")], tmp_path / "e", key="k")
    page = page_of(tmp_path / "e")
    sources = [v for tag, name, v in page.attributes if (tag, name) == ("img", "src")]
    films = [v for tag, name, v in page.attributes if tag == "button" and name == "style" and "--n:8" in v]
    assert len(films) >= 4 and len(films) == len(sources) and all(v.startswith("data:image/jpeg;base64,") for v in sources)
    assert all(f.shape[:2] == (32, 32) for f in frames_of(sources[0], 8))
    said = [v for tag, name, v in page.attributes if name == "aria-label" and v.startswith("Attention of the model")]
    assert said and set(said) == {"Attention of the model to these frames: 0%, 100%, 0%, 0%, 0%, 0%, 0%, 0%"}, "of actions alone"
    html = (tmp_path / "e" / "report.html").read_text()
    assert not re.search(r"src=\"https?:", html) and "@keyframes film" in html


def test_clips_of_published_files_are_on_the_page(tmp_path: Path) -> None:
    write(tmp_path / "video" / "a.mp4", n=8)
    rows = [{"video": "a.mp4", "question": "How?", "candidates": ["up", "down"], "answer": "up"}] * 3
    (tmp_path / "one.json").write_text(json.dumps(rows))
    evaluate(Constant(), None, [task(f"tvbench?file={tmp_path}/one.json")], tmp_path / "e", key="k")
    page = page_of(tmp_path / "e")
    (source, *_) = [v for tag, name, v in page.attributes if (tag, name) == ("img", "src")]
    assert [number(f) for f in frames_of(source, 8)] == list(range(8))


def test_items_of_a_comparison_on_clips(tmp_path: Path) -> None:
    save_items(open_source("scenes:clips?actions=all&size=32&concepts=6").split("test"), tmp_path, 3)
    rows = [json.loads(line) for line in (tmp_path / "retrieval.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(r["captions"] for r in rows)
    assert Image.open(tmp_path / rows[0]["image"]).size == (4 * 32, 2 * 32), "eight frames in two rows"
