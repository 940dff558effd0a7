"""How relevant a hit is, and whether there is nothing of the kind in a collection.

A cosine has no fixed meaning: some queries are near to every picture, some pictures near to every query. So each cosine is compared
with those of the same query to other pictures and of the same picture to other texts, and the best hit of a query with the best
hits of a thousand texts that have nothing to do with the collection: what so many of them reach by chance is not enough.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.core.files import write_atomically

VERSION = 1
RATE = 0.05  # of false alarms: queries for what is not there that nevertheless get an answer
REFERENCE = 2000  # pictures that a query is compared with, at most
TOP = 20  # hits of a query that are judged, of which the best one decides
ALIKE = 0.95  # texts of a higher cosine are the same text in other words, and no comparison

# (queries float32 [Q, E], k) → vectors of the k best pictures of each, float32 [Q, k, E]
Nearest = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """Whether the collection holds what a query is for.

    present: the best hit is better than chance. score: of the best hit, in standard deviations; threshold: what it has to exceed.
    p: the share of unrelated queries with a best hit that is as good. relevance: of each hit, 0 to 1: 1 − the share of unrelated
    queries with a best hit that is as good as this one; float64 [K]. reason: in words, for the user.
    """

    present: bool
    score: float
    threshold: float
    p: float
    relevance: np.ndarray
    reason: str


def unrelated_texts() -> list[str]:
    """The packaged captions and names of things."""
    lines = resources.files("diptych.index").joinpath("captions.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


class Calibration:
    """What queries of a collection are compared with.

    texts: unit vectors of unrelated texts, float32 [M, E]; pictures: of the collection or a sample of it, float32 [R, E]; best: the
    score of the best hit of each unrelated text, ascending, float64 [M]; total: how many pictures the collection has.
    """

    def __init__(self, texts: np.ndarray, pictures: np.ndarray, best: np.ndarray, total: int):
        self.texts, self.pictures, self.best, self.total = texts, pictures, np.sort(best), total
        # The mean over pictures of each text's cosine, and the mean of these.
        self.of_text = texts.astype(np.float64) @ pictures.mean(0, dtype=np.float64)
        self.centre = float(self.of_text.mean()) if len(texts) else 0.0

    @classmethod
    def fit(
        cls,
        model: Model,
        vectors: np.ndarray,
        *,
        total: int | None = None,
        nearest: Nearest | None = None,
        texts: Sequence[str] | None = None,
    ) -> Calibration:
        """Calibrates a collection.

        vectors: unit vectors of its pictures, float32 [N, E]: all of them, or a random sample of a larger one of ``total``
        pictures; then ``nearest`` searches in all of it. texts: unrelated ones (default: the packaged ones). DiptychError if the
        model does not embed texts, for no vectors, and for vectors of another width than those of texts or that are not finite.
        """
        if "embed_text" not in model.capabilities:
            raise DiptychError(f"model '{model.name}' cannot embed_text; it can: {', '.join(sorted(model.capabilities))}")
        chosen = list(texts) if texts is not None else unrelated_texts()
        embedded = unit_rows(np.asarray(model.embed_text(chosen), dtype=np.float32))
        return cls.of_vectors(embedded, vectors, total=total, nearest=nearest)

    @classmethod
    def of_vectors(
        cls, texts: np.ndarray, vectors: np.ndarray, *, total: int | None = None, nearest: Nearest | None = None
    ) -> Calibration:
        """The same from vectors of the unrelated texts, float32 [M, E]."""
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or not len(vectors):
            raise DiptychError("a calibration needs vectors of at least one picture")
        if texts.shape[1] != vectors.shape[1]:
            raise DiptychError(f"vectors of pictures have width {vectors.shape[1]}, those of texts {texts.shape[1]}")
        if not (np.isfinite(vectors).all() and np.isfinite(texts).all()):
            raise DiptychError("vectors for a calibration must be finite")
        step = max(1, len(vectors) // REFERENCE)
        made = cls(texts, vectors[::step][:REFERENCE], np.zeros(0), total or len(vectors))
        k = min(TOP, made.total)
        find = nearest or (lambda queries, k: vectors[_best(queries @ vectors.T, k)])
        best = []
        for start in range(0, len(texts), 64):
            queries = texts[start : start + 64]
            best += [made.scores(q, found).max() for q, found in zip(queries, find(queries, k), strict=True)]
        made.best = np.sort(np.asarray(best))
        return made

    def scores(self, query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """How far each picture is above what is usual for the query and for the picture, in standard deviations; float64 [K].

        query: unit vector [E]; vectors: of the pictures [K, E].
        """
        query, vectors = np.asarray(query, dtype=np.float64), np.asarray(vectors, dtype=np.float64)
        others = self.texts[self.texts @ query.astype(np.float32) < ALIKE].astype(np.float64)
        usual = self.pictures.astype(np.float64) @ query
        if len(others) < 2:
            return (vectors @ query - usual.mean()) / max(float(usual.std()), 1e-6)
        across = vectors @ others.T
        residual = vectors @ query - usual.mean() - across.mean(1) + self.centre
        spread = np.sqrt(usual.var() + across.var(1))
        scores: np.ndarray = residual / np.maximum(spread, 1e-6)
        return scores

    def judge(self, query: np.ndarray, vectors: np.ndarray, *, searched: int | None = None, rate: float = RATE) -> Verdict:
        """Judges the best hits of a query.

        query: unit vector [E]; vectors: of its hits, float32 [K, E], best first; only the first ``TOP`` decide whether there is
        something. searched: among how many pictures (default: the whole collection); among fewer, chance reaches less. rate: of
        queries for something that is not there, the share that may get an answer.
        """
        if not 0 < rate < 1:
            raise DiptychError(f"the rate of false alarms must be between 0 and 1, not {rate}")
        if not len(vectors):
            return Verdict(False, -np.inf, np.inf, 1.0, np.zeros(0), "there are no pictures to search in")
        scores = self.scores(query, vectors)
        share = min(1.0, (searched or self.total) / self.total)
        chance = self.chance(scores, share)
        top = int(scores[:TOP].argmax())
        threshold = self.threshold(rate, share)
        present = bool(scores[top] > threshold)
        percent = f"{100 * chance[top]:.0f} %" if chance[top] >= 0.01 else "less than 1 %"
        reason = f"{percent} of unrelated queries reach as much here"
        if not present:
            reason = f"nothing here looks like that: {reason}"
        return Verdict(present, float(scores[top]), threshold, float(chance[top]), 1 - chance, reason)

    def chance(self, scores: np.ndarray, share: float = 1.0) -> np.ndarray:
        """The share of unrelated queries with a best hit as good as ``scores`` in a ``share`` of the collection; float64 of the
        same shape. The maximum over n pictures is distributed as the power n of the distribution of one.
        """
        below = np.searchsorted(self.best, scores, side="left")
        return 1 - (below / (len(self.best) + 1)) ** share

    def threshold(self, rate: float, share: float = 1.0) -> float:
        """The score that a ``rate`` of unrelated queries exceeds; infinite if there are too few of them to know."""
        rank = int(np.ceil((len(self.best) + 1) * (1 - rate) ** (1 / share)))
        return float(self.best[max(rank, 1) - 1]) if rank <= len(self.best) else np.inf

    def save(self, path: Path) -> None:
        """Writes an .npz file."""

        def write(p: Path) -> None:
            with p.open("wb") as file:
                np.savez(file, version=VERSION, texts=self.texts, pictures=self.pictures, best=self.best, total=self.total)

        write_atomically(path, write)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Reads what ``save`` wrote. DiptychError if it is damaged or of a newer version."""
        try:
            with np.load(path, allow_pickle=False) as held:
                if int(held["version"]) > VERSION:
                    raise DiptychError(f"{path}: version {int(held['version'])} is newer than this Diptych; update it")
                return cls(held["texts"], held["pictures"], held["best"], int(held["total"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DiptychError(f"{path}: cannot be read as a calibration ({error}); run `diptych index` again") from None


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k largest of each row, best first; int [Q, k]."""
    order: np.ndarray = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order


def judge(
    calibration: Calibration | None,
    query: np.ndarray,
    vectors: np.ndarray,
    *,
    searched: int | None = None,
    rate: float = RATE,
) -> Verdict | None:
    """``Calibration.judge``; None without a calibration."""
    return None if calibration is None else calibration.judge(query, vectors, searched=searched, rate=rate)
