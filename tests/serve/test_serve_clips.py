"""Clips in conversations with a server: data URLs of files and of frames, what a model is shown, limits, and hostile files."""

from __future__ import annotations

import base64
import io
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from diptych.core.capabilities import Adapter
from diptych.core.sample import Turn
from diptych.serve.app import create_app
from diptych.serve.conversation import Shown
from diptych.serve.errors import ApiError
from diptych.serve.pictures.clips import clip_of, for_model
from diptych.serve.settings import Settings
from serve_fixture import Asker, Captioner, Parrot, picture, png, running, url_of
from video_fixture import number, painted, sound, write


class Watcher(Adapter):
    """A model of clips that writes the numbers that their frames show."""

    name, shows = "watcher", "video"
    capabilities = frozenset({"generate"})

    def generate(self, images: Any, prompt: Any = "", max_tokens: int = 32, **decoding: Any) -> list[str]:
        return [" ".join(str(number(f)) for f in (i if i.ndim == 4 else [i])) for i in images]


SMALL = Settings(max_frames=4, max_pixels=20_000, clip_seconds=30, clip_timeout=20, max_images=10)


@pytest.fixture(scope="module")
def address():
    with running(
        create_app(None, {"watcher": Watcher(), "parrot": Parrot(), "asker": Asker(), "captioner": Captioner()}, SMALL)
    ) as found:
        yield found


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> dict[str, str]:
    """Data URLs of clips."""
    root = tmp_path_factory.mktemp("films")
    made = {
        "mp4": Path(write(root / "a.mp4", n=12)),
        "webm": Path(write(root / "a.webm", n=8)),
        "long": Path(write(root / "l.mp4", n=40, fps=1)),
    }
    Image.fromarray(painted(1)).save(root / "a.gif", save_all=True, append_images=[Image.fromarray(painted(k)) for k in (2, 3)])
    sound(root / "s.mp4")
    (root / "cut.mp4").write_bytes(made["mp4"].read_bytes()[: made["mp4"].stat().st_size // 2])
    (root / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{made['mp4']}\n#EXT-X-ENDLIST\n")
    (root / "concat.txt").write_text(f"ffconcat version 1.0\nfile {made['mp4']}\n")
    made |= {
        "gif": root / "a.gif",
        "sound": root / "s.mp4",
        "cut": root / "cut.mp4",
        "list": root / "list.m3u8",
        "concat": root / "concat.txt",
    }
    return {name: url_of(path.read_bytes(), "video/mp4") for name, path in made.items()}


def ask(address: str, model: str, *parts: Any) -> str:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": list(parts)}])
    return answer.choices[0].message.content


def clip(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def test_a_model_of_clips_sees_the_frames_in_order(address, films) -> None:
    assert ask(address, "watcher", clip(films["mp4"])) == "1 4 7 10", "four of twelve, each the middle of its part"
    assert ask(address, "watcher", clip(films["webm"])) == "1 3 5 7" and ask(address, "watcher", clip(films["gif"])) == "1 2 3"
    still = {"type": "image_url", "image_url": {"url": url_of(png(painted(9)))}}
    assert ask(address, "watcher", still) == "9", "a picture is a clip of one frame"
    jpegs = []
    for k in (5, 6):
        file = io.BytesIO()
        Image.fromarray(painted(k)).save(file, "JPEG", quality=95)
        jpegs.append(base64.b64encode(file.getvalue()).decode())
    assert ask(address, "watcher", clip(f"data:video/jpeg;base64,{','.join(jpegs)}")) == "5 6", "as vLLM takes frames"


def test_a_model_of_pictures_that_talks_sees_frames_as_pictures(address, films) -> None:
    still = {"type": "image_url", "image_url": {"url": url_of(png(picture("red", "circle")))}}
    said = ask(address, "parrot", still, clip(films["gif"]), {"type": "text", "text": "what?"})
    assert "saw 128x96, 80x48, 80x48, 80x48 read" in said and "[picture] [picture][picture][picture] what?" in said
    turns, images = for_model(
        Parrot(), [Turn("user", "a<image>b<image>")], [np.zeros((2, 2, 3), np.uint8), np.zeros((12, 2, 2, 3), np.uint8)], SMALL
    )
    assert turns[0].text == "a<image>b" + "<image>" * 8 and len(images) == 9, "at most eight frames"
    with pytest.raises(ApiError, match="16 pictures with the frames of clips; at most 10"):
        for_model(Parrot(), [Turn("user", "<image><image>")], [np.zeros((12, 2, 2, 3), np.uint8)] * 2, SMALL)


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("mp4", "asker", "reads one picture, and this is a clip"),
        ("mp4", "captioner", "reads one picture, and this is a clip"),
        ("long", "watcher", "40 s long; the limit is 30 s"),
        ("sound", "watcher", "holds no video stream"),
        ("cut", "watcher", "the clip cannot be used"),
        ("list", "watcher", "not MP4, MOV, WebM, Matroska, AVI, GIF or WebP"),
        ("concat", "watcher", "not MP4, MOV, WebM, Matroska, AVI, GIF or WebP"),
    ],
)
def test_clips_that_are_refused(address, films, name, model, message) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        ask(address, model, clip(films[name]))
    assert httpx.get(f"{address}/health").status_code == 200


def test_what_is_no_clip(address, films) -> None:
    for parts, message in (
        ([clip("https://example.org/a.mp4")], "clips are not fetched"),
        ([{"type": "video_url", "video_url": 3}], "expected {'type': 'video_url'"),
        ([clip(films["gif"])] * 3, "3 clips; at most 2"),
        ([clip("data:video/mp4;base64,????")], "not base64"),
        ([{"type": "audio", "audio": "x"}], "expected text, image_url or video_url"),
    ):
        with pytest.raises(openai.BadRequestError, match=message.replace("{", r"\{")):
            ask(address, "watcher", *parts)


def test_a_clip_that_takes_too_long_or_too_many_pixels_ends_alone(films) -> None:
    begun = time.monotonic()
    with pytest.raises(ApiError, match=r"not be decoded within 0.01 s"):
        clip_of(films["mp4"], _with(clip_timeout=0.01))
    assert time.monotonic() - begun < 10
    with pytest.raises(ApiError, match="80 × 48 pixels; the limit is 1,000"):
        clip_of(films["webm"], _with(max_pixels=1000))
    with pytest.raises(ApiError, match="80 × 48 pixels; the limit is 1,000"):
        clip_of(films["gif"], _with(max_pixels=1000))
    found = clip_of(films["mp4"], _with(max_frames=2))
    assert [number(f) for f in found] == [3, 9] and found.seconds == [0.3, 0.9] and not Shown("", "", False).clip


def _with(**limits: Any) -> Any:
    """Limits that a server would not start with, too."""
    settings = Settings()
    for name, value in limits.items():
        object.__setattr__(settings, name, value)
    return settings


def test_what_the_pages_are_told(address) -> None:
    models = {m["id"]: m["can"] for m in httpx.get(f"{address}/v1/index").json()["models"]}
    assert models == {"watcher": ["caption", "clip"], "parrot": ["chat", "clip"], "asker": ["chat"], "captioner": ["caption"]}
