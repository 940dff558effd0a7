"""Class folders of pictures of one colour with noise, and ways that are built to be caught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from colours_fixture import COLOURS, ColourModel
from diptych.choose.ways import Support, Way
from diptych.core.capabilities import Adapter
from diptych.inference.heads import Head, Linear

MODEL = "colours_fixture:ColourModel"


def picture(colour: str, seed: int, side: int = 32) -> np.ndarray:
    """A blurred pattern of its own, tinted: pictures of one colour are no near-duplicates."""
    rng = np.random.default_rng([seed, list(COLOURS).index(colour)])
    pattern = np.kron(rng.uniform(0.55, 1.0, (8, 8)), np.ones((side // 8, side // 8)))
    return (np.array(COLOURS[colour])[None, None] * pattern[..., None]).clip(0, 255).astype(np.uint8)


def class_folders(folder: Path, each: int = 20, colours: Sequence[str] = ("red", "green", "blue", "grey")) -> Path:
    for colour in colours:
        (folder / colour).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            Image.fromarray(picture(colour, i)).save(folder / colour / f"{i:03d}.png")
    return folder


class Counting(ColourModel):
    """Counts the pictures that it sees; its vectors can be kept."""

    key = "counting-colours"
    seen = 0

    def embed_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        type(self).seen += len(images)
        return super().embed_image(images)


class Blind(ColourModel):
    """Embeds no texts."""

    name = "images alone"
    capabilities = frozenset({"embed_image"})


class Scores(Adapter):
    """Scores texts like a likelihood, in nats, and has no vectors."""

    name = "scores"
    key = "scores-1"
    capabilities = frozenset({"score"})

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        model = ColourModel()
        return -40 + 7 * model.embed_image(images) @ model.embed_text(texts).T


@dataclass(frozen=True)
class RandomHeads(Way):
    """Heads drawn at random, which learn nothing: settings that are good on some pictures are so by chance."""

    name = "random-heads"
    about = "for tests"
    draw: int = 0

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        return [{"draw": i} for i in range(20)]

    def fit(self, support: Support) -> Head:
        weight = np.random.default_rng(self.draw).normal(size=(support.classes, support.x.shape[1]))
        return Linear(weight, np.zeros(support.classes))


@dataclass(frozen=True)
class Memory(Way):
    """Remembers its training pictures, and names others at random."""

    name = "memory"
    about = "for tests"

    def fit(self, support: Support) -> Head:
        return Remembered(support.x, support.y, support.classes)


@dataclass(frozen=True)
class Remembered(Head):
    x: np.ndarray
    y: np.ndarray
    classes: int

    def logits(self, x: np.ndarray) -> np.ndarray:
        out = np.random.default_rng(len(x)).normal(size=(len(x), self.classes))
        for row, vector in zip(out, x, strict=True):
            same = np.flatnonzero((self.x == vector).all(1))
            if len(same):
                row[self.y[same[0]]] += 100
        return out
