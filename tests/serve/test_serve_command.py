"""``diptych serve`` as users start it: a folder, a token, a port in use, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from cli_fixture import Cli, cli  # noqa: F401
from diptych.core.errors import DiptychError
from diptych.index.updating.scan import absolute
from diptych.serve.opening import cached, name_of, opened
from diptych.serve.server import address_of, bound
from diptych.serve.settings import Settings
from serve_fixture import COLOURS, Colours, picture, png


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    for k, colour in enumerate(COLOURS):
        place = tmp_path / "photos" / f"{colour}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(png(picture(colour, ("square", "circle")[k % 2], k)))
    return tmp_path / "photos"


def started(*arguments: object, **environment: str) -> tuple[subprocess.Popen[str], str, str]:
    """The process, its address and all that it printed until it answered."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-m", "diptych.cli", "serve", *map(str, arguments), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "PYTHONPATH": path, **environment},
    )  # fmt: skip
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if "Ctrl-C" in line:
            break
    found = re.search(r"http://127\.0\.0\.1:\d+", said)
    assert found, said
    return process, found[0], said


def test_a_folder_is_indexed_in_the_cache_and_served_until_ctrl_c(photos: Path) -> None:
    process, address, said = started(photos, "--model", "serve_fixture:Colours")
    try:
        assert "8 pictures" in said and "embeds texts, embeds pictures" in said and "token" not in said
        found = httpx.post(f"{address}/v1/search", json={"text": "a red square", "n": 1}, timeout=30).json()
        assert found["hits"][0]["name"] == "red.png"
        assert httpx.get(f"{address}/thumb/{found['hits'][0]['id']}", timeout=30).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout is not None and process.stdout.read().strip() == "stopped"
    finally:
        process.kill()
    with opened(str(photos), ["serve_fixture:Colours"]).index as index:  # type: ignore[union-attr]
        assert index.path == cached(absolute(str(photos)), "serve_fixture:Colours") and len(index) == 8


def test_elsewhere_a_token_is_made_and_needed() -> None:
    process, address, said = started("--model", "serve_fixture:Parrot", "--host", "0.0.0.0")
    try:
        token = re.search(r"not shown again: (\S{32})", said)
        assert token and "without encryption" in said
        assert httpx.get(f"{address}/v1/models", timeout=30).status_code == 401
        right = httpx.get(f"{address}/v1/models", headers={"Authorization": f"Bearer {token[1]}"}, timeout=30)
        assert right.json()["data"][0]["id"] == "parrot"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()


def test_a_token_of_ones_own_is_not_printed() -> None:
    process, address, said = started("--model", "serve_fixture:Parrot", DIPTYCH_TOKEN="correct-horse-battery")
    try:
        assert "correct-horse" not in said and "a token is needed" in said
        assert httpx.get(f"{address}/v1/models", timeout=30).status_code == 401
    finally:
        process.kill()
        process.wait(10)


def test_a_port_in_use(cli: Cli) -> None:  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        begun = time.monotonic()
        found = cli("serve", "--model", "serve_fixture:Colours", "--port", port)
    assert found.code == 1 and f"port {port} is in use by another program; take --port {port + 1}" in found.err
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "nothing to serve; give an index"), (("--host", "no.such.host.invalid", "--token", "x" * 16), "there is no host"),
     (("--host", "0.0.0.0", "--token", "short"), "at least 16"), (("--host", "198.51.100.7"), "not an address of this machine"),
     (("nowhere/at/all", "--model", "serve_fixture:Colours"), "nowhere/at/all"), (("--model", "nothing"), "no run at 'nothing'"),
     (("--fixed-batch", "300", "--model", "serve_fixture:Colours"), "above max_batch")],
)  # fmt: skip
def test_what_cannot_be_served(cli: Cli, arguments: tuple[str, ...], message: str) -> None:  # noqa: F811
    found = cli("serve", *arguments, "--port", 0)
    assert found.code == 1 and message in found.err


def test_models_have_names_without_places() -> None:
    made = opened(None, ["serve_fixture:Colours", "serve_fixture:Parrot", "serve_fixture:Colours"])
    assert list(made.models) == ["colours", "parrot", "colours-2"] and made.index is None
    for name, shown in (
        ("hf:/home/me/llava-7b/", "llava-7b"),
        ("runs/clip", "clip"),
        ("openai:gpt-4", "gpt-4"),
        ("conse", "conse"),
    ):
        model = Colours()
        model.name = name
        assert name_of(model) == shown


def test_addresses_of_sockets() -> None:
    with bound(Settings(port=0)) as held:
        assert address_of(held).startswith("http://127.0.0.1:")
        with pytest.raises(DiptychError, match="in use"):
            bound(Settings(port=held.getsockname()[1]))
