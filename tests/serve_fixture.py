"""A small index in memory, models that compute nothing hard, and a server that runs in a thread.

``python tests/serve_fixture.py --port 8123`` serves them, for work on the pages.
"""

from __future__ import annotations

import base64
import hashlib
import io
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from diptych.core.capabilities import Adapter, Prompt
from diptych.core.errors import DiptychError
from diptych.core.sample import IMAGE, Turn
from diptych.core.streaming import Writing
from diptych.index.index import Answer, Cluster, Hit, Map, PictureFacts
from diptych.serve.app import create_app
from diptych.serve.settings import Settings

COLOURS = {"red": (210, 40, 40), "green": (30, 150, 60), "blue": (40, 70, 210), "yellow": (235, 215, 50), "white": (245, 245, 245),
           "black": (15, 15, 15), "purple": (140, 50, 170), "orange": (240, 140, 30)}  # fmt: skip
SHAPES = ("square", "circle", "triangle")
WORDS = [*COLOURS, *SHAPES]


def picture(colour: str, shape: str, shift: int = 0) -> np.ndarray:
    """A shape in a colour on grey, uint8 [96, 128, 3]."""
    image = Image.new("RGB", (128, 96), (128, 128, 128))
    draw, x = ImageDraw.Draw(image), 34 + shift % 20
    if shape == "square":
        draw.rectangle((x, 20, x + 56, 76), fill=COLOURS[colour])
    elif shape == "circle":
        draw.ellipse((x, 20, x + 56, 76), fill=COLOURS[colour])
    else:
        draw.polygon([(x, 76), (x + 56, 76), (x + 28, 20)], fill=COLOURS[colour])
    return np.asarray(image)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


class Colours(Adapter):
    """A dual encoder of colours and shapes: exact, quick, and the same in any batch."""

    name = "colours"
    key = "colours-1"
    capabilities = frozenset({"embed_image", "embed_text", "score", "score_all"})

    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []

    def embed_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors, float32 [N, 16]."""
        self.batches.append(("image", len(images)))
        rows = []
        for image in images:
            far = np.abs(image.astype(np.int32) - 128).sum(-1) > 60
            inside = image[far].mean(0) if far.any() else np.full(3, 128.0)
            near = [-float(np.abs(inside - np.array(c)).sum()) / 40 for c in COLOURS.values()]
            fill = far.mean() / max(1e-6, far.any(0).mean() * far.any(1).mean())
            shapes = [-abs(fill - full) * 20 for full in (1.0, 0.785, 0.5)]
            rows.append([*np.exp(near), *np.exp(shapes), *([0.05] * 5)])
        return unit(np.array(rows, dtype=np.float64).reshape(len(images), 16))

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, 16]."""
        self.batches.append(("text", len(texts)))
        rows = []
        for text in texts:
            noise = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=5).digest(), dtype=np.uint8) / 5000
            rows.append([*(float(word in text.lower()) for word in WORDS), *noise])
        return unit(np.array(rows, dtype=np.float64).reshape(len(texts), 16) + 1e-3)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """A token for each word of the vocabulary; 11 for any other."""
        return [[WORDS.index(w) if w in WORDS else len(WORDS) for w in text.lower().split()] for text in texts]

    def text_from(self, ids: Sequence[int]) -> str:
        """The words of ids."""
        return " ".join(WORDS[i] if i < len(WORDS) else "thing" for i in ids)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Captioner(Adapter):
    """Writes captions and reads no prompt."""

    name = "captioner"
    capabilities = frozenset({"generate"})

    def generate(self, images: Sequence[np.ndarray], prompt: Prompt = "", max_tokens: int = 32, **decoding: Any) -> list[str]:
        """A caption each."""
        return [f"a picture of {image.shape[1]} by {image.shape[0]}" for image in images]


class Parrot(Adapter):
    """Answers with what it saw and read, a word at a time; ``slow``: seconds for each word."""

    name = "parrot"
    key = "parrot-1"
    capabilities = frozenset({"generate", "prompt", "decoding"})

    def __init__(self, slow: float = 0.0):
        self.slow, self.steps, self.closed = slow, 0, 0

    def answer(self, images: Sequence[np.ndarray], turns: Sequence[Turn], seed: int) -> str:
        spoken = " / ".join(f"{t.role} {t.text.replace(IMAGE, '[picture]')}" for t in turns).replace("\n", " ")
        shown = ", ".join(f"{image.shape[1]}x{image.shape[0]}" for image in images)
        return f"seed {seed} saw {shown or 'nothing'} read {spoken} é 漢 😀 end"

    def stream(self, images: Sequence[np.ndarray], turns: Sequence[Turn], max_tokens: int = 128, **how: Any) -> Writing:
        words = self.answer(images, turns, how.get("seed", 0)).split(" ")
        if "fail" in words:
            raise DiptychError("the prompt cannot be used: it fails")
        ended = len(words) <= max_tokens

        def steps() -> Iterator[tuple[str, str]]:
            try:
                for k in range(min(len(words), max_tokens)):
                    time.sleep(self.slow)
                    self.steps += 1
                    text = " ".join(words[: k + 1])
                    if "break" in words[: k + 1]:
                        raise ValueError("a mistake of the program at /secret/place")
                    yield text, text
            finally:
                self.closed += 1

        return Writing(steps(), tuple(how.get("stop", ())), sum(len(t.text.split()) for t in turns), lambda: ended)

    def converse(self, images: Sequence[np.ndarray], turns: Sequence[Turn], max_tokens: int = 128, **how: Any) -> str:
        return "".join(self.stream(images, turns, max_tokens, **how))


class Asker(Adapter):
    """Answers one question about one picture, as models of other libraries do."""

    name = "asker"
    capabilities = frozenset({"generate", "prompt"})

    def generate(self, images: Sequence[np.ndarray], prompt: Prompt = "", max_tokens: int = 32, **decoding: Any) -> list[str]:
        """What was asked."""
        assert not decoding
        return [f"{prompt}? {image.shape[1]}" for image in images]


class StandIn:
    """What the server needs of an index."""

    path = "/secret/place/my.index"

    def __init__(self, model: Colours, copies: int = 2):
        self.pictures: dict[int, PictureFacts] = {}
        self.data: dict[int, bytes] = {}
        self.kept: dict[str, list[int]] = {}
        id = 0
        for colour in COLOURS:
            for shape in SHAPES:
                for k in range(copies):
                    id += 1
                    data = png(picture(colour, shape, 7 * k))
                    self.data[id] = data
                    self.pictures[id] = PictureFacts(
                        id, f"{colour}/{shape}-{k}.png", f"/secret/place/{colour}/{shape}-{k}.png", colour, 128, 96, len(data),
                        f"20{10 + id % 15}-05-01", f"a {colour} {shape}", {"shape": shape, "copy": k},
                    )  # fmt: skip
        self.vectors = model.embed_image([self.read(i) for i in self.pictures])
        self.facts = {
            "count": len(self.pictures), "broken": 0, "width": 16, "model": "colours", "folders": list(COLOURS), "store": "exact",
            "columns": {"shape": {"type": "text", "values": list(SHAPES)}, "copy": {"type": "number", "min": 0, "max": copies - 1}},
            "dates": ["2010-05-01", "2024-05-01"], "recall": None,
        }  # fmt: skip

    def picture(self, id: int) -> PictureFacts | None:
        return self.pictures.get(id)

    def read(self, id: int) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.file(id))).convert("RGB"))

    def file(self, id: int) -> bytes:
        if id not in self.data:
            raise DiptychError(f"/secret/place: no picture {id}")
        return self.data[id]

    def search(
        self, query: Any, model: Any, n: int = 20, offset: int = 0, filters: Mapping[str, Any] | None = None, fold: bool = True,
        cutoff: bool = True,
    ) -> Answer:  # fmt: skip
        filters = dict(filters or {})
        allowed = [f for f in self.pictures.values() if "folder" not in filters or f.folder == filters["folder"]]
        columns = filters.pop("columns", {})
        allowed = [f for f in allowed if all(f.columns.get(name) == value for name, value in columns.items())]
        if unknown := set(filters) - {"folder", "since", "until", "min_width", "words"}:
            raise DiptychError(f"filters: unknown key '{min(unknown)}'")
        rows = {id: row for row, id in enumerate(self.pictures)}
        q = np.zeros(16)
        for sign, texts, images, like in (
            (1.0, query.texts, query.images, query.like),
            (-0.5, query.without, (), query.without_like),
        ):
            if texts:
                q += sign * model.embed_text(list(texts)).sum(0)
            if images:
                q += sign * model.embed_image(list(images)).sum(0)
            for id in like:
                q += sign * self.vectors[rows[id]]
        q /= np.linalg.norm(q) + 1e-9
        scored = sorted(((float(self.vectors[rows[f.id]] @ q), f) for f in allowed), key=lambda pair: (-pair[0], pair[1].id))
        if cutoff and query.texts and not any(word in " ".join(query.texts).lower() for word in WORDS):
            return Answer((), True, "nothing here looks like that", len(allowed), 0.0)
        hits = [Hit(f.id, s, (s + 1) / 2, f, ()) for s, f in scored]
        if fold:
            first: dict[str, Hit] = {}
            for hit in hits:
                old = first.get(hit.picture.caption)
                first[hit.picture.caption] = (
                    hit if old is None else Hit(old.id, old.score, old.relevance, old.picture, (*old.duplicates, hit.id))
                )
            hits = list(first.values())
        return Answer(tuple(hits[offset : offset + n]), False, "", len(allowed), 0.0)

    def map(self, model: Any = None) -> Map:
        k = np.arange(len(self.pictures))
        places = np.stack([k % 8 / 8, k // 8 / 8], 1).astype(np.float32)
        return Map(
            np.array(list(self.pictures)), places, k % 8, tuple(Cluster(c, i / 8, 0.5, 6) for i, c in enumerate(COLOURS)), "PCA"
        )

    def select(self, name: str, ids: Sequence[int]) -> str:
        self.kept[name] = list(dict.fromkeys(ids))
        return f"index:{self.path}?selection={name}"

    def selections(self) -> dict[str, list[int]]:
        return dict(self.kept)

    def delete_selection(self, name: str) -> None:
        if name not in self.kept:
            raise DiptychError(f"no selection '{name}'")
        del self.kept[name]


@contextmanager
def running(app: Any, port: int = 0) -> Iterator[str]:
    """The app on a free port of loopback; gives its address."""
    import uvicorn

    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, args=([held],), daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"http://127.0.0.1:{held.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        held.close()


if __name__ == "__main__":
    model = Colours()
    app = create_app(StandIn(model), {"colours": model, "captioner": Captioner(), "parrot": Parrot(0.05)}, Settings())
    with running(app, int(sys.argv[sys.argv.index("--port") + 1]) if "--port" in sys.argv else 8123) as address:
        print(address, flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
