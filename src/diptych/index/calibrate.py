"""How relevant a hit is, and whether there is nothing of the kind in a collection.

A cosine has no fixed meaning: some queries are near to every picture, some pictures near to every query. So each cosine is compared
with those of the same query to other pictures and of the same picture to other texts, and the best hit of a query with the best
hits of a thousand texts that have nothing to do with the collection: what so many of them reach by chance is not enough.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Image, Model
from diptych.core.errors import DiptychError
from diptych.core.files import write_atomically
from diptych.index.cutoff.background import Background, embedded_texts, unrelated_texts
from diptych.index.cutoff.chance import Chance

VERSION = 1
RATE = 0.05  # of false alarms: queries for what is not there that nevertheless get an answer
REFERENCE = 2000  # up to so many pictures a collection is calibrated again after each change
CHUNK = 64  # unrelated texts at a time
TOP = 20  # hits of a query that are judged, of which the best one decides

# (queries float32 [Q, E], k) → vectors of the k best pictures of each, float32 [Q, k, E]
Nearest = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """Whether the collection holds what a query is for.

    present: the best hit is better than chance. score: of the best hit (``Background.scores``); threshold: what it has to exceed.
    p: the share of unrelated queries with a best hit that is as good. relevance: of each hit, 0 to 1: 1 − the share of unrelated
    queries with a best hit that is as good as this one; float64 [K]. reason: in words, for the user.
    """

    present: bool
    score: float
    threshold: float
    p: float
    relevance: np.ndarray
    reason: str


class Calibration:
    """What the queries of a collection are compared with.

    background: unrelated texts, and pictures from elsewhere if there are any; best: the score of the best hit of each unrelated
    text, ascending, float64 [M]; total: how many pictures the collection has.
    """

    def __init__(self, background: Background, best: np.ndarray, total: int):
        self.background, self.best, self.total = background, np.sort(np.asarray(best, dtype=np.float64)), total
        self.by_chance, self.by_reading = Chance(background.absent), Chance(background.readers.absent)

    @property
    def texts(self) -> np.ndarray:
        """Vectors of the unrelated texts, float32 [M, E]."""
        return self.background.texts

    @classmethod
    def fit(
        cls,
        model: Model,
        vectors: np.ndarray,
        *,
        total: int | None = None,
        nearest: Nearest | None = None,
        texts: Sequence[str] | None = None,
        pictures: Sequence[Image] | None = None,
    ) -> Calibration:
        """Calibrates a collection.

        vectors: unit vectors of its pictures, float32 [N, E]: all of them, or a random sample of a larger one of ``total``
        pictures; then ``nearest`` searches in all of it. texts: unrelated ones (default: the packaged ones). pictures: from
        elsewhere, of the kind that the model was trained on, a few hundred; with captions of such pictures as ``texts`` each hit is
        then compared with what is usual for its query and for its picture. DiptychError if the model does not embed texts, for no
        vectors, and for vectors of another width than those of texts or that are not finite.
        """
        chosen = list(texts) if texts is not None else unrelated_texts()
        embedded = embedded_texts(model, chosen)
        outside = np.zeros((0, embedded.shape[1]), dtype=np.float32)
        if pictures is not None and len(pictures):
            outside = unit_rows(np.asarray(model.embed_image(pictures), dtype=np.float32))
        return cls.of_background(Background(chosen, embedded, outside), vectors, total=total, nearest=nearest)

    @classmethod
    def of_background(
        cls, background: Background, vectors: np.ndarray, *, total: int | None = None, nearest: Nearest | None = None
    ) -> Calibration:
        """The same from vectors that are known."""
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or not len(vectors):
            raise DiptychError("a calibration needs vectors of at least one picture")
        if background.texts.shape[1] != vectors.shape[1]:
            raise DiptychError(f"vectors of pictures have width {vectors.shape[1]}, those of texts {background.texts.shape[1]}")
        if not np.isfinite(vectors).all():
            raise DiptychError("vectors for a calibration must be finite")
        made = cls(background, np.zeros(0), total or len(vectors))
        if made.by_chance.known:
            return made
        k = min(TOP, made.total)
        find = nearest or (lambda queries, k: vectors[_best(queries @ vectors.T, k)])
        best: list[float] = []
        for start in range(0, len(background.texts), CHUNK):
            queries, words = background.texts[start : start + CHUNK], background.words[start : start + CHUNK]
            found = find(queries, k)
            best += [float(background.scores(q, f, w).max()) for q, f, w in zip(queries, found, words, strict=True)]
        made.best = np.sort(np.asarray(best, dtype=np.float64))
        return made

    def scores(self, query: np.ndarray, vectors: np.ndarray, text: str = "") -> np.ndarray:
        """How well each picture fits the query; float64 [K]: ``Background.scores``."""
        return self.background.scores(query, vectors, text)

    def judge(
        self, query: np.ndarray, vectors: np.ndarray, *, text: str = "", searched: int | None = None, rate: float = RATE
    ) -> Verdict:
        """Judges the best hits of a query.

        query: unit vector [E]; vectors: of its hits, float32 [K, E], best first; only the first ``TOP`` decide whether there is
        something. text: of the query, "" if it is not one text. searched: among how many pictures (default: the whole
        collection); among fewer, chance reaches less. rate: of queries for something that is not there, the share that may get an
        answer.
        """
        if not 0 < rate < 1:
            raise DiptychError(f"the rate of false alarms must be between 0 and 1, not {rate}")
        if not len(vectors):
            return Verdict(False, -np.inf, np.inf, 1.0, np.zeros(0), "there are no pictures to search in")
        scores = self.scores(query, vectors, text)
        return verdict_of(scores, self.chance(scores, searched, text), self.threshold(rate, searched, text))

    def chance(self, scores: np.ndarray, searched: int | None = None, text: str = "") -> np.ndarray:
        """The share of queries for what is not there with a best hit as good as ``scores``, among ``searched`` pictures; float64 of
        the same shape.

        From what the background's captions do not mention, if it has captions (``Chance``). Otherwise the rank among the unrelated
        texts' best hits in this collection; the maximum over a share of it is distributed as that power of the distribution.
        """
        if self.by_chance.known:
            return self._by_absent(text).of(scores, searched or self.total)
        below = np.searchsorted(self.best, scores, side="left")
        return 1 - (below / (len(self.best) + 1)) ** self._share(searched)

    def threshold(self, rate: float, searched: int | None = None, text: str = "") -> float:
        """The score that this share of queries for what is not there reaches; infinite if there are too few texts to know."""
        if self.by_chance.known:
            return self._by_absent(text).threshold(rate, searched or self.total)
        rank = int(np.ceil((len(self.best) + 1) * (1 - rate) ** (1 / self._share(searched))))
        return float(self.best[max(rank, 1) - 1]) if rank <= len(self.best) else np.inf

    def _by_absent(self, text: str) -> Chance:
        """What chance reaches with the kind of score that a text gets."""
        return self.by_reading if self.background.reads(text) else self.by_chance

    def _share(self, searched: int | None) -> float:
        return min(1.0, (searched or self.total) / self.total)

    def save(self, path: Path) -> None:
        """Writes an .npz file."""

        def write(p: Path) -> None:
            """All arrays, as one .npz."""
            with p.open("wb") as file:
                held = self.background.arrays()
                np.savez(file, version=VERSION, best=self.best, total=self.total, **held)  # type: ignore[arg-type]

        write_atomically(path, write)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Reads what ``save`` wrote. DiptychError if it is damaged or of a newer version."""
        try:
            with np.load(path, allow_pickle=False) as held:
                if int(held["version"]) > VERSION:
                    raise DiptychError(f"{path}: version {int(held['version'])} is newer than this Diptych; update it")
                return cls(Background.of_arrays(held), held["best"], int(held["total"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DiptychError(f"{path}: cannot be read as a calibration ({error}); run `diptych index` again") from None


def verdict_of(scores: np.ndarray, chance: np.ndarray, threshold: float) -> Verdict:
    """The verdict on hits with these scores, each with the chance that an unrelated query has a best hit as good; float [K]."""
    top = int(scores[:TOP].argmax())
    present = bool(scores[top] > threshold)
    percent = f"{100 * chance[top]:.0f} %" if chance[top] >= 0.01 else "less than 1 %"
    reason = f"{percent} of unrelated queries reach as much here"
    if not present:
        reason = f"nothing here looks like that: {reason}"
    return Verdict(present, float(scores[top]), threshold, float(chance[top]), 1 - chance, reason)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k largest of each row, best first; int [Q, k]."""
    order: np.ndarray = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order


def judge(
    calibration: Calibration | None,
    query: np.ndarray,
    vectors: np.ndarray,
    *,
    text: str = "",
    searched: int | None = None,
    rate: float = RATE,
) -> Verdict | None:
    """``Calibration.judge``; None without a calibration."""
    return None if calibration is None else calibration.judge(query, vectors, text=text, searched=searched, rate=rate)
