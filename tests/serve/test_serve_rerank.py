"""A second model behind the search of the server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from diptych.index.cutoff.rerank import Reranker
from diptych.serve.app import create_app
from diptych.serve.settings import Settings
from index_fixture import COLOURS, Pixels, made, put


def coloured(folder: Path, number: int, colours: tuple[str, ...]) -> str:
    """Pictures of one colour each, with captions in a table."""
    rows = []
    for i in range(number):
        rng, colour = np.random.default_rng(i), colours[i % len(colours)]
        pixels = np.clip(np.array(COLOURS[colour]) + rng.integers(-40, 41, (24, 32, 3)), 0, 255).astype(np.uint8)
        rows.append({"image": put(folder / f"{i}.png", pixels).name, "caption": f"something {colour}, {i}"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return f"jsonl:{folder / 'rows.jsonl'}"


def test_rerank_is_on_unless_a_request_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    second = Reranker.of(Pixels(), coloured(tmp_path / "elsewhere", 120, ("red", "green", "blue", "yellow")))
    coloured(tmp_path / "photos", 8, ("red", "blue"))
    with made(tmp_path / "i", f"folder:{tmp_path / 'photos'}") as index:
        app = create_app(index, {"pixels": Pixels()}, Settings(), reranker=second)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            assert client.get("/v1/index").json()["rerank"] == "pixels"
            found = client.post("/v1/search", json={"text": "red", "n": 4, "fold": False}).json()
            assert found["reranked"] and not found["nothing"]
            assert {int(Path(hit["name"]).stem) % 2 for hit in found["hits"]} == {0}
            absent = client.post("/v1/search", json={"text": "green", "rerank": True, "fold": False}).json()
            assert absent["reranked"] and absent["nothing"]
            assert not client.post("/v1/search", json={"text": "red", "rerank": False}).json()["reranked"]
        with TestClient(create_app(index, {"pixels": Pixels()}, Settings()), base_url="http://127.0.0.1") as client:
            assert "rerank" not in client.get("/v1/index").json()
            refused = client.post("/v1/search", json={"text": "red", "rerank": True})
            assert refused.status_code == 400 and "--rerank" in refused.json()["error"]["message"]
            assert not client.post("/v1/search", json={"text": "red"}).json()["reranked"]
