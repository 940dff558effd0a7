"""A real index and real models behind the server."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from conversations_fixture import Talker, table
from diptych.core.streaming import Tokenizing
from diptych.data.conversations.turns import question
from diptych.index.index import Index
from diptych.inference.onnx.preprocessing import Texts
from diptych.inference.run import TrainedModel
from diptych.models.pretrained.tokenizer import tiny_tokenizer
from diptych.serve.app import create_app
from serve_fixture import COLOURS, Colours, picture, png, url_of


@pytest.fixture
def index(tmp_path: Path):
    place = tmp_path / "photos"
    for k, colour in enumerate(COLOURS):
        for shape in ("square", "circle"):
            (place / colour).mkdir(parents=True, exist_ok=True)
            (place / colour / f"{shape} é.png").write_bytes(png(picture(colour, shape, k)))
    turned = Image.fromarray(picture("red", "triangle"))
    exif = turned.getexif()
    exif[0x0112] = 6  # lies on its side
    turned.save(place / "turned.jpg", exif=exif)
    Image.fromarray(picture("blue", "triangle")).save(place / "flat.tif")
    (place / "broken.png").write_bytes(b"\x89PNG nonsense")
    with Index.create(tmp_path / "my.index", f"folder:{place}", Colours(), "serve_fixture:Colours") as made:
        made.update(Colours())
        yield made


def test_an_index_is_searched_shown_and_selected_from(index: Index, tmp_path: Path) -> None:
    with TestClient(create_app(index, Colours()), base_url="http://127.0.0.1") as client:
        facts = client.get("/v1/index").json()
        assert facts["count"] == 18 and facts["broken"] == 1 and facts["can"] == ["image", "search", "text"]
        assert str(tmp_path) not in json.dumps(facts) and facts["model"] == "serve_fixture:Colours"
        found = client.post("/v1/search", json={"text": "a red circle", "n": 2, "cutoff": False}).json()
        first = found["hits"][0]
        assert first["name"] == "red/circle é.png" and first["folder"] == "red" and str(tmp_path) not in json.dumps(found)
        filtered = client.post("/v1/search", json={"text": "circle", "filters": {"folder": "green"}, "cutoff": False}).json()
        assert filtered["total"] == 2 and {hit["folder"] for hit in filtered["hits"]} == {"green"}
        wrong = client.post("/v1/search", json={"text": "circle", "filters": {"colour": "green"}})
        assert wrong.status_code == 400 and "colour" in wrong.json()["error"]["message"]
        everything = client.post("/v1/search", json={"n": 50, "fold": False}).json()
        names = {hit["name"]: hit["id"] for hit in everything["hits"]}
        assert len(names) == 18
        kept = client.post("/v1/selections", json={"name": "my best", "ids": [first["id"]]}).json()
        assert index.selections() == {"my best": [first["id"]]} and kept["address"].startswith("index:")
        assert len(client.get("/v1/map").json()["points"]) == 18
        upright = Image.open(io.BytesIO(client.get(f"/thumb/{names['turned.jpg']}?s=64").content))
        assert upright.height > upright.width, "turned as its EXIF says"
        flat = client.get(f"/picture/{names['flat.tif']}")
        assert flat.headers["content-type"] == "image/jpeg" and flat.content[:3] == b"\xff\xd8\xff"
        (tmp_path / "photos" / "red" / "circle é.png").write_bytes(png(picture("blue", "square", 9)))
        for path in (f"/picture/{first['id']}", f"/thumb/{first['id']}?s=512"):
            gone = client.get(path)
            assert gone.status_code == 410 and str(tmp_path) not in gone.text
        assert client.post("/v1/search", json={"like": [first["id"]], "crop": [0, 0, 0.5, 1]}).status_code == 410


def test_chat_with_a_run_is_what_it_answers_without_a_server(tmp_path: Path) -> None:
    talker = Talker(table(tmp_path), 2)
    model = TrainedModel("talker", talker.recipe, talker.model, talker.objectives, torch.device("cpu"))
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    parts = [{"type": "image_url", "image_url": {"url": url_of(png(image))}}, {"type": "text", "text": "what colour?"}]
    with TestClient(create_app(None, model), base_url="http://127.0.0.1") as client:
        for how in ({}, {"temperature": 0.8, "seed": 4}, {"top_p": 0.7, "seed": 2}):
            body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 10, **how}
            expected = model.converse([image], [question("what colour?")], 10, **how)
            whole = client.post("/v1/chat/completions", json=body).json()
            assert whole["choices"][0]["message"]["content"] == expected and whole["usage"]["prompt_tokens"] > 10
            lines = client.post("/v1/chat/completions", json={**body, "stream": True}).text.split("\n\n")
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == expected
        long = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "why? " * 2000}]})
        assert long.status_code == 400 and "the conversation has grown to" in long.json()["error"]["message"]


def test_tokens_of_exports() -> None:
    tokenizer = tiny_tokenizer(["the red fox"] * 3)
    texts = Texts(tokenizer.backend.to_str(), "pieces", 16)
    (ids,) = texts.tokens(["the red fox"])
    assert texts.text(ids) == "the red fox" and ids == tokenizer.pieces(["the red fox"])[0]
    with pytest.raises(Exception, match="there is no token 99999"):
        texts.text([99999])
    assert isinstance(Colours(), Tokenizing)
