"""A second model that judges the first hits of a search, and that has a cut-off of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Image, Model, in_words, sides_of
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from diptych.index.calibrate import RATE, Verdict, verdict_of
from diptych.index.cutoff import background as outside
from diptych.index.cutoff import pairs
from diptych.index.cutoff.background import LEAST, Background, Captioned, embedded_texts
from diptych.index.cutoff.chance import Chance
from diptych.index.cutoff.kept import kept
from diptych.index.cutoff.pairs import PairBackground, small

PROBES = 8  # pictures and captions that show whether a model's scores are its cosines
EQUAL = 1e-3  # between a score and a cosine
BOTH = {"embed_image", "embed_text"}


class Reranker:
    """Scores pictures for words by one model, compared with what it says of pictures and captions from elsewhere.

    background: of vectors, or of a model that compares pairs (a matching head, the likelihood of a caption, late interaction).
    None: the raw scores, without a cut-off.
    """

    def __init__(self, model: Model, background: Background | PairBackground | None):
        self.model, self.background = model, background
        self.chance = Chance(np.zeros((0, 1)) if background is None else background.absent)
        self.by_reading = Chance(background.readers.absent) if isinstance(background, Background) else self.chance
        self._lock = threading.Lock()  # a model reads one search at a time

    @classmethod
    def of(cls, model: Model, data: str | None) -> Reranker:
        """Compares a model with data that have captions, best those that it was trained on; once for each model (``kept``).

        data: their address; None: there are none, and hits are put in order without a cut-off. DiptychError for a model that
        neither scores pairs nor embeds both sides, and for data with too few captions.
        """
        if "score" not in model.capabilities and not model.capabilities >= BOTH:
            raise DiptychError(f"rerank: model '{model.name}' cannot {in_words(['score'])}")
        if data is None:
            return cls(model, None)
        about = f"data {data} {open_source(data).fingerprint()}"
        if model.capabilities >= BOTH and (
            "score" not in model.capabilities or _by_vectors(model, Captioned.read(data, LEAST, LEAST, small))
        ):
            about += f" {outside.PICTURES} {outside.TEXTS}"
            made = kept(model, about, lambda: outside.captioned(data, model), Background.arrays, Background.of_arrays)
            return cls(model, made if len(made.absent) else None)
        read = Captioned.read(data, pairs.PICTURES, pairs.TEXTS, small)
        compared = kept(
            model,
            f"{about} pairs {pairs.PICTURES} {pairs.TEXTS}",
            lambda: PairBackground.fit(model, read),
            PairBackground.arrays,
            lambda held: PairBackground.of_arrays(model, read, held),
        )
        return cls(model, compared if len(compared.absent) else None)

    @property
    def judges(self) -> bool:
        """Whether it says when there is nothing."""
        return self.chance.known

    def scores(self, images: Sequence[Image], texts: Sequence[str], without: Sequence[str] = (), weight: float = 0.5) -> np.ndarray:
        """How well each picture fits the texts together, minus ``weight`` times the mean of what is not wanted; float64 [K]."""
        with self._lock:
            if len(texts) == 1 and not without:
                return self._of(images, texts[0], single=True)
            wanted = np.mean([self._of(images, text) for text in texts], axis=0)
            if without:
                wanted = wanted - weight * np.mean([self._of(images, text) for text in without], axis=0)
        return np.asarray(wanted, np.float64)

    def judge(self, scores: np.ndarray, searched: int, text: str = "", rate: float = RATE) -> Verdict:
        """The verdict on the first hits by their scores. searched: among how many pictures the first model searched: chance reaches
        at most what it would if all of them had been scored. text: of the query, "" if it is not one text alone.
        """
        if not self.judges:
            raise DiptychError(f"rerank: model '{self.model.name}' was compared with no data that have captions")
        reads = isinstance(self.background, Background) and self.background.reads(text)
        chance = self.by_reading if reads else self.chance
        return verdict_of(scores, chance.of(scores, searched), chance.threshold(rate, searched))

    def _of(self, images: Sequence[Image], text: str, single: bool = False) -> np.ndarray:
        if isinstance(self.background, PairBackground):
            return self.background.scores(images, text)
        if self.background is None:
            return np.asarray(sides_of(self.model, images, [text])[1][:, 0], np.float64)
        vectors = unit_rows(np.asarray(self.model.embed_image(images), np.float32))
        query = embedded_texts(self.model, [text])[0]
        return (self.background.scores if single else self.background.preferred)(query, vectors, text)


def _by_vectors(model: Model, data: Captioned) -> bool:
    """Whether a model scores by the cosines of its vectors."""
    images, texts = data.images[:PROBES], data.words[:PROBES]
    cosines = unit_rows(np.asarray(model.embed_image(images))) @ unit_rows(np.asarray(model.embed_text(texts))).T
    return bool(np.abs(sides_of(model, images, texts)[1] - cosines).max() < EQUAL)
