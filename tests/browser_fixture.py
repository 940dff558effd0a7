"""A gallery of drawn pictures with a real index, a model that sees colours and shapes, one that talks, a server and a browser.

``python tests/browser_fixture.py`` serves the gallery, for work on the pages.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from diptych.core.capabilities import Adapter, Prompt, prompts_for
from diptych.core.errors import DiptychError
from diptych.core.sample import IMAGE, Turn
from diptych.core.streaming import Writing
from diptych.serve.app import create_app
from diptych.serve.settings import Settings
from serve_fixture import running

COLOURS = {"red": (214, 45, 45), "green": (40, 160, 70), "blue": (45, 80, 215), "yellow": (235, 210, 50), "purple": (150, 55, 180), "orange": (240, 135, 25)}  # fmt: skip
SHAPES = ("square", "circle", "triangle")
SIZES = ((160, 120), (120, 160), (220, 120), (140, 140))
EACH = 5  # pictures of each colour and shape
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> a red square"
HEBREW = "ריבוע אדום על רקע אפור"


def drawn(colour: str, shape: str, size: tuple[int, int], seed: int) -> Image.Image:
    """A shape in a colour before grey fields, which differ from picture to picture."""
    rng = random.Random(seed)
    grey = Image.frombytes("L", (6, 6), bytes(rng.randrange(70, 190) for _ in range(36))).resize(size, Image.Resampling.BICUBIC)
    image = grey.convert("RGB")
    draw, side = ImageDraw.Draw(image), int(min(size) * rng.uniform(0.45, 0.6))
    x, y = rng.randrange(4, size[0] - side - 4), rng.randrange(4, size[1] - side - 4)
    box = (x, y, x + side, y + side)
    if shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    elif shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    else:
        draw.polygon([(x, y + side), (x + side, y + side), (x + side // 2, y)], fill=COLOURS[colour])
    return image


def make_gallery(folder: Path) -> None:
    """The pictures, a table of captions and columns, and near-duplicates of some."""
    rows, number = [], 0
    for colour in COLOURS:
        for shape in SHAPES:
            for k in range(EACH):
                number += 1
                name = f"{colour}/{shape}-{k}.png"
                image = drawn(colour, shape, SIZES[number % len(SIZES)], number)
                (folder / colour).mkdir(parents=True, exist_ok=True)
                image.save(folder / name)
                caption = {("red", "square", 0): HOSTILE, ("red", "square", 1): HEBREW}.get(
                    (colour, shape, k), f"a {colour} {shape}"
                )
                rows.append([name, caption, shape, number, "yes" if k else "no"])
                if shape == "circle" and k == 0:  # two copies, larger
                    for c in range(2):
                        copy = f"{colour}/{shape}-{k}-copy{c}.png"
                        image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC).save(folder / copy)
                        rows.append([copy, caption, shape, number, "copy"])
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "caption", "shape", "number", "original"], *rows])


class Seer(Adapter):
    """A dual encoder of colours and shapes: it looks at what is coloured, and at how much of its frame is filled."""

    name = "seer"
    key = "seer-1"
    capabilities = frozenset({"embed_image", "embed_text", "score", "score_all"})
    words = (*COLOURS, *SHAPES)

    def embed_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors, float32 [N, 12]."""
        rows = np.zeros((len(images), 12))
        for row, image in zip(rows, images, strict=True):
            pixels = image.astype(np.int32)
            mask = pixels.max(-1) - pixels.min(-1) > 70
            if not mask.any():
                row[11] = 1
                continue
            colour = pixels[mask].mean(0)
            row[:6] = np.exp([-float(np.abs(colour - np.array(c)).sum()) / 60 for c in COLOURS.values()])
            ys, xs = np.nonzero(mask)
            fill = mask.sum() / ((np.ptp(ys) + 1) * (np.ptp(xs) + 1))
            row[6:9] = np.exp([-abs(fill - full) * 25 for full in (1.0, 0.785, 0.5)])
            row[9] = 0.1 + 0.1 * float(pixels.mean()) / 255
        return unit(rows)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, 12]. Words that are not known make a text like no picture."""
        rows = np.zeros((len(texts), 12))
        for row, text in zip(rows, texts, strict=True):
            words = re.findall(r"\w+", text.lower())
            row[:9] = [float(word in words) for word in self.words]
            row[10] = 2.0 * sum(word not in self.words and len(word) > 2 for word in words)
        return unit(rows)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)


class Talker(Adapter):
    """Answers by the last question: with boxes, with an error, slowly, or with what it was given."""

    name = "talker"
    key = "talker-1"
    capabilities = frozenset({"generate", "prompt", "decoding"})
    delay = 0.01  # seconds of each word

    def answer(self, images: int, question: str) -> str:
        """The whole answer."""
        if "box" in question:
            return "A <ref>shape</ref><box>0.1,0.2,0.6,0.8</box> and another one at [0.5, 0.1, 0.9, 0.4]."
        if "long" in question:
            return " ".join(f"word{k}" for k in range(400))
        return f"You asked: {question} There {'is' if images == 1 else 'are'} {images} {'picture' if images == 1 else 'pictures'}."

    def converse(self, images: Sequence[np.ndarray], turns: Sequence[Turn], max_tokens: int = 128, **decoding: Any) -> str:
        """The next turn."""
        return "".join(self.stream(images, turns, max_tokens, **decoding))

    def stream(self, images: Sequence[np.ndarray], turns: Sequence[Turn], max_tokens: int = 128, **decoding: Any) -> Writing:
        """The next turn, word by word."""
        question = turns[-1].text.replace(IMAGE, "").strip()
        if "make an error" in question.splitlines()[-1]:
            raise DiptychError("the picture has 90,000,000 pixels; at most 50,000,000")
        words = re.findall(r"\S+\s*", self.answer(len(images), question))[:max_tokens]

        def steps() -> Iterator[tuple[str, str]]:
            for k in range(len(words)):
                time.sleep(self.delay)
                text = "".join(words[: k + 1])
                yield text, text

        return Writing(steps(), decoding.get("stop", ()), 7, lambda: True)

    def generate(self, images: Sequence[np.ndarray], prompt: Prompt = "", max_tokens: int = 32, **decoding: Any) -> list[str]:
        """One text per image."""
        return [self.answer(1, each) for each in prompts_for(prompt, len(images))]


def until(page: Any, expression: str, seconds: float = 30.0) -> None:
    """Waits until an expression holds on a page. Playwright's own wait needs ``eval``, which the policy of the pages forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"it never held: {expression}"
        page.wait_for_timeout(20)


def names(page: Any) -> list[str]:
    """The pictures of the grid, by their names with folders."""
    return page.eval_on_selector_all(".tile .name", "nodes => nodes.map((node) => node.title)")


def search(page: Any, text: str) -> None:
    """Writes a text and presses Enter; waits for the answer."""
    page.fill("#text", text)
    answered(page, lambda: page.press("#text", "Enter"))


def answered(page: Any, act: Any) -> dict[str, Any]:
    """Does something that searches; the body of the request, when the page shows the answer."""
    with page.expect_response("**/v1/search") as found:
        act()
    until(page, "!document.querySelector('#main').hasAttribute('aria-busy')")
    return json.loads(found.value.request.post_data)


def started(page: Any) -> Any:
    """The page with the pictures that it begins with."""
    page.wait_for_selector(".tile")
    return page


def picture(*parts: tuple[str, str]) -> dict[str, Any]:
    """A file of pictures next to each other, as playwright uploads it."""
    image = Image.new("RGB", (160 * len(parts), 120))
    for k, (colour, shape) in enumerate(parts):
        image.paste(drawn(colour, shape, (160, 120), 1000 + k), (160 * k, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"name": "mine.png", "mimeType": "image/png", "buffer": file.getvalue()}


def opened(visit: Any, **settings: Any) -> Any:
    """The chat page with its models."""
    page = visit("/chat", **settings)
    until(page, "document.querySelector('#model').options.length > 0")
    return page


def send(page: Any, text: str, wait: bool = True) -> dict[str, Any]:
    """Sends a message; the body of the request. wait: until the answer is complete."""
    page.fill("#text", text)
    with page.expect_request("**/v1/chat/completions") as found:
        page.press("#text", "Enter")
    if wait:
        until(page, "!document.body.hasAttribute('data-busy')")
    body: dict[str, Any] = json.loads(found.value.post_data)
    return body


def make_index(folder: Path, pictures: Path) -> tuple[Any, Seer]:
    """The index of a gallery, and its model."""
    from diptych.index.index import Index

    model = Seer()
    index = Index.create(folder, f"folder:{pictures}", model, "seer")
    index.update(model)
    index.map(model)  # kept; and scikit-learn is not imported by a thread of the server, while playwright holds this one
    return index, model


def gallery_app(place: Path, settings: Settings | None = None) -> Any:
    """The application over a gallery that is made in ``place``, with the two models."""
    pictures = place / "pictures"
    make_gallery(pictures)
    index, model = make_index(place / "gallery.index", pictures)
    return create_app(index, {"seer": model, "talker": Talker()}, settings or Settings())


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as folder,
        running(gallery_app(Path(folder)), int(sys.argv[1]) if len(sys.argv) > 1 else 8124) as address,
    ):
        print(address, flush=True)
        while True:
            time.sleep(1)
