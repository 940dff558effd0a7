"""What docs/serving.md says to type works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.serve.app import create_app
from diptych.serve.settings import Settings
from serve_fixture import Colours, Parrot, StandIn, picture, running

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def address():
    model, parrot = Colours(), Parrot()
    with running(create_app(StandIn(model), {"clip": model, "llava-instruct": parrot}, Settings())) as found:
        yield found


def test_the_python(address, tmp_path, monkeypatch, capsys) -> None:
    Image.fromarray(np.asarray(picture("red", "circle"))).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code.replace("http://127.0.0.1:8000", address), str(PAGE), "exec"), {})
    said = capsys.readouterr().out
    assert said.startswith("2 16 5\n") and "what is on the left?" in said and said.endswith("tokens\n")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_shell(address) -> None:
    (lines,) = blocks("bash")
    for line in lines.strip().splitlines():
        said = subprocess.run(
            line.replace("http://127.0.0.1:8000", address), shell=True, capture_output=True, text=True, timeout=60
        ).stdout
        if "/metrics" in line:
            assert "diptych_requests_total" in said
        else:
            assert "error" not in json.loads(said), line


def test_the_limits_are_those_of_the_settings() -> None:
    text, settings = PAGE.read_text(encoding="utf-8"), Settings()
    for option, shown in (("max-body", f"{settings.max_body >> 20} MB"), ("max-pixels", f"{settings.max_pixels // 10**6} megapixels"),
                          ("max-batch", f"{settings.max_batch} inputs"), ("max-queue", f"{settings.max_queue:,} inputs"),
                          ("max-waiting", f"{settings.max_waiting} requests"), ("max-tokens", f"{settings.max_tokens:,} tokens"),
                          ("timeout", f"{settings.timeout:g} s"), ("chats", f"{settings.chats} answers")):  # fmt: skip
        assert f"| `--{option}` | {shown}" in text
    fixed = f"{settings.body_timeout:g} s for a body to arrive (408), 64 levels of JSON, {settings.max_images} pictures of a conversation, {settings.max_clips} clips of at most 10 minutes, of which 32 frames are read, {settings.max_text:,} characters of a text, {settings.max_results:,} hits"
    assert fixed in text
