"""Folders of small pictures, and a model without torch of which the vectors are known: it sees colours where they are."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.core.capabilities import Adapter
from diptych.index.index import Index

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 80, 220), "yellow": (230, 210, 40), "white": (245, 245, 245)}
LONG_AGO = 1_600_000_000


class Pixels(Adapter):
    """A picture is the colours of 2 × 4 fields; a text is a picture of the colours that it names, or noise of its own."""

    name = "pixels"
    capabilities = frozenset({"embed_image", "embed_text", "score"})

    def __init__(self, key: str | None = "pixels-1", shift: float = 0.0, delay: float = 0.0):
        self.key, self.shift, self.delay = key, shift, delay
        self.seen = 0  # pictures that were embedded

    def embed_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        self.seen += len(images)
        time.sleep(self.delay * len(images))
        small = [np.asarray(Image.fromarray(image).resize((4, 2), Image.Resampling.BOX), np.float64) for image in images]
        return unit(np.stack(small).reshape(len(small), -1) / 255 - 0.45 + self.shift)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        rows = []
        for text in texts:
            named = [np.array(rgb) / 255 - 0.45 for word, rgb in COLOURS.items() if word in text.split()]
            noise = np.random.default_rng(list(text.encode())).normal(size=24)
            rows.append(np.tile(np.mean(named, 0), 8) if named else noise)
        return unit(np.stack(rows))


class Blind(Pixels):
    """A model without vectors of pictures."""

    capabilities = frozenset({"embed_text"})


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def paint(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """A picture of random coloured fields, unlike that of any other seed."""
    fields = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(fields).resize((width, height), Image.Resampling.BICUBIC))


def put(path: Path, picture: np.ndarray | int, old: bool = True, **options: object) -> Path:
    """Writes a picture (or that of a seed) as a file; ``old``: as one that was written long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(paint(picture) if isinstance(picture, int) else picture).save(path, **options)
    if old:
        os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def fill(folder: Path, n: int, first: int = 0) -> Path:
    """n pictures in two folders."""
    for seed in range(first, first + n):
        put(folder / ("a" if seed % 2 else "b") / f"{seed:03d}.png", seed)
    return folder


def made(path: Path, address: str | Path | list[str], model: Pixels | None = None, **more: object) -> Index:
    """An index that is up to date."""
    model = model or Pixels()
    index = Index.create(path, address if isinstance(address, list) else str(address), model, "index_fixture:Pixels", **more)  # type: ignore[arg-type]
    index.update(model)
    return index


def ids_by_name(index: Index) -> dict[str, int]:
    return dict(index.catalog.rows("SELECT name, id FROM pictures"))  # type: ignore[arg-type]


def content(index: Index) -> dict[str, tuple[object, ...]]:
    """All that an index holds of each picture, by name."""
    names = "name, id, digest, bytes, width, height, date, caption, columns, leader, state, reason"
    rows = index.catalog.rows(f"SELECT {names} FROM pictures ORDER BY name")
    good = np.array([row[1] for row in rows if row[10] == "ok"], np.int64)
    vectors = dict(zip(good.tolist(), (v.tobytes() for v in index.store.vectors(good)), strict=True))
    assert sorted(good.tolist()) == index.store.ids().tolist()
    return {row[0]: (*row[1:], vectors.get(row[1])) for row in rows}
