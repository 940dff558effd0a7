"""Who is let in, and hundreds of hostile requests: nothing is served that should not be, and the server answers rightly after."""

from __future__ import annotations

import io
import json
import socket
import struct
import time
import zipfile
import zlib
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from diptych.core.errors import DiptychError
from diptych.serve.app import create_app
from diptych.serve.errors import ApiError
from diptych.serve.pictures import fetch
from diptych.serve.pictures.images import pixels
from diptych.serve.settings import Settings
from serve_fixture import Captioner, Colours, Parrot, StandIn, picture, png, running, url_of

TOKEN = "correct-horse-battery-staple"
COLOURS = Colours()
SECRETS = ("root:", "secret", "BEGIN", "Traceback", "site-packages", "/home/", "diptych/serve/")


def client_of(**settings) -> TestClient:
    host = settings.get("host", "127.0.0.1")
    app = create_app(StandIn(COLOURS), {"colours": COLOURS, "parrot": Parrot()}, Settings(**settings))
    return TestClient(app, base_url=f"http://{host}:8000", follow_redirects=False)


# --- who is let in ---

PATHS = [
    "/",
    "/chat",
    "/v1/index",
    "/v1/models",
    "/v1/map",
    "/v1/selections",
    "/v1/pictures/1",
    "/thumb/1",
    "/picture/1",
    "/metrics",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "let_in"),
    [
        ({}, False), ({"Authorization": f"Bearer {TOKEN}"}, True), ({"Authorization": f"bearer  {TOKEN}"}, True), ({"Authorization": TOKEN}, False),
        ({"Authorization": f"Basic {TOKEN}"}, False), ({"Authorization": f"Bearer {TOKEN}x"}, False), ({"Authorization": "Bearer "}, False),
        ({"Authorization": f"Bearer {TOKEN[:-1]}"}, False), ({"Cookie": f"diptych={TOKEN}"}, False), ({"Cookie": "diptych="}, False),
        ({"Cookie": "diptych=\u00e9"}, False), ({"X-Api-Key": TOKEN}, False),
    ],
)  # fmt: skip
def test_a_token_opens_every_route_and_nothing_else_does(path, headers, let_in) -> None:
    with client_of(host="10.0.0.7", token=TOKEN) as client:
        headers = {name: value.encode("latin-1") for name, value in headers.items()}
        answer = client.get(path, headers=headers)
        assert answer.status_code == (200 if let_in else 401)
        if not let_in:
            assert answer.headers["www-authenticate"] == "Bearer" and "picture" not in answer.text
        assert client.get(f"{path}?token={TOKEN}&access_token={TOKEN}").status_code == 401, "a token in a URL is no token"


def test_the_form_sets_a_cookie_that_scripts_do_not_see() -> None:
    with client_of(host="10.0.0.7", token=TOKEN) as client:
        assert client.get("/", headers={"Accept": "text/html"}).headers["location"] == "/login"
        assert client.get("/login").status_code == 200 and client.get("/static/login.html").status_code == 200
        assert client.post("/login", data={"token": "wrong"}).headers["location"] == "/login?wrong"
        answer = client.post("/login", data={"token": TOKEN})
        cookie = answer.headers["set-cookie"]
        assert answer.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
        assert client.get("/v1/models").status_code == 200
        client.post("/logout")
        client.cookies.clear()
        assert client.get("/v1/models").status_code == 401


def test_guesses_are_slowed_and_the_right_token_is_not() -> None:
    with client_of(host="10.0.0.7", token=TOKEN) as client:
        codes = [client.get("/v1/models", headers={"Authorization": f"Bearer guess-{k}"}).status_code for k in range(14)]
        assert codes == [401] * 10 + [429] * 4
        assert client.post("/login", data={"token": "guess"}).status_code == 429
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_settings_that_would_be_open_are_refused() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "photos.example.org"):
        with pytest.raises(DiptychError, match="a token is needed"):
            Settings(host=host)
    for host in ("127.0.0.1", "127.3.4.5", "::1", "localhost"):
        assert Settings(host=host).local
    with pytest.raises(DiptychError, match="at least 16"):
        Settings(token="short")


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8000", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:8000", 200), ("evil.example", 421), ("127.0.0.1.evil.example", 421),
     ("localhost.evil.example:8000", 421), ("evil.example@127.0.0.1", 421), ("127.0.0.1/../x", 421), ("", 421), ("192.168.0.1", 421), ("[::1", 421),
     ("photos.example.org", 200), ("10.0.0.1#127.0.0.1", 421)],
)  # fmt: skip
def test_other_names_are_not_answered(host, status) -> None:
    """A name of someone else that points to this machine (DNS rebinding)."""
    with client_of(names=("photos.example.org",)) as client:
        assert client.get("/v1/models", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 200), ({"Origin": "http://127.0.0.1:8000"}, 200), ({"Origin": "https://127.0.0.1:8000"}, 200), ({"Origin": "null"}, 403),
     ({"Origin": "http://evil.example"}, 403), ({"Origin": "http://127.0.0.1:9000"}, 403), ({"Origin": "file://"}, 403), ({"Origin": ""}, 403),
     ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403), ({"Sec-Fetch-Site": "same-origin"}, 200),
     ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 200), ({"Origin": "null", "Sec-Fetch-Site": "cross-site"}, 403),
     ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403), ({"Content-Type": "text/plain"}, 415),
     ({"Content-Type": "application/x-www-form-urlencoded"}, 415), ({"Content-Type": "multipart/form-data; boundary=x"}, 415)],
)  # fmt: skip
def test_pages_of_other_sites_change_nothing(headers, status) -> None:
    with client_of() as client:
        body = json.dumps({"name": "mine", "ids": [1]})
        answer = client.post("/v1/selections", content=body, headers={"Content-Type": "application/json", **headers})
        assert answer.status_code == status
        assert len(client.get("/v1/selections").json()["selections"]) == (status == 200)
        assert "access-control-allow-origin" not in answer.headers


def test_pages_of_other_sites_show_no_pictures_and_may_link_here() -> None:
    with client_of() as client:
        assert client.get("/thumb/1", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}).status_code == 403
        assert client.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status_code == 200
        assert (
            client.options("/v1/search", headers={"Origin": "http://evil.example"}).headers.get("access-control-allow-origin")
            is None
        )


def test_every_answer_has_the_headers() -> None:
    with client_of() as client:
        for path in ("/", "/v1/index", "/nothing", "/thumb/1", "/health"):
            headers = client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
            assert headers["x-frame-options"] == "DENY" and headers["cross-origin-resource-policy"] == "same-origin"
            assert "'unsafe" not in headers["content-security-policy"] and "server" not in headers


# --- hostile requests ---


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of many pixels in a few kB."""
    rows = zlib.compress(bytes(1 << 20), 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("../../etc/x.png", bytes(1 << 20))
    return file.getvalue()


def animated() -> bytes:
    file = io.BytesIO()
    frames = [Image.fromarray(picture("red", "circle", k)) for k in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><image href="file:///etc/passwd"/></svg>'
HTML = b"<!doctype html><script>alert(document.cookie)</script>"
PIXEL = png(picture("red", "circle"))
BAD_PICTURES = {
    "bomb": bomb(60_000, 60_000), "wide bomb": bomb(2**31 - 1, 1), "huge": bomb(2**31 - 1, 2**31 - 1), "zero": bomb(0, 0), "svg": SVG, "html": HTML,
    "zip": archive(), "empty": b"", "cut": PIXEL[: len(PIXEL) // 2], "png head": PIXEL[:8], "jpeg head": b"\xff\xd8\xff", "pdf": b"%PDF-1.7\n1 0 obj",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run", "tiff": b"II*\x00\x08\x00\x00\x00", "gzip": zlib.compress(bytes(1 << 22)),
    "text": b"file:///etc/passwd", "mvg": b"push graphic-context\nimage over 0,0 0,0 'https://x/'", "polyglot": PIXEL[:40] + HTML,
    "noise": np.random.default_rng(0).bytes(4096), "webp head": b"RIFF\xff\xff\xff\xffWEBPVP8 ", "bmp": b"BM" + bytes(60),
}  # fmt: skip
UP = [
    "../",
    "..%2f",
    "%2e%2e/",
    "%2e%2e%2f",
    "..%5c",
    "..\\",
    "..%252f",
    "%c0%ae%c0%ae/",
    "..%00/",
    "....//",
    ".%2e/",
    "..;/",
    "%uff0e%uff0e/",
]
TARGETS = ["etc/passwd", "app.py", "settings.py", "index.json"]


def hostile() -> list[tuple[str, str, dict]]:
    """(method, raw path, how): at least 200, none of which may succeed."""
    made: list[tuple[str, str, dict]] = []
    for prefix in ("/static/", "/thumb/", "/picture/", "/", "/v1/pictures/"):
        for up in UP:
            made += [("GET", f"{prefix}{up * 3}{target}", {}) for target in TARGETS[:2]]
    made += [("GET", f"/static/{name}", {}) for name in ("app.py", ".", "..", "%2e", "", "search.html/", "search.html%00.js", "SEARCH.HTML", "a" * 5000,
                                                         "search%2ehtml%20", "__init__.py", "nul", "con.js", "/etc/passwd", "~root", "search.html;x")]  # fmt: skip
    for place in ("/thumb/", "/picture/", "/v1/pictures/"):
        made += [("GET", place + id, {}) for id in ("0", "-1", "999999", "1e3", "0x1", "1.0", "٣", "%D9%A3", "9" * 18, "9" * 30, "9" * 5000, "1%00", "1'--", "nan",
                                                    "1/../1", "1%2f..%2f2", "null", "", "1;drop", "%31%0a")]  # fmt: skip
    made += [("GET", f"/thumb/1?s={size}", {}) for size in ("-1", "1e9", "999999", "nan", "", "0x10", "٣")]
    for method in ("PUT", "PATCH", "TRACE", "CONNECT", "PROPFIND", "FOO"):
        made.append((method, "/v1/models", {}))
    made += [("GET", path, {}) for path in ("/v1/search", "/v1/chat/completions", "/docs", "/redoc", "/openapi.json", "/.git/config", "/.env", "/admin", "/v1/files",
                                            "//etc/passwd", "/index.json", "/catalog.sqlite", "/vectors/", "/v1/models/../../etc", "/v1/models/nothing")]  # fmt: skip
    deep = {
        kind: (opening * 10_000 + closing * 10_000) for kind, opening, closing in (("list", "[", "]"), ("object", '{"a":', "}"))
    }
    bodies = [
        deep["list"], deep["object"], "[" * 100_000, '{"text": ' + deep["list"] + "}", '{"text": NaN}', '{"text": "red", "n": NaN}', '{"n": Infinity}', '{"n": 1e999}', "", "{",
        "null", "[]", "1", '"text"', '{"text": 5}', '{"text": "red", "n": "5"}', '{"text": "red", "n": true}', '{"text": "red", "n": 0}', '{"text": "red", "n": 1000000}',
        '{"text": "red", "n": 1.5}', '{"text": "red", "offset": -1}', '{"text": "red", "like": ["1"]}', '{"text": "red", "like": [-1]}', '{"text": "red", "like": [424242]}',
        '{"text": "red", "filters": {"folder": "../../etc", "path": 1}}', '{"text": "red", "filters": []}', '{"text": "red", "x": 1}', '{"text": "red", "crop": [0, 0, 1, 1]}',
        '{"like": [1], "crop": [0, 0, 2, 1]}', '{"like": [1], "crop": [1, 1, 0, 0]}', '{"like": [1], "crop": [0, 0, 1]}', '{"text": ["red", 1]}', '{"text": "\\ud800"}',
        '{"\\udfff": 1}', '{"text": "red", "image": "/etc/passwd"}', '{"image": "file:///etc/passwd"}', '{"image": "http://169.254.169.254/latest/meta-data/"}',
        '{"image": "gopher://127.0.0.1:6379/_x"}', '{"image": "data:,"}', '{"image": "data:image/png;base64"}', '{"text": "red", "n": ' + "9" * 5000 + "}", '{"text": "' + "a" * 200_000 + '"}',
        "\x00", "\ufeff{}", '{"text": "red", "n": 1,}', "{'text': 'red'}", '{"text": "red", "like": [' + "1," * 99 + "1]}",
    ]  # fmt: skip
    made += [("POST", "/v1/search", {"content": body.encode("utf-8", "surrogatepass")}) for body in bodies]
    made.append(("POST", "/v1/search", {"content": b'{"text": "\xff\xfe"}'}))
    for name, data in BAD_PICTURES.items():
        for kind in ("image/png", "image/svg+xml") if name == "svg" else ("image/png",):
            url = url_of(data, kind)
            made.append(("POST", "/v1/search", {"json": {"image": url}}))
            made.append(("POST", "/v1/embeddings", {"json": {"model": "colours", "input": [url]}}))
            part = {"type": "image_url", "image_url": {"url": url}}
            made.append(
                ("POST", "/v1/chat/completions", {"json": {"model": "parrot", "messages": [{"role": "user", "content": [part]}]}})
            )
    wrong = [{}, {"input": None}, {"input": {"a": 1}}, {"input": [[1, "a"]]}, {"input": [True]}, {"input": [[]]}, {"input": ["a"] * 5000}, {"input": [[1] * 9000]}, {"input": -1},
             {"input": "a", "encoding_format": "hex"}, {"input": "a", "dimensions": 0}, {"input": "a", "dimensions": -5}, {"input": "a", "model": 5}, {"input": "a", "model": "../x"},
             {"input": "a", "messages": [{"role": "user", "content": "b"}]}, {"messages": []}, {"messages": [5]}, {"messages": [{"role": "user"}]}, {"input": [{"type": "text"}]}]  # fmt: skip
    made += [("POST", "/v1/embeddings", {"json": {"model": "colours", **body}}) for body in wrong]
    talks = [{}, {"messages": []}, {"messages": "hi"}, {"messages": [{}]}, {"messages": [{"role": "root", "content": "x"}]}, {"messages": [{"role": "user", "content": 5}]},
             {"messages": [{"role": ["user"], "content": "x"}]}, {"messages": [{"role": "user", "content": [None]}]}, {"messages": [{"role": "user", "content": "x"}] * 300},
             {"messages": [{"role": "user", "content": "x" * 200_000}]}, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}]}]  # fmt: skip
    made += [("POST", "/v1/chat/completions", {"json": {"model": "parrot", **body}}) for body in talks]
    hi = {"model": "parrot", "messages": [{"role": "user", "content": "hi"}]}
    for more in ({"temperature": "hot"}, {"temperature": 1e9}, {"top_p": 2}, {"max_tokens": -1}, {"max_tokens": "many"}, {"n": 99}, {"stop": 5}, {"stop": [5]}, {"seed": "x"}, {"stream": "yes"},
                 {"stop": ["a" * 1000]}, {"model": "none"}, {"model": {"a": 1}}, {"top_k": 0}, {"stream_options": 5}):  # fmt: skip
        made.append(("POST", "/v1/chat/completions", {"json": {**hi, **more}}))
    made += [("POST", "/v1/selections", {"json": body}) for body in ({"name": "../../x", "ids": [1]}, {"name": "a" * 999, "ids": [1]}, {"name": "a", "ids": []}, {"name": "a", "ids": ["1"]},
                                                                     {"name": "a", "ids": [10**30]}, {"name": "<script>", "ids": [1]}, {"name": "a\u0000b", "ids": [1]}, {"name": 5, "ids": [1]})]  # fmt: skip
    made += [("DELETE", f"/v1/selections/{name}", {}) for name in ("nothing", "%2e%2e", "a%00")]
    for headers in (
        {"Content-Length": "99999999999999999999"},
        {"Content-Length": "-5"},
        {"Content-Type": "application/json; charset=utf-7"},
    ):
        made.append(("POST", "/v1/search", {"content": b"{", "headers": {"Content-Type": "application/json", **headers}}))
    return made


def sent(address: str, method: str, path: str, how: dict) -> tuple[int, bytes, bytes]:
    """The answer to a request that no library has tidied: status, headers and body."""
    place = urlsplit(address)
    body = json.dumps(how["json"]).encode() if "json" in how else how.get("content", b"")
    headers = {
        "Host": place.netloc,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **how.get("headers", {}),
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection((place.hostname, place.port), 30) as line:
        line.settimeout(30)
        with suppress(OSError):  # refused while it was sent
            line.sendall("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body)
        data = b""
        with suppress(OSError):
            while part := line.recv(1 << 16):
                data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]) if head.startswith(b"HTTP/") else 0, head, rest


def test_hostile_requests() -> None:
    requests = hostile()
    assert len(requests) >= 300
    app = create_app(StandIn(COLOURS), {"colours": COLOURS, "parrot": Parrot()}, Settings(max_body=8 << 20, max_pixels=4_000_000))
    wrong = []
    with running(app) as address:
        begun = time.monotonic()
        for method, path, how in requests:
            status, head, body = sent(address, method, path, how)
            text = body.decode("utf-8", "replace")
            if not 400 <= status < 500 or any(mark in text for mark in SECRETS):
                wrong.append((method, path[:80], str(how)[:120], status, text[:200]))
            elif method not in ("TRACE", "CONNECT") and status != 400 and b"application/json" not in head:
                wrong.append((method, path[:80], str(how)[:120], status, head))
        assert not wrong, "\n".join(map(str, wrong))
        found = httpx.post(f"{address}/v1/search", json={"text": "a red circle", "n": 1}, timeout=30)
        assert found.json()["hits"][0]["caption"] == "a red circle", "right afterwards"
        assert httpx.get(f"{address}/v1/selections").json() == {"selections": []}
        assert time.monotonic() - begun < 300


def test_an_animated_picture_is_its_first_frame() -> None:
    found = pixels(animated(), Settings())
    assert found.shape == (96, 128, 3)


def test_a_body_that_is_too_large_or_too_slow() -> None:
    settings = Settings(max_body=20_000, body_timeout=1.0)
    with running(create_app(None, Captioner(), settings)) as address:
        place = urlsplit(address)
        assert (
            httpx.post(
                f"{address}/v1/chat/completions", content=b"x" * 20_001, headers={"Content-Type": "application/json"}
            ).status_code
            == 413
        )

        def parts():
            for _ in range(40):
                yield b" " * 1000

        try:
            code = httpx.post(
                f"{address}/v1/chat/completions", content=parts(), headers={"Content-Type": "application/json"}
            ).status_code
        except httpx.WriteError:
            code = 413
        assert code == 413
        with socket.create_connection((place.hostname, place.port), 10) as line:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{{"
            line.sendall(head.encode())
            line.settimeout(10)
            begun = time.monotonic()
            assert b" 408 " in line.recv(1000)
            assert time.monotonic() - begun < 8
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}


def test_clients_that_read_slowly_do_not_stop_others() -> None:
    app = create_app(StandIn(COLOURS), {"colours": COLOURS, "parrot": Parrot()}, Settings())
    with running(app) as address:
        place = urlsplit(address)
        slow = []
        for _ in range(20):
            line = socket.create_connection((place.hostname, place.port), 10)
            line.sendall(f"GET /picture/1 HTTP/1.1\r\nHost: {place.netloc}\r\n".encode())  # never finished
            slow.append(line)
        assert httpx.post(f"{address}/v1/search", json={"text": "red", "n": 1}, timeout=10).status_code == 200
        for line in slow:
            line.close()


# --- pictures from addresses ---

PRIVATE = [
    "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1",
    "2002:7f00:1::", "2001:0:5ef5:79fb::", "2001:db8::1", "not an address",
]  # fmt: skip


def test_addresses_that_are_not_public() -> None:
    assert not [address for address in PRIVATE if fetch.is_public(address)]
    assert all(map(fetch.is_public, ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]))


def resolves(monkeypatch, *addresses: str) -> list[str]:
    asked: list[str] = []

    def lookup(host, port, **more):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(fetch.socket, "getaddrinfo", lookup)
    return asked


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], [], ["::1"]])
def test_a_host_with_any_private_address_is_refused(monkeypatch, addresses) -> None:
    resolves(monkeypatch, *addresses)
    with pytest.raises(ApiError, match="not on the public internet"):
        fetch.fetched("http://pictures.example/a.png", 1000)


@pytest.mark.parametrize(
    "url", ["ftp://x/a", "http://user:pw@8.8.8.8/a", "http://8.8.8.8:6379/a", "http:///a", "http://8.8.8.8:99999/", "http://[::1/", "http://8.8.8.8/a b", "http://8.8.8.8/\r\nX: y", "http://ex\u00e4mple/"]
)  # fmt: skip
def test_addresses_that_are_malformed(url) -> None:
    with pytest.raises(ApiError):
        fetch.fetched(url, 1000)


def served(monkeypatch, answers: list[bytes], slow: float = 0.0):
    """A server on loopback that counts as public; and the addresses that were connected to."""
    import threading

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]

    def work():
        for answer in answers:
            line, _ = listening.accept()
            line.recv(65536)
            with suppress(OSError):
                for k in range(0, len(answer), 100 if slow else len(answer)):
                    line.sendall(answer[k : k + (100 if slow else len(answer))])
                    time.sleep(slow)
            line.close()

    threading.Thread(target=work, daemon=True).start()
    connected = []
    monkeypatch.setattr(fetch, "is_public", lambda address: True)
    monkeypatch.setattr(fetch, "PORTS", (port,))

    def connect(place, timeout=None):
        connected.append(place)
        line = socket.socket()
        line.settimeout(timeout)
        line.connect(("127.0.0.1", port))
        return line

    monkeypatch.setattr(fetch.socket, "create_connection", connect)
    return f"http://pictures.example:{port}/a.png", connected


def ok(data: bytes, extra: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n{extra}\r\n".encode() + data


def test_a_name_is_resolved_once_and_the_connection_goes_there(monkeypatch) -> None:
    """A name that has another address a moment later gains nothing."""
    url, connected = served(monkeypatch, [ok(PIXEL)])
    asked = resolves(monkeypatch, "93.184.215.14")
    assert fetch.fetched(url, 1 << 20) == PIXEL
    assert asked == ["pictures.example"] and [place[0] for place in connected] == ["93.184.215.14"]


def test_redirects_sizes_and_slow_answers(monkeypatch) -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n"
    url, _ = served(monkeypatch, [moved, ok(bytes(5000)), ok(b"x", "Content-Encoding: gzip\r\n"), b"nonsense"])
    resolves(monkeypatch, "93.184.215.14")
    for message in ("redirects are not followed", "more than 1,000 bytes", "compressed", "could not be fetched"):
        with pytest.raises(ApiError, match=message):
            fetch.fetched(url, 1000)
    monkeypatch.setattr(fetch, "SECONDS", 1.0)
    url, _ = served(monkeypatch, [ok(bytes(50_000))], slow=0.1)
    begun = time.monotonic()
    with pytest.raises(ApiError, match="could not be fetched"):
        fetch.fetched(url, 1 << 20)
    assert time.monotonic() - begun < 5


def test_urls_are_off_unless_they_are_turned_on(monkeypatch) -> None:
    with client_of() as client:
        assert "--allow-urls" in client.post("/v1/search", json={"image": "http://8.8.8.8/a.png"}).json()["error"]["message"]
    monkeypatch.setattr(fetch, "fetched", lambda url, most, param: png(picture("blue", "square")))
    with client_of(allow_urls=True) as client:
        found = client.post("/v1/search", json={"image": "https://pictures.example/a.png", "n": 1}).json()
        assert found["hits"][0]["caption"] == "a blue square"
