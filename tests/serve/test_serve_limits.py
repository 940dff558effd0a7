"""What one request, or one connection, can cost the others."""

from __future__ import annotations

import socket
import threading
import time

import httpx
import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient

from diptych.serve import requests
from diptych.serve.app import create_app
from diptych.serve.routes.pictures import jpeg
from diptych.serve.server import timed_protocol
from diptych.serve.settings import Settings
from serve_fixture import Captioner, Colours, StandIn, png, url_of

TOKEN = "correct-horse-battery-staple"


def client_of(**settings) -> TestClient:
    models = {"colours": Colours(), "captioner": Captioner()}
    app = create_app(StandIn(Colours()), models, Settings(**settings))
    return TestClient(app, base_url=f"http://{settings.get('host', '127.0.0.1')}:8000", follow_redirects=False)


def test_silent_connections_are_closed() -> None:
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    app = create_app(None, {"captioner": Captioner()}, Settings())
    config = uvicorn.Config(app, log_level="critical", http=timed_protocol(0.5), limit_concurrency=4)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([held],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    place = held.getsockname()
    try:
        lines = [socket.create_connection(place, 10) for _ in range(6)]
        lines[0].sendall(b"GET /health HTTP/1.1\r\nHost: ")  # half a header
        for line in lines:
            line.settimeout(20)
            assert line.recv(10) == b""  # closed by the server
        assert httpx.get(f"http://{place[0]}:{place[1]}/health").status_code == 200
    finally:
        server.should_exit = True
        thread.join(10)
        held.close()


def test_the_form_of_the_token_is_small() -> None:
    with client_of(host="10.0.0.7", token=TOKEN) as client:
        assert client.post("/login", content=b"token=" + b"x" * 5000).status_code == 413
        assert client.post("/login", content=b"a=1&" * 12).status_code == 400
        assert client.post("/login", data={"token": TOKEN}).status_code == 303


@pytest.mark.parametrize("other", ['prefs={"a":1}', "a[0]=1", "x=é", "novalue"])
def test_cookies_of_other_programs_do_not_hide_ours(other: str) -> None:
    with client_of(host="10.0.0.7", token=TOKEN) as client:
        own = client.post("/login", data={"token": TOKEN}).headers["set-cookie"].partition(";")[0]
        client.cookies.clear()
        for together in (f"{other}; {own}", f"{own}; {other}"):
            assert client.get("/v1/models", headers={"Cookie": together.encode()}).status_code == 200
        assert client.get("/v1/models", headers={"Cookie": f"{other}; diptych=wrong".encode()}).status_code == 401


def test_many_small_files_of_large_pictures_are_refused() -> None:
    large = url_of(png(np.zeros((1000, 1000, 3), np.uint8)))
    with client_of(max_pixels=1_000_000) as client:
        answer = client.post("/v1/embeddings", json={"model": "colours", "input": [large] * 3})
        assert answer.status_code == 400 and "pixels together" in answer.json()["error"]["message"]
        assert client.post("/v1/embeddings", json={"model": "colours", "input": [large] * 2}).status_code == 200
        content = [{"type": "image_url", "image_url": {"url": large}}] * 3 + [{"type": "text", "text": "what?"}]
        answer = client.post(
            "/v1/chat/completions", json={"model": "captioner", "messages": [{"role": "user", "content": content}]}
        )
        assert answer.status_code == 400


def test_json_is_read_outside_the_loop(monkeypatch) -> None:
    names = []
    real = requests.parsed
    monkeypatch.setattr(requests, "parsed", lambda data: (names.append(threading.current_thread().name), real(data))[1])
    with client_of() as client:
        assert client.post("/v1/search", json={"text": "red"}).status_code == 200
    assert names and all("AnyIO" in name or "worker" in name.lower() for name in names)


def test_a_picture_that_jpeg_cannot_hold_is_made_smaller() -> None:
    assert jpeg(np.zeros((8, 66_000, 3), np.uint8))[:3] == b"\xff\xd8\xff"
