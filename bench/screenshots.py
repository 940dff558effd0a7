"""Takes the pictures of the pages for the docs, from the server as it is.

``python -m bench.screenshots --model runs/lit --chat runs/coca [--keep DIR]``

Indexes pictures of the built-in world with a run that was trained on it (``diptych train lit --budget "4T flops"`` is enough), serves
them on loopback, drives Chromium through the pages and writes ``docs/images/*.png``, each below 150 kB. ``--chat``: a run that answers
or writes captions; without it the chat page is left out. ``--keep``: a directory for the index, which is then not made again.
``--only NAME …``: some of the pictures. Of your own: ``--data folder:my/photos --model conse --query "a dog on a beach"``.
"""

from __future__ import annotations

import argparse
import io
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.index.index import Index
from diptych.inference.load import load
from diptych.serve.app import create_app
from diptych.serve.settings import Settings

OUT = Path(__file__).parent.parent / "docs" / "images"
WIDE, PHONE = {"width": 1200, "height": 750}, {"width": 360, "height": 740}
MOST = 150_000  # bytes of a picture
COLOURS, FLAT = (256, 192, 128, 96, 72, 56), 24


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The application on a free port of loopback; gives its address."""
    import uvicorn

    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, args=([held],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{held.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        held.close()


def save(data: bytes, path: Path) -> None:
    """Writes a picture with as many colours as fit into ``MOST`` bytes. Those of text and buttons, which are the most frequent, stay
    exactly as they are.
    """
    image = Image.open(io.BytesIO(data)).convert("RGB")
    frequent = sorted(image.getcolors(1 << 24), reverse=True)[:FLAT]
    fixed = [value for _, colour in frequent for value in colour]
    for colours in COLOURS:
        found = image.quantize(colours - FLAT, method=Image.Quantize.MEDIANCUT, kmeans=1).getpalette()[: 3 * (colours - FLAT)]
        palette = Image.new("P", (1, 1))
        palette.putpalette([*fixed, *found])
        file = io.BytesIO()
        image.quantize(palette=palette, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        if file.tell() < MOST:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())
    print(f"{path.name}: {file.tell() // 1000} kB, {colours} colours", file=sys.stderr)


class Camera:
    """Opens pages in Chromium and photographs them."""

    def __init__(self, browser: Any, url: str, only: list[str] | None):
        self.browser, self.url, self.only = browser, url, only

    def shot(
        self, name: str, path: str, act: Callable[[Any], None] | None = None, *, phone: bool = False, dark: bool = False
    ) -> None:
        """``name``.png of a page, after ``act`` was done to it and all its pictures are there."""
        if self.only and name not in self.only:
            return
        context = self.browser.new_context(
            viewport=PHONE if phone else WIDE,
            device_scale_factor=1.5 if phone else 1,
            has_touch=phone,
            is_mobile=phone,
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.goto(self.url + path)
        page.wait_for_load_state("networkidle")
        if act is not None:
            act(page)
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(1500)  # pictures of the map arrive a few at a time
        page.mouse.move(0, 0)
        save(page.screenshot(), OUT / f"{name}.png")
        context.close()


def search(text: str, without: str = "") -> Callable[[Any], None]:
    """Writes a query and waits for the answer."""

    def act(page: Any) -> None:
        page.fill("#not", without)
        page.fill("#text", text)
        with page.expect_response("**/v1/search"):
            page.press("#text", "Enter")
        page.wait_for_selector(".tile, #nothing:not([hidden])")

    return act


def searching(camera: Camera, words: argparse.Namespace) -> None:
    """The pictures of the search page."""
    found = search(words.query)

    def filtered(page: Any) -> None:
        search(words.query, words.without)(page)
        tile = page.locator(".tile").nth(1)
        tile.hover()
        with page.expect_response("**/v1/search"):
            tile.get_by_role("button", name="More like this").click()
        page.wait_for_load_state("networkidle")
        page.locator(".tile a").first.focus()
        page.keyboard.press("Space")
        page.locator(".tile").nth(4).locator("a").click(modifiers=["Shift"])

    def opened(page: Any) -> None:
        found(page)
        page.locator(".tile a").first.click()
        page.wait_for_selector("#detail dd")

    def mapped(page: Any) -> None:
        page.wait_for_selector(".names button")
        page.locator(".names button").nth(1).click()
        page.wait_for_selector(".near img")

    camera.shot("search", "/", found)
    camera.shot("search-dark", "/", filtered, dark=True)
    camera.shot("search-phone", "/", found, phone=True)
    camera.shot("search-nothing", "/", search(words.absent))
    camera.shot("search-detail", "/", opened)
    camera.shot("search-map", "/#view=map", mapped)
    camera.shot("search-map-dark", "/#view=map", lambda page: page.wait_for_selector(".names button"), dark=True)


def talking(camera: Camera, words: argparse.Namespace, made: Callable[[], list[str]]) -> None:
    """The pictures of the chat page. made: files of pictures, where none are given."""
    if camera.only and not any(name.startswith("chat") for name in camera.only):
        return
    pictures = words.picture or made()

    def talk(page: Any) -> None:
        page.wait_for_selector("#model option", state="attached")
        for k, question in enumerate(words.question):
            if k < len(pictures):
                page.set_input_files("#file", pictures[k])
                page.wait_for_selector("#held li")
            page.fill("#text", question)
            page.press("#text", "Enter")
            page.wait_for_selector(".turn.assistant .foot >> nth=" + str(k))

    camera.shot("chat", "/chat", talk)
    camera.shot("chat-phone-dark", "/chat", talk, phone=True, dark=True)


def indexed(place: Path, address: str, model: Any, name: str, limit: int | None) -> Index:
    """The index in ``place``, made if it is not there."""
    index = Index.open(place, model) if (place / "index.json").exists() else Index.create(place, address, model, name, limit=limit)
    index.update(model, lambda done, total: print(f"\r{done} of {total} pictures", end="", file=sys.stderr))
    print(file=sys.stderr)
    return index


def scenes(place: Path, model: Any, count: int) -> list[str]:
    """Pictures of the built-in world for the chat, as files: the first ones that the model writes a right caption for."""
    from diptych.data.source import usable_samples
    from diptych.data.sources import open_source

    paths: list[str] = []
    for sample in usable_samples(open_source("scenes:small"), 100):
        if len(paths) == count:
            break
        if model.generate([sample.image])[0].strip() in sample.captions:
            paths.append(str(place / f"scene-{len(paths) + 1}.png"))
            image = Image.fromarray(sample.image)
            image.resize((5 * image.width, 5 * image.height), Image.Resampling.LANCZOS).save(paths[-1])
    return paths


def main() -> None:
    """Takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="scenes:small?size=224")
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--model", required=True)
    parser.add_argument("--chat", help="a run that answers or writes captions")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--query", default="an orange cat")
    parser.add_argument("--without", default="house")
    parser.add_argument("--absent", default="a zebra")
    parser.add_argument("--question", nargs="*", default=[""], help="asked in turn; without a question the model writes a caption")
    parser.add_argument("--picture", nargs="*", help="pictures of the questions; default: of the built-in world")
    wanted = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise DiptychError("no Chromium on this machine")
    driver = need("playwright.sync_api", extra="browser", what="pictures of the pages")
    model = load(wanted.model)
    models = {Path(wanted.model).name: model}
    if wanted.chat:
        models[Path(wanted.chat).name] = load(wanted.chat)
    with tempfile.TemporaryDirectory() as temporary:
        place = wanted.keep or Path(temporary) / "pictures.index"
        index = indexed(place, wanted.data, model, wanted.model, wanted.limit)
        app = create_app(index, models, Settings(timeout=600), search_model=Path(wanted.model).name)
        with served(app) as url, driver.sync_playwright() as player:
            browser = player.chromium.launch(executable_path=program, args=["--no-sandbox"])
            camera = Camera(browser, url, wanted.only)
            searching(camera, wanted)
            if wanted.chat:
                talking(camera, wanted, lambda: scenes(Path(temporary), models[Path(wanted.chat).name], len(wanted.question)))
            browser.close()


if __name__ == "__main__":
    try:
        main()
    except DiptychError as error:
        raise SystemExit(f"error: {error}") from None
