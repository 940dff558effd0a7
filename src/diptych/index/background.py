"""What queries and pictures are compared with: texts and pictures that have nothing to do with a collection."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources

import numpy as np

from diptych.core.errors import DiptychError

TAU = 0.5  # standard deviations: how much the best of many texts counts more than the others
ALIKE = 0.6  # texts of a higher cosine, after the mean of all texts is taken off, may mean the same and are no comparison
LEAST = 30  # pictures from which a mean and a spread are known
_WORD = re.compile(r"[^\W\d_]+")
_COMMON = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "with",
        "and",
        "or",
        "to",
        "from",
        "by",
        "for",
        "is",
        "are",
        "there",
        "this",
        "that",
        "it",
        "its",
        "picture",
        "photo",
        "photograph",
        "image",
        "drawing",
    ]
)


def unrelated_texts() -> list[str]:
    """The packaged captions and names of things."""
    lines = resources.files("diptych.index").joinpath("captions.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def content(text: str) -> frozenset[str]:
    """The words of a text that say what it is about, in lower case, without a plural's ending."""
    return frozenset(_singular(word) for word in _WORD.findall(text.lower()) if word not in _COMMON)


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word


class Background:
    """Texts and, if there are any, pictures from elsewhere.

    words: the texts; texts: their unit vectors, float32 [M, E]; pictures: unit vectors, float32 [B, E], B = 0 without any.
    """

    def __init__(self, words: Sequence[str], texts: np.ndarray, pictures: np.ndarray):
        if len(words) != len(texts) or texts.ndim != 2 or pictures.shape[1:] != texts.shape[1:]:
            raise DiptychError(f"background: {len(words)} texts, vectors {texts.shape} and {pictures.shape} do not belong together")
        if not (np.isfinite(texts).all() and np.isfinite(pictures).all()):
            raise DiptychError("background: vectors must be finite")
        self.words, self.texts, self.pictures = tuple(words), texts, pictures
        self.contents = [content(text) for text in words]
        self.two_sided = len(pictures) >= LEAST and len(texts) >= 2
        scores = texts.astype(np.float64) @ pictures.T.astype(np.float64) if self.two_sided else np.zeros((len(texts), 1))
        self.mean, self.spread = scores.mean(1), np.maximum(scores.std(1), 1e-6)
        centred = texts.astype(np.float64) - texts.mean(0, dtype=np.float64)
        self.centre = texts.mean(0, dtype=np.float64) if len(texts) else np.zeros(texts.shape[1])
        self.centred = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)

    def scores(self, query: np.ndarray, vectors: np.ndarray, text: str = "") -> np.ndarray:
        """How well each picture fits the query; float64 [K].

        query: unit vector [E]; vectors: of the pictures [K, E]; text: of the query, "" if it is not a text. Without pictures from
        elsewhere the cosine. Otherwise all cosines are put in standard deviations over these pictures, and the score is by how much
        the picture prefers the query, or background texts with all its words, to the other background texts: the difference of two
        soft maxima, τ·ln of the mean of exp(z/τ).
        """
        query, vectors = np.asarray(query, dtype=np.float64), np.asarray(vectors, dtype=np.float64)
        cosines: np.ndarray = vectors @ query
        if not self.two_sided:
            return cosines
        usual = self.pictures.astype(np.float64) @ query
        own = (cosines - usual.mean()) / max(float(usual.std()), 1e-6)
        wanted = content(text)
        mention = np.array([bool(wanted) and wanted <= words for words in self.contents])
        direction = query - self.centre
        near = self.centred @ (direction / max(float(np.linalg.norm(direction)), 1e-12)) > ALIKE
        others = ~mention & ~near
        if not others.any():
            return own
        texts = (vectors @ self.texts.T.astype(np.float64) - self.mean) / self.spread
        for_it = _soft_maximum(np.concatenate([own[:, None], texts[:, mention]], axis=1))
        result: np.ndarray = for_it - _soft_maximum(texts[:, others])
        return result


def _soft_maximum(scores: np.ndarray) -> np.ndarray:
    """τ·ln of the mean of exp(z/τ) over the last axis."""
    top = scores.max(-1, keepdims=True)
    result: np.ndarray = top[..., 0] + TAU * np.log(np.exp((scores - top) / TAU).mean(-1))
    return result
