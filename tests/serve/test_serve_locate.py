"""``/v1/locate``: a map over a picture with its verdict."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from diptych.benchmarks.maps import saved
from diptych.benchmarks.maps.verdict import measure
from diptych.inference.locating.maps import located_by_maps
from diptych.serve.app import create_app
from diptych.serve.settings import Settings
from maps_fixture import ColourModel, colour_items, noise, run_of, two_squares
from serve_fixture import Parrot, png, url_of


class Finds(ColourModel):
    """Says where a colour is."""

    def locate(self, images: Any, texts: Any) -> Any:
        return located_by_maps(self.maps, images, texts)


def test_a_text_is_located_and_the_kept_verdict_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    model = Finds("weights")
    with TestClient(create_app(None, {"finds": model, "talks": Parrot()}, Settings()), base_url="http://127.0.0.1") as client:
        image, ((colour, mask), _) = two_squares(1)
        body = {"model": "talks", "image_url": {"url": url_of(png(image))}, "text": f"the {colour}"}
        found = client.post("/v1/locate", json=body).json()
        assert (
            found["model"] == "finds" and found["by"] == "colour" and found["faithful"] is None and "not judged" in found["verdict"]
        )
        rows, columns = np.nonzero(mask)
        edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 48
        assert np.abs(np.array(found["box"]) - edges).max() < 0.17 and found["image"].startswith("data:image/")
        monkeypatch.setattr(saved, "measure", lambda maps, method, n, **_: measure(maps, method, items=colour_items(6)))
        monkeypatch.setattr(saved.kept, "__defaults__", ("", "given items", None))
        saved.verdict_on("finds", model, model.maps, "colour", 4, scenes="given items")
        again = client.post("/v1/locate", json=body).json()
        assert again["faithful"] is True and again["verdict"].startswith("faithful")
        assert client.post("/v1/locate", json={**body, "text": ""}).status_code == 400
        assert client.post("/v1/locate", json={**body, "image_url": {"url": "data:image/png;base64,AAAA"}}).status_code == 400
    with TestClient(create_app(None, {"talks": Parrot()}, Settings()), base_url="http://127.0.0.1") as client:
        refused = client.post("/v1/locate", json=body)
        assert refused.status_code == 400 and "say where things are" in refused.json()["error"]["message"]


def test_what_others_compute_meanwhile_is_neither_changed_nor_recorded() -> None:
    run = run_of("clip")
    images, texts = noise(4), ["two red fish"] * 4
    alone, vectors = run.maps.grids(images, texts, "gradient"), run.embed_image(images)
    stop, seen = threading.Event(), []

    def other() -> None:
        while not stop.is_set():
            seen.append(run.embed_image(images))

    thread = threading.Thread(target=other)
    thread.start()
    try:
        found = [run.maps.grids(images, texts, "gradient") for _ in range(3)]
    finally:
        stop.set()
        thread.join()
    for grids in found:
        for a, b in zip(alone, grids, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    assert seen and all(np.allclose(vectors, made, atol=1e-5) for made in seen)
