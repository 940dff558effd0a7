"""``diptych caption`` and ``diptych chat`` on clips: files, animated pictures and folders of frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli_fixture
from diptych.core.capabilities import Adapter
from video_fixture import number, painted, write

cli = cli_fixture.cli


class Counting(Adapter):
    """Writes the numbers that the frames of its clips, or its pictures, show."""

    capabilities = frozenset({"generate", "prompt"})

    def __init__(self, shows: str, talks: bool = False):
        self.name, self.shows = "counting", shows
        if talks:
            self.converse = self._converse

    def generate(self, images, prompt="", max_tokens=32, **decoding):
        return [" ".join(str(number(f)) for f in (i if np.ndim(i) == 4 else [i])) for i in images]

    def _converse(self, images, turns, max_tokens=32, **decoding):
        marks = sum(turn.text.count("<image>") for turn in turns)
        assert marks == len(images)
        return "|".join(self.generate(images))


@pytest.fixture
def shown(monkeypatch):
    """``shown(model)``: every address opens this model."""
    return lambda model: monkeypatch.setattr("diptych.inference.load.load", lambda address, device="auto": model)


def clips(root: Path) -> None:
    write(root / "films" / "a.mp4", n=20)
    Image.fromarray(painted(1)).save(
        root / "films" / "b.gif", save_all=True, append_images=[Image.fromarray(painted(k)) for k in (2, 3)], duration=100
    )
    (root / "films" / "c").mkdir()
    for k in (4, 5):
        Image.fromarray(painted(k)).save(root / "films" / "c" / f"{k}.png")
    Image.fromarray(painted(9)).save(root / "still.png")
    (root / "films" / "d.webm").write_bytes(b"no film")


def test_captions_of_clips(cli, shown, tmp_path):
    clips(tmp_path)
    shown(Counting("video"))
    found = cli("caption", "RUN", "films", "still.png", "--json")
    rows = {Path(r["image"]).name: r for r in json.loads(found.out)}
    assert rows["a.mp4"]["caption"] == " ".join(map(str, range(20)))
    assert rows["b.gif"]["caption"] == "1 2 3" and rows["c"]["caption"] == "4 5" and rows["still.png"]["caption"] == "9"
    assert "cannot be decoded" in rows["d.webm"]["problem"]
    assert cli("caption", "RUN", "films/c").out.strip() == "films/c\t4 5"
    found = cli("caption", "RUN", "--data", "scenes:clips?actions=all&size=32&clip_frames=16", "-n", 1).out
    assert len(found.split("\t")[1].split()) == 16, "clips of data, too"
    (tmp_path / "none").mkdir()
    assert "neither clips" in cli("caption", "RUN", "none").err


def test_a_clip_is_refused_by_a_model_of_pictures_with_the_remedy(cli, shown, tmp_path):
    clips(tmp_path)
    shown(Counting("image"))
    for place in ("films/a.mp4", "films/d.webm"):
        found = cli("caption", "RUN", place)
        assert found.code and "is a clip, and RUN reads pictures: train video-llava" in found.err
    assert cli("caption", "RUN", "films/c").out == "films/c/4.png\t4\nfilms/c/5.png\t5\n", "its frames are pictures"
    found = cli("caption", "RUN", "--data", "scenes:clips?size=32")
    assert "has clips, and the model reads pictures" in found.err and found.code
    assert "is a clip, and RUN reads one picture" in cli("chat", "RUN", "films/a.mp4", "-p", "what?").err
    assert cli("chat", "RUN", "still.png", "-p", "what?").out == "9\n"


def test_chat_about_clips(cli, shown, tmp_path):
    clips(tmp_path)
    shown(Counting("image", talks=True))
    found = cli("chat", "RUN", "films/a.mp4", "still.png", "films/b.gif", "-p", "what?", "--frames", 4)
    assert found.out == "2|7|12|17|9|1|2|3\n", "frames in the middle of four equal parts, each a picture"
    shown(Counting("video", talks=True))
    assert cli("chat", "RUN", "films/c", "films/b.gif", "-p", "what?").out == "4 5|1 2 3\n", "a clip is one thing"
    assert "cannot be decoded" in cli("chat", "RUN", "films/d.webm", "-p", "what?").err
    assert "no such file" in cli("chat", "RUN", "films/e.mp4", "-p", "what?").err
