"""Search, pictures, pages and selections by id over a stand-in index, without a socket."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from diptych.serve.app import create_app
from diptych.serve.settings import Settings
from serve_fixture import Colours, StandIn, picture, png, url_of


@pytest.fixture(scope="module")
def client():
    model = Colours()
    with TestClient(create_app(StandIn(model), model, Settings()), base_url="http://127.0.0.1:8000") as made:
        yield made


def post(client, path, body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_search_by_text(client) -> None:
    found = post(client, "/v1/search", {"text": "a red circle", "n": 3})
    assert found["hits"][0]["caption"] == "a red circle" and found["hits"][0]["duplicates"] and not found["nothing"]
    assert found["total"] == 48 and len(found["hits"]) == 3
    assert set(found["hits"][0]) == {
        "id", "score", "relevance", "name", "folder", "width", "height", "date", "caption", "columns", "duplicates",
    }  # fmt: skip
    assert "secret" not in str(found)


def test_search_by_picture_crop_and_negatives(client) -> None:
    two = np.concatenate([picture("blue", "square"), picture("yellow", "circle")], axis=1)
    left = post(client, "/v1/search", {"image": url_of(png(two)), "crop": [0, 0, 0.5, 1], "n": 1})
    right = post(client, "/v1/search", {"image": url_of(png(two)), "crop": [0.5, 0, 1, 1], "n": 1})
    assert (left["hits"][0]["caption"], right["hits"][0]["caption"]) == ("a blue square", "a yellow circle")
    like = left["hits"][0]["id"]
    more = post(client, "/v1/search", {"like": [like], "text": "circle", "not": ["square"], "n": 1})
    assert more["hits"][0]["caption"] == "a blue circle"


def test_filters_paging_and_nothing(client) -> None:
    found = post(
        client, "/v1/search", {"text": "circle", "filters": {"folder": "green", "columns": {"shape": "circle"}}, "fold": False}
    )
    assert found["total"] == 2 and {hit["folder"] for hit in found["hits"]} == {"green"}
    whole = post(client, "/v1/search", {"text": "red", "n": 10})["hits"]
    parts = [post(client, "/v1/search", {"text": "red", "n": 5, "offset": at})["hits"] for at in (0, 5)]
    assert [h["id"] for h in whole] == [h["id"] for part in parts for h in part]
    none = post(client, "/v1/search", {"text": "an elephant"})
    assert none["nothing"] and none["hits"] == [] and "nothing here" in none["reason"]
    assert client.post("/v1/search", json={"text": "red", "filters": {"colour": 1}}).status_code == 400


def test_pictures_and_thumbnails(client) -> None:
    small = client.get("/thumb/1?s=64")
    assert small.headers["content-type"] == "image/jpeg" and min(Image.open(io.BytesIO(small.content)).size) == 64
    again = client.get("/thumb/1?s=64", headers={"If-None-Match": small.headers["etag"]})
    assert again.status_code == 304 and not again.content
    whole = client.get("/picture/1")
    assert whole.headers["content-type"] == "image/png" and whole.content == png(picture("red", "square"))
    assert whole.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert client.get("/v1/pictures/1").json()["caption"] == "a red square"
    assert client.head("/thumb/1").status_code == 200 and client.get("/thumb/999").status_code == 404


def test_map_and_selections(client) -> None:
    found = client.get("/v1/map").json()
    assert len(found["points"]) == 48 and found["clusters"][0]["name"] == "red"
    kept = post(client, "/v1/selections", {"name": "mine", "ids": [1, 2]})
    assert (
        kept["address"].startswith("index:") and kept["address"].endswith("?selection=mine") and "diptych train" in kept["command"]
    )
    assert client.get("/v1/selections").json()["selections"] == [
        {"name": "mine", "count": 2, "ids": [1, 2], "address": kept["address"]}
    ]
    assert client.post("/v1/selections", json={"name": "../x", "ids": [1]}).status_code == 400
    assert client.post("/v1/selections", json={"name": "x", "ids": [99999]}).status_code == 404
    assert client.delete("/v1/selections/mine").status_code == 200


def test_pages_and_facts(client) -> None:
    for path in ("/", "/chat", "/login", "/static/login.html"):
        page = client.get(path)
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy
    facts = client.get("/v1/index").json()
    assert facts["count"] == 48 and set(facts["can"]) == {"search", "text", "image"} and facts["models"][0]["id"] == "colours"
    assert client.get("/health").json() == {"status": "ok"}
