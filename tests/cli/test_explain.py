"""``diptych explain``: pictures, folders, verdicts, pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diptych.benchmarks.maps import saved
from diptych.benchmarks.maps.verdict import measure
from diptych.cli import app
from diptych.core.errors import DiptychError
from diptych.report.drawing.heat import colours, frame, overlay
from diptych.report.pages.maps import rendered
from maps_fixture import colour_items, two_squares

MODEL = "maps_fixture:ColourModel"


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(saved, "measure", lambda maps, method, n, **_: measure(maps, method, items=colour_items(6)))
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(2):
        Image.fromarray(two_squares(seed)[0]).save(folder / f"{seed}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def called(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["explain", *arguments], catch_exceptions=False)


def test_a_picture_with_texts_is_drawn_and_judged(pictures: Path) -> None:
    _, ((colour, mask), _) = two_squares(0)
    found = json.loads(called(MODEL, str(pictures / "0.png"), f"something {colour}", "--json", "-m", "colour", "-m", "blob").stdout)
    at, middle = found["maps"]
    rows, columns = np.nonzero(mask)
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]  # cells of six pixels
    assert np.abs(np.array(at["box"]) - edges).max() <= 8 and at["method"] == "colour" and middle["method"] == "blob"
    assert [v["faithful"] for v in found["verdicts"]] == [True, False]
    page = Path("explain.html").read_text()
    assert page.count("<img") == 3 and "not faithful" in page and "faithful, score" in page and f"something {colour}" in page
    said = called(MODEL, str(pictures / "0.png"), f"something {colour}").stdout
    assert "colour: faithful" in said and "explain.html: 1 map" in said


def test_a_folder_all_methods_and_no_verdict(pictures: Path) -> None:
    result = called(MODEL, str(pictures), "red", "blue", "--method", "all", "--no-verdict", "--out", "all.html")
    assert "broken.png" in result.output and "all.html: 12 maps" in result.output
    assert "colour: not judged" in result.output and Path("all.html").read_text().count("<img") == 14
    called(MODEL, str(pictures / "1.png"), "red", "--out", "one.png", "--no-verdict")
    assert Image.open("one.png").size == (192, 192)
    alone = called(MODEL).stdout
    assert alone.startswith("colour: faithful") and "map\n" not in alone


def test_what_cannot_be_explained_is_said(pictures: Path) -> None:
    for arguments, message in (
        ((MODEL, str(pictures), "red", "--out", "x.jpg"), "html or .png"),
        ((MODEL, str(pictures), "red", "-m", "colors"), "no map 'colors'"),
        ((MODEL, str(pictures / "0.png")), "say what to look for"),
    ):
        with pytest.raises(DiptychError, match=message):
            called(*arguments)


def test_what_is_drawn() -> None:
    image, _ = two_squares(3)
    heat = np.zeros((48, 48))
    heat[:, :10] = 1
    drawn = overlay(image, heat, (4, 4, 40, 40))
    assert drawn.shape == (192, 192, 3) and drawn[100, 5].sum() > drawn[100, 100].sum()
    assert (drawn[16, 20:160] == 255).all() and np.ptp(
        overlay(image, np.zeros((48, 48)))[..., 0] - overlay(image, heat)[..., 0]
    ) > 0
    np.testing.assert_allclose(colours(np.array([0.0, 1.0])), [[20, 12, 54], [252, 240, 150]])
    tiny = np.zeros((8, 8, 3), dtype=np.uint8)
    frame(tiny, (2, 2, 4, 4))
    assert not tiny.any(), "a box that is smaller than its frame is not drawn"
    assert "<script>alert" not in rendered("<script>alert(1)</script>", [])
