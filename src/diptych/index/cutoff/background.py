"""What queries and pictures are compared with: texts and pictures that have nothing to do with a collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.index.cutoff.readers import Readers
from diptych.index.cutoff.ridge import Bridge
from diptych.index.cutoff.words import content, heads

TAU = 0.5  # standard deviations: how much the best of many texts counts more than the others
ALIKE = 0.6  # texts of a higher cosine, after the mean of all texts is taken off, may mean the same and are no comparison
QUERIES, FEWEST = 200, 3  # words of captions that a background is queried for, at most and at least
LEAST = 30  # pictures from which a mean and a spread are known
PICTURES, TEXTS = 1000, 1000  # of a data set that are taken
COMPARED = 300  # of the pictures, whose cosines are compared with each text
CHUNK = 32  # pictures at a time


def unrelated_texts() -> list[str]:
    """The packaged captions and names of things."""
    lines = resources.files("diptych.index.cutoff").joinpath("captions.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def embedded_texts(model: Model, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors, float32 [M, E]. DiptychError if the model does not embed texts."""
    if "embed_text" not in model.capabilities:
        raise DiptychError(f"model '{model.name}' cannot embed_text; it can: {', '.join(sorted(model.capabilities))}")
    return unit_rows(np.asarray(model.embed_text(list(texts)), dtype=np.float32))


@dataclass(frozen=True)
class Captioned:
    """Pictures with captions of a data set. images: the first ones, or what was made of them; spoken: the words of all captions of
    each; words: captions of more pictures, each once.
    """

    address: str
    images: list[np.ndarray]
    spoken: list[frozenset[str]]
    shown: list[Sequence[str]]
    words: list[str]

    @classmethod
    def read(cls, address: str, pictures: int, texts: int, made: Callable[[list[np.ndarray]], Iterable[np.ndarray]]) -> Captioned:
        """Some ``pictures`` and ``texts``. made: of a few pictures at a time, so that not all are in memory as they are.
        DiptychError if there are fewer than 30 pictures with captions.
        """
        source, most = open_source(address), max(pictures, texts)
        order = range(20 * most)  # of data where few have captions, not all are read
        if len(source) <= 20 * most:  # in any order: data are often sorted by kind
            order = np.random.Generator(np.random.PCG64(0)).permutation(len(source)).tolist()
        captions: list[Sequence[str]] = []
        images: list[np.ndarray] = []
        some: list[np.ndarray] = []
        for i in order:
            if len(captions) == most:
                break
            try:
                sample = source[i]
            except BrokenItem:
                continue
            if sample.image is None or not sample.captions:
                continue
            if len(captions) < pictures:
                some.append(np.asarray(sample.image))
            captions.append(sample.captions)
            if len(some) == CHUNK:
                images.extend(made(some))
                some = []
        images.extend(made(some) if some else ())
        if len(captions) < LEAST:
            raise DiptychError(f"{address}: {len(captions)} pictures with captions; a background needs at least {LEAST}")
        shown = captions[:pictures]
        spoken = [frozenset[str]().union(*map(content, each)) for each in shown]
        return cls(address, images, spoken, shown, list(dict.fromkeys(each[0] for each in captions))[:texts])

    def names(self) -> list[str]:
        """Names of the things that captions speak of, the most frequent first, rather than of their properties: these have a
        narrower spread of scores. Those of at least two pictures and at most half of them.
        """
        counts = Counter(word for words in self.spoken for word in words)
        named = Counter(word for each in self.shown for word in {w for caption in each for w in heads(caption)})
        found = [w for w, n in named.most_common() if 2 <= counts[w] <= len(self.shown) / 2 and n > counts[w] / 2][:QUERIES]
        return found if len(found) >= FEWEST else []


def captioned(address: str, model: Model, pictures: int = PICTURES, texts: int = TEXTS) -> Background:
    """A background of the first pictures with captions of a data set, and of captions of more of them, each once.

    Best are the data that the model was trained on: what is compared is then what the model knows. DiptychError if there are fewer
    than 30 pictures with captions.
    """
    data = Captioned.read(address, pictures, texts, model.embed_image)
    vectors, captions = unit_rows(np.stack(data.images).astype(np.float32)), embedded_texts(model, data.words)
    place = {word: i for i, word in enumerate(data.words)}
    own = [place.get(each[0], -1) for each in data.shown]  # the place of each picture's first caption among the words
    learned = Bridge.fit(vectors, captions[own]) if min(own) >= 0 else None
    bridge, across = learned if learned is not None else (None, vectors)
    made = Background(data.words, captions, across[:COMPARED], bridge=bridge)
    queries = data.names()
    if queries:
        named = embedded_texts(model, queries)
        made.absent = made.of_absent(queries, named, data.spoken[:COMPARED])
        others = np.array([made.preferred(v, None, word) for word, v in zip(queries, named, strict=True)])
        made.readers = Readers.fit(vectors, data.spoken, queries, others)
    return made


class Background:
    """Texts and, if there are any, pictures from elsewhere.

    words: the texts; texts: their unit vectors, float32 [M, E]; pictures: unit vectors, float32 [B, E], B = 0 without any; with a
    ``bridge`` those beyond it. absent:
    scores of some words for pictures that do not show them, float32 [Q, B], NaN where a picture's captions mention the word; Q = 0
    where that is not known.
    """

    def __init__(
        self,
        words: Sequence[str],
        texts: np.ndarray,
        pictures: np.ndarray,
        absent: np.ndarray | None = None,
        readers: Readers | None = None,
        bridge: Bridge | None = None,
    ):
        if len(words) != len(texts) or texts.ndim != 2 or pictures.shape[1:] != texts.shape[1:]:
            raise DiptychError(f"background: {len(words)} texts, vectors {texts.shape} and {pictures.shape} do not belong together")
        if not (np.isfinite(texts).all() and np.isfinite(pictures).all()):
            raise DiptychError("background: vectors must be finite")
        self.absent = np.zeros((0, len(pictures)), np.float32) if absent is None else absent
        self.readers, self.bridge = readers or Readers.none(texts.shape[1]), bridge
        self.words, self.texts, self.pictures = tuple(words), texts, pictures
        self.contents = [content(text) for text in words]
        across = texts if bridge is None else bridge.texts(texts)
        self._texts, self._pictures = across.T.astype(np.float64), pictures.astype(np.float64)
        self.two_sided = len(pictures) >= LEAST and len(texts) >= 2
        scores = self._texts.T @ self._pictures.T if self.two_sided else np.zeros((len(texts), 1))
        self.mean, self.spread = scores.mean(1), np.maximum(scores.std(1), 1e-6)
        self.centre = texts.mean(0, dtype=np.float64) if len(texts) else np.zeros(texts.shape[1])
        centred = texts.astype(np.float64) - self.centre
        self.centred = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for a file."""
        own = {"words": np.array(self.words), "texts": self.texts, "pictures": self.pictures, "absent": self.absent}
        return own | self.readers.arrays() | ({} if self.bridge is None else self.bridge.arrays())

    @classmethod
    def of_arrays(cls, held: Mapping[str, np.ndarray]) -> Background:
        """What ``arrays`` returned. KeyError, ValueError or DiptychError if it is damaged."""
        learned = Readers.of_arrays(held), Bridge.of_arrays(held)
        return cls(held["words"].tolist(), held["texts"], held["pictures"], held["absent"], *learned)

    def scores(self, query: np.ndarray, vectors: np.ndarray, text: str = "") -> np.ndarray:
        """How well each picture fits the query; float64 [K].

        query: unit vector [E]; vectors: of the pictures [K, E]; text: of the query, "" if it is not a text. Without pictures from
        elsewhere the cosine. For a single word that was learned from captions of pictures from elsewhere: ``Readers``. For other
        queries all cosines are put in standard deviations over these pictures, and the score is by how much
        the picture prefers the query, or background texts with all its words, to the other background texts: the difference of two
        soft maxima, τ·ln of the mean of exp(z/τ).
        """
        return self.readers.scores(vectors, text) if self.reads(text) else self.preferred(query, vectors, text)

    def preferred(self, query: np.ndarray, vectors: np.ndarray | None, text: str = "") -> np.ndarray:
        """The score of a text that is not read (``scores``). vectors: None for the background's own pictures."""
        near = self.near(query)
        query = np.asarray(query, dtype=np.float64)
        if self.bridge is not None:
            query = self.bridge.texts(query[None])[0]
            vectors = None if vectors is None else self.bridge.images(vectors)
        vectors = self._pictures if vectors is None else np.asarray(vectors, dtype=np.float64)
        cosines: np.ndarray = vectors @ query
        if not self.two_sided:
            return cosines
        usual = self._pictures @ query
        own = (cosines - usual.mean()) / max(float(usual.std()), 1e-6)
        texts = (vectors @ self._texts - self.mean) / self.spread
        return preference(own, texts, self.mentions(text), near)

    def of_absent(self, queries: Sequence[str], vectors: np.ndarray, spoken: Sequence[frozenset[str]]) -> np.ndarray:
        """Scores of queries for the background's pictures, float32 [Q, B], NaN where the words of its captions, ``spoken``, hold
        all words of the query.
        """
        rows = []
        for query, vector in zip(queries, vectors, strict=True):
            shows = np.array([content(query) <= words for words in spoken])
            rows.append(np.where(shows, np.nan, self.preferred(vector, None, query)))
        return np.array(rows, dtype=np.float32)

    def reads(self, text: str) -> bool:
        """Whether a text is a word that the vectors were learned to be read for."""
        return self.readers.word_of(text) is not None

    def mentions(self, text: str) -> np.ndarray:
        """Which background texts have all words of a text that say something; bool [M]."""
        wanted = content(text)
        return np.array([bool(wanted) and wanted <= words for words in self.contents], dtype=bool)

    def near(self, query: np.ndarray) -> np.ndarray:
        """Which background texts may mean what the query means; bool [M]."""
        direction = np.asarray(query, dtype=np.float64) - self.centre
        near: np.ndarray = self.centred @ (direction / max(float(np.linalg.norm(direction)), 1e-12)) > ALIKE
        return near


def preference(own: np.ndarray, texts: np.ndarray, mentions: np.ndarray, near: np.ndarray) -> np.ndarray:
    """By how much each picture prefers a query to other texts; float64 [K].

    own: its scores [K]; texts: those of the background [K, M], both in standard deviations over other pictures; mentions: which
    texts speak of the same; near: which may mean the same and do not count, bool [M].
    """
    others = ~mentions & ~near
    if not others.any():
        return own
    result: np.ndarray = _soft_maximum(np.concatenate([own[:, None], texts[:, mentions]], axis=1)) - _soft_maximum(texts[:, others])
    return result


def _soft_maximum(scores: np.ndarray) -> np.ndarray:
    """τ·ln of the mean of exp(z/τ) over the last axis."""
    top = scores.max(-1, keepdims=True)
    result: np.ndarray = top[..., 0] + TAU * np.log(np.exp((scores - top) / TAU).mean(-1))
    return result
