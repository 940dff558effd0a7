"""Conversations as other programs write them: inline images, system texts, and what is not read."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

import sources_fixture
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from sources_fixture import picture, problems, put, put_parquet

own_cache = sources_fixture.own_cache  # pytest finds it here
pytestmark = pytest.mark.usefixtures("own_cache")

PICTURE = picture(1)
DATA = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
FORMS = [
    {"type": "image", "image": "a.png"},  # Qwen
    {"type": "image", "image": DATA},
    {"image": "a.png"},
    {"type": "image_url", "image_url": {"url": DATA, "detail": "low"}},  # OpenAI
    {"type": "image_url", "image_url": {"url": "a.png"}},
    {"type": "image_url", "image_url": "a.png"},
    {"type": "input_image", "image_url": DATA},
    {"type": "image", "url": "a.png"},  # transformers
    {"type": "image", "path": "a.png"},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA.partition(",")[2]}},  # Anthropic
]


def row(*parts: Any, answer: str = "a square", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": answer}], **more}


def conversations(root: Path, *rows: dict[str, Any]) -> str:
    put(f"{root}/a.png", PICTURE)
    return "chat:" + put(f"{root}/t.jsonl", "".join(json.dumps(r) + "\n" for r in rows))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_images_in_turns_are_read(tmp_path: Path, form: dict[str, Any]) -> None:
    source = open_source(conversations(tmp_path, row(form, {"type": "text", "text": "what is it?"}), row({"text": "and you?"})))
    sample = source[0]
    assert sample.turns[0].text == "<image>\nwhat is it?" and len(sample.images) == 1
    assert sample.images[0].shape == (8, 12, 3) and not source[1].images and source[1].turns[0].text == "and you?"
    assert source.problems == []


def test_images_in_a_column_and_in_turns_must_agree(tmp_path: Path) -> None:
    part = {"type": "image", "image": "a.png"}
    assert len(open_source(conversations(tmp_path, row(part, images=["a.png"])))[0].images) == 1
    assert len(open_source(conversations(tmp_path, row({"type": "image"}, images=["a.png"])))[0].images) == 1
    with pytest.raises(DiptychError, match="images twice: 1 in its turns and 1 next to them"):
        open_source(conversations(tmp_path, row(part, images=["b.png"])))
    with pytest.raises(DiptychError, match="image count mismatch: 2 times <image> in its turns, 1 image given"):
        open_source(conversations(tmp_path, row(part, {"type": "image"})))
    with pytest.raises(DiptychError, match="an image given as data:image/png;base64: not data in base64"):
        open_source(conversations(tmp_path, row({"type": "image", "image": "data:image/png;base64,%%"})))


def test_parquet_fills_parts_with_nulls(tmp_path: Path) -> None:
    messages = row({"type": "image", "text": None}, {"type": "text", "text": "what?"})["messages"][:1]
    messages += [{"role": "assistant", "content": [{"type": "text", "text": "a square"}]}]
    columns = {"messages": [messages], "images": [[{"bytes": PICTURE}]], "source": ["web"]}
    source = open_source("chat:" + put_parquet(f"{tmp_path}/t.parquet", columns))
    assert len(source[0].images) == 1 and source[0].extra == {"source": "web"} and source.problems == []


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"video": "a.mp4"}, "video is not read"),
        ({"audios": ["a.wav"]}, "audios is not read"),
        (
            {"system": "be brief", "messages": [{"role": "system", "content": "be long"}, *row("x")["messages"]]},
            "a system turn, and",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [1]}]},
            "tool_calls is not",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]}, "a part of type 'video'"),
    ],
)
def test_what_cannot_be_left_out_is_refused(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    address = conversations(tmp_path, row("kept"), {**row("x"), **more})
    with pytest.raises(DiptychError, match=reason):
        open_source(address)
    source = open_source(f"{address}?broken=skip")
    assert len(source) == 1 and reason in problems(source)["t.jsonl:2"]


def test_what_is_dropped_is_listed_and_other_columns_are_kept(tmp_path: Path) -> None:
    weighed = row("x", system="be brief", source="web", tools=None)
    weighed["messages"][1]["weight"] = 0.5
    source = open_source(conversations(tmp_path, weighed, row("y", video=None, audios=[])))
    assert problems(source) == {"t.jsonl": "'weight' of turns is not read (1 conversation)"} and len(source) == 2
    assert source[0].turns[0] == ("system", "be brief") and source[0].extra == {"source": "web"} and source[1].extra == {}
