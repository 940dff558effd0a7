"""What a vector of a picture says of single words, learned from pictures with captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diptych.index.cutoff.ridge import FEWEST, ridge, shown_by
from diptych.index.cutoff.words import content

LEAST = 10  # pictures that mention a word, from which it is learned


class Readers:
    """Ridge regression from vectors of pictures to the words of their captions.

    The vector of "a heart" is that of a caption, and pictures with a heart and a key lie elsewhere; what all pictures with hearts
    have in common is another direction. words: [W]; weights: float32 [W, E]; bias: float32 [W]; absent: scores of the words for
    pictures with captions that do not mention them, each by a regression without that picture, float32 [W, B], NaN where they do.
    """

    def __init__(self, words: Sequence[str], weights: np.ndarray, bias: np.ndarray, absent: np.ndarray):
        self.words = {word: i for i, word in enumerate(words)}
        self.weights, self.bias, self.absent = weights, bias, absent

    @classmethod
    def none(cls, width: int) -> Readers:
        """Without words."""
        return cls((), np.zeros((0, width), np.float32), np.zeros(0, np.float32), np.zeros((0, 0), np.float32))

    @classmethod
    def fit(cls, vectors: np.ndarray, spoken: Sequence[frozenset[str]], words: Sequence[str], others: np.ndarray) -> Readers:
        """Learns those of the words that enough pictures mention; none from fewer than 100 pictures.

        vectors: of the pictures [B, E]; spoken: the words of each one's captions. others: float [words, B' ≤ B], scores of the
        words for the first pictures in another way; a word is kept where these tell the pictures that mention it from the others
        less well (area under the ROC curve).
        """
        truth = shown_by(words, spoken)
        chosen = [i for i in range(len(words)) if truth[:, i].sum() >= LEAST]
        if len(vectors) < FEWEST or not chosen:
            return cls.none(vectors.shape[1])
        truth = truth[:, chosen]
        weights, bias, out = ridge(vectors, truth)
        some = others.shape[1]
        better = [
            j for j, i in enumerate(chosen) if area(out[:some, j], truth[:some, j] > 0) >= area(others[i], truth[:some, j] > 0)
        ]
        absent = np.where(truth > 0, np.nan, out).T.astype(np.float32)[better]
        return cls(
            [words[chosen[j]] for j in better], weights.T.astype(np.float32)[better], bias.astype(np.float32)[better], absent
        )

    def word_of(self, text: str) -> str | None:
        """The word that a text consists of, apart from articles and the like, if it was learned; None otherwise."""
        wanted = content(text)
        return next(iter(wanted)) if len(wanted) == 1 and wanted <= self.words.keys() else None

    def scores(self, vectors: np.ndarray, text: str) -> np.ndarray:
        """How far each picture's captions may be expected to mention the word of a text; float64 [K], about 0 to 1."""
        word = self.word_of(text)
        assert word is not None
        row = self.words[word]
        scores: np.ndarray = np.asarray(vectors, np.float64) @ self.weights[row].astype(np.float64) + float(self.bias[row])
        return scores

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for a file."""
        words = np.array(list(self.words), dtype=str)
        return {"read": words, "read_weights": self.weights, "read_bias": self.bias, "read_absent": self.absent}

    @classmethod
    def of_arrays(cls, held: Mapping[str, np.ndarray]) -> Readers | None:
        """What ``arrays`` returned; None in a file of an older version."""
        if "read" not in held:
            return None
        return cls(held["read"].tolist(), held["read_weights"], held["read_bias"], held["read_absent"])


def area(scores: np.ndarray, shown: np.ndarray) -> float:
    """Area under the ROC curve, ties by half; 0.5 where all pictures are of one kind. scores, shown: [B]."""
    here, absent = scores[shown], scores[~shown]
    if not len(here) or not len(absent):
        return 0.5
    return float((here[:, None] > absent).mean() + 0.5 * (here[:, None] == absent).mean())
