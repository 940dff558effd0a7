"""Runs the command line in this process, and data of one's own to run it on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from diptych.cli import main

SMALL = ["--set", "stages.0.batch_size=16", "--set", "parts.vision.depth=1", "--set", "parts.text.depth=1"]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """``cli("train", "clip", …)`` → exit status and what was said. Works in an empty directory; a traceback fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["diptych", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        outcome = Outcome(code, *capsys.readouterr())
        assert "Traceback" not in outcome.all
        return outcome

    return run


def make_photos(root: Path, n: int = 60) -> str:
    """Two-coloured pictures that say so, as JPEG with a text beside each."""
    names = {
        "red": (200, 30, 30),
        "green": (20, 150, 40),
        "blue": (30, 50, 200),
        "yellow": (230, 210, 40),
        "white": (240, 240, 240),
    }
    colours = list(names)
    root.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        left, right = colours[i % 5], colours[i // 5 % 5]
        pixels = np.zeros((40, 60, 3), dtype=np.uint8)
        pixels[:, :30], pixels[:, 30:] = names[left], names[right]
        pixels[i % 40, 0] = 7  # no two files are the same
        Image.fromarray(pixels).save(root / f"p{i:03d}.png")
        (root / f"p{i:03d}.txt").write_text(f"{left} beside {right}, number {i}\n", encoding="utf-8")
    return f"folder:{root}"
