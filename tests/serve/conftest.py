"""Chromium, and the gallery behind a server on loopback, for the tests of the pages."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The gallery's application with its address, ``.url``, and its index, ``.index``."""
    from types import SimpleNamespace

    from browser_fixture import gallery_app
    from serve_fixture import running

    place: Path = tmp_path_factory.mktemp("gallery")
    app = gallery_app(place)
    with running(app) as url:
        yield SimpleNamespace(url=url, index=app.state.diptych.index, place=place)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium. Of a module, not of the session: playwright's event loop stays in this thread until it ends."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, gallery: Any) -> Iterator[Callable[..., Any]]:
    """``visit(path)``: a page in a browser profile of its own. At the end: nothing was requested from elsewhere, and the pages made
    no mistake. Settings of the profile by name; ``base``: another server; ``refused``, ``quiet``: statuses and parts of messages in
    the console that this test provokes.
    """
    contexts, requests, mistakes, allowed, bases, known = [], [], [], set(), {gallery.url}, ["status of", "willReadFrequently"]

    def go(
        path: str = "/", base: str | None = None, refused: tuple[int, ...] = (), quiet: tuple[str, ...] = (), **settings: Any
    ) -> Any:
        settings = {"viewport": {"width": 1100, "height": 800}, "reduced_motion": "reduce", **settings}
        context = browser.new_context(**settings)
        context.set_default_timeout(20_000)
        contexts.append(context)
        bases.add(base or gallery.url)
        allowed.update(refused)
        known.extend(quiet)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: mistakes.append(f"error: {error}"))
        page.on(
            "console",
            lambda message: (
                message.type in ("error", "warning") and not any(k in message.text for k in known) and mistakes.append(message.text)
            ),
        )
        page.on(
            "response",
            lambda answer: (
                answer.status >= 400 and answer.status not in allowed and mistakes.append(f"{answer.status} {answer.url}")
            ),
        )
        page.goto((base or gallery.url) + path)
        return page

    yield go
    for context in contexts:
        context.close()
    away = [url for url in requests if not url.startswith((*bases, "data:", "blob:"))]
    assert not away, away[:5]
    assert requests and not mistakes, mistakes[:5]
