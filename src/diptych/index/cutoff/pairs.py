"""What the scores of a model that reads each picture with each text are compared with: a matching head, a likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diptych.core.capabilities import Image, Model, sides_of
from diptych.core.errors import DiptychError
from diptych.data.image import shrink
from diptych.index.cutoff.background import LEAST, Captioned, preference
from diptych.index.cutoff.words import content

PICTURES, TEXTS, QUERIES = 100, 60, 40  # of a background; each picture is compared with each text
SIDE = 512  # pixels of the shorter side to which pictures from elsewhere are scaled down, for the memory
REMEMBERED = 1000  # queries that are remembered with what is usual for them


class PairBackground:
    """Captions and pictures from elsewhere, with their scores by one model.

    words: captions; images: pictures; usual: the score of each caption for each picture, float32 [B, M]; absent: of words for
    pictures that do not show them (``Background``), float32 [Q, B].
    """

    def __init__(self, model: Model, words: Sequence[str], images: Sequence[Image], usual: np.ndarray, absent: np.ndarray):
        if usual.shape != (len(images), len(words)) or not np.isfinite(usual).all():
            raise DiptychError(f"background: scores {list(usual.shape)} of {len(images)} pictures and {len(words)} captions")
        self.model, self.words, self.images, self.usual, self.absent = model, tuple(words), list(images), usual, absent
        self.contents = [content(text) for text in words]
        self.mean, self.spread = usual.mean(0, dtype=np.float64), np.maximum(usual.std(0, dtype=np.float64), 1e-6)
        self._usual: dict[str, tuple[float, float]] = {}

    @classmethod
    def fit(cls, model: Model, data: Captioned) -> PairBackground:
        """Compares the first pictures of a background's data with its captions and with what they do not show. DiptychError for
        fewer than 30 pictures with captions, and for scores that are not finite.
        """
        images, words = data.images[:PICTURES], data.words[:TEXTS]
        if len(images) < LEAST:
            raise DiptychError(f"{data.address}: {len(images)} pictures with captions; a background needs at least {LEAST}")
        made = cls(model, words, images, np.asarray(_scores(model, images, words), np.float32), np.zeros((0, len(images))))
        rows = []
        for word in data.names()[:QUERIES]:
            own = _scores(model, images, [word])[:, 0]
            made._usual[word] = float(own.mean()), float(own.std())
            shows = np.array([content(word) <= spoken for spoken in data.spoken[: len(images)]])
            rows.append(np.where(shows, np.nan, made._preferred(word, own, made.usual)))
        made.absent = np.array(rows, np.float32).reshape(len(rows), len(images))
        return made

    def scores(self, images: Sequence[Image], text: str) -> np.ndarray:
        """How well each picture fits a text, float64 [K]: as ``Background.scores``, with scores of pairs for cosines."""
        both = _scores(self.model, images, [text, *self.words])
        return self._preferred(text, both[:, 0], both[:, 1:])

    def arrays(self) -> dict[str, np.ndarray]:
        """What was computed, for a file."""
        return {"usual": self.usual, "absent": self.absent}

    @classmethod
    def of_arrays(cls, model: Model, data: Captioned, held: Mapping[str, np.ndarray]) -> PairBackground:
        """From what ``arrays`` returned. KeyError, ValueError or DiptychError if it is damaged."""
        return cls(model, data.words[:TEXTS], data.images[:PICTURES], held["usual"], held["absent"])

    def _preferred(self, text: str, own: np.ndarray, texts: np.ndarray) -> np.ndarray:
        if text not in self._usual:
            if len(self._usual) >= REMEMBERED:
                self._usual.pop(next(iter(self._usual)))
            usual = _scores(self.model, self.images, [text])
            self._usual[text] = float(usual.mean()), float(usual.std())
        mean, spread = self._usual[text]
        wanted = content(text)
        mentions = np.array([bool(wanted) and wanted <= words for words in self.contents], bool)
        z = (own.astype(np.float64) - mean) / max(spread, 1e-6)
        return preference(z, (texts - self.mean) / self.spread, mentions, np.zeros(len(self.words), bool))


def _scores(model: Model, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
    """The scores by which pictures are chosen for a text, float [N, M]. DiptychError if one is not finite."""
    scores = sides_of(model, images, texts)[1]
    if not np.isfinite(scores).all():
        raise DiptychError(f"model '{model.name}': a score of a picture and a text is not finite")
    return scores


def small(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pictures with at most ``SIDE`` pixels on the shorter side, uint8 [H, W, 3]."""
    return [shrink(image, SIDE) for image in images]
