"""Models for curation, by address: they know the built-in world's colours, so what they should say is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diptych.core.capabilities import Adapter

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 80, 220), "grey": (128, 128, 128)}
NAMES = tuple(COLOURS)


def patch(colour: str, side: int = 64) -> np.ndarray:
    """A picture of one colour."""
    return np.full((side, side, 3), COLOURS[colour], np.uint8)


class ColourModel(Adapter):
    """Sees the mean colour of a picture and reads the first colour of a text; its embeddings, scores and captions say no more."""

    name = "colours"
    capabilities = frozenset({"embed_image", "embed_text", "score", "generate"})

    def embed_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        means = np.stack([image.reshape(-1, 3).mean(0) for image in images])
        distance = np.linalg.norm(means[:, None] - np.array(list(COLOURS.values()))[None], axis=-1)
        weights = np.exp(-distance / 40)
        return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), len(NAMES)), np.float32)
        for row, text in zip(rows, texts, strict=True):
            named = [i for i, name in enumerate(NAMES) if name in text.lower().split()]
            row[named[0] if named else 3] = 1
        return rows

    def generate(self, images: Sequence[np.ndarray], prompt: str | Sequence[str] = "", max_tokens: int = 32) -> list[str]:
        return [f"a picture of a {NAMES[i]} square on a wall" for i in self.embed_image(images).argmax(1)]


class Mute(ColourModel):
    capabilities = frozenset({"embed_image", "embed_text", "score"})
