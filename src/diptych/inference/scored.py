"""A model that only scores texts for images, seen as one that embeds images: by its scores for a list of texts.

So a model that answers or matches (a likelihood, a matching score) can name classes, and be adapted to them, like one with vectors.

Shapes: N images, C texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Adapter, Image, Model, one_or_many
from diptych.core.errors import DiptychError


class ScoreVectors(Adapter):
    """An image's vector: the model's scores for the texts minus their mean, as a unit vector. The vector of text c is the c-th unit
    vector of the basis, so that cosines are in the order of the scores.
    """

    def __init__(self, model: Model, texts: Sequence[str]):
        if "score" not in model.capabilities:
            raise DiptychError(f"model '{model.name}' cannot embed_image or score; it can: {', '.join(sorted(model.capabilities))}")
        self.model, self.texts = model, tuple(texts)
        self.name = model.name
        self.capabilities = model.capabilities | {"embed_image", "embed_text"}
        own = getattr(model, "key", None)
        digest = hashlib.blake2b(repr(self.texts).encode(), digest_size=6).hexdigest()
        self.key = None if own is None else f"{own}-scores-{digest}"

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """float32 [N, C]."""
        scores = np.asarray(self.model.score(one_or_many(images), list(self.texts)), dtype=np.float64)
        return unit_rows(scores - scores.mean(1, keepdims=True)).astype(np.float32)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [M, C], of texts in the list. DiptychError for others."""
        places = {text: i for i, text in enumerate(self.texts)}
        if unknown := [text for text in one_or_many(texts) if text not in places]:
            raise DiptychError(f"model '{self.name}' has scores for {len(places)} texts only, not for '{unknown[0]}'")
        rows: np.ndarray = np.eye(len(self.texts), dtype=np.float32)[[places[text] for text in one_or_many(texts)]]
        return rows

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """The model's own scores."""
        return self.model.score(images, texts, pairs)


def embedding(model: Model, texts: Sequence[str]) -> Model:
    """The model itself if it embeds images; else by its scores for the texts. DiptychError if it can do neither."""
    return model if "embed_image" in model.capabilities else ScoreVectors(model, texts)
