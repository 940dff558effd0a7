"""Linear maps from vectors of pictures to what their captions say, by ridge regression (Hoerl & Kennard 1970)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diptych.core.arrays import unit_rows

SHARES = (1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # penalties, in mean squared singular values
FEWEST = 100  # pictures from which anything is learned
BETTER = 0.02  # by so much more the area under the ROC curve has to be for a map to be used


class Fit(NamedTuple):
    """vectors @ weights + bias, float64 [E, D] and [D]; left_out: the prediction for each picture by a fit without it, [B, D]."""

    weights: np.ndarray
    bias: np.ndarray
    left_out: np.ndarray


def ridge(vectors: np.ndarray, truth: np.ndarray) -> Fit:
    """The fit with the penalty of ``SHARES`` that has the least error on pictures that are left out, one at a time.

    vectors: [B, E]; truth: [B, D]. The bias is not penalised. Errors of each column are in shares of its variance. Predictions for
    left-out pictures have a closed form: a fit's own share in its prediction is the diagonal of the hat matrix.
    """
    truth, middle = truth.astype(np.float64), vectors.mean(0, dtype=np.float64)
    mean, variance = truth.mean(0), np.maximum(truth.var(0), 1e-12)
    left, scale, right = np.linalg.svd(vectors.astype(np.float64) - middle, full_matrices=False)
    inner = left.T @ (truth - mean)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for share in SHARES:
        penalty = share * float((scale**2).mean())
        kept = scale**2 / (scale**2 + penalty)
        own = ((left**2 * kept).sum(1) + 1 / len(vectors))[:, None]
        out = (left @ (kept[:, None] * inner) + mean - own * truth) / np.maximum(1 - own, 1e-6)
        error = float((((out - truth) ** 2).mean(0) / variance).mean())
        if best is None or error < best[0]:
            best = error, out, right.T @ ((scale / (scale**2 + penalty))[:, None] * inner)
    assert best is not None
    return Fit(best[2], mean - middle @ best[2], best[1])


class Bridge:
    """From vectors of pictures to those of their captions, for models of which the two do not meet on such pictures: one that
    learned from photographs and is asked about drawings, or one that has hardly learned.

    weights: float32 [E, E], bias: float32 [E]; centre: the mean of the captions' vectors, float32 [E].
    """

    def __init__(self, weights: np.ndarray, bias: np.ndarray, centre: np.ndarray):
        self.weights, self.bias, self.centre = weights, bias, centre

    @classmethod
    def fit(cls, vectors: np.ndarray, captions: np.ndarray) -> tuple[Bridge, np.ndarray] | None:
        """The bridge, and the pictures' vectors beyond it, unit length, float32 [B, E], each by a fit without that picture.

        None from fewer than 100 pictures, and where it tells a picture's caption from others hardly better than the cosine does.
        vectors: of pictures, captions: of one caption of each, float32 [B, E].
        """
        if len(vectors) < FEWEST:
            return None
        centre = captions.mean(0)
        found = ridge(vectors, captions - centre)
        across, texts = unit_rows(found.left_out).astype(np.float32), unit_rows(captions - centre)
        if own_first(across @ texts.T, captions) < own_first(vectors @ captions.T, captions) + BETTER:
            return None
        made = cls(found.weights.astype(np.float32), found.bias.astype(np.float32), centre.astype(np.float32))
        return made, across

    def images(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors of pictures beyond the bridge, unit length, [N, E]."""
        return unit_rows(np.asarray(vectors, np.float64) @ self.weights + self.bias)

    def texts(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors of texts there, unit length, [N, E]."""
        return unit_rows(np.asarray(vectors, np.float64) - self.centre)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for a file."""
        return {"bridge": self.weights, "bridge_bias": self.bias, "bridge_centre": self.centre}

    @classmethod
    def of_arrays(cls, held: Mapping[str, np.ndarray]) -> Bridge | None:
        """What ``arrays`` returned; None if there was none."""
        return cls(held["bridge"], held["bridge_bias"], held["bridge_centre"]) if "bridge" in held else None


def own_first(scores: np.ndarray, captions: np.ndarray) -> float:
    """How often a caption scores higher for its picture than for another picture: the mean area under the ROC curve.

    scores: [B, B], of pictures and captions; captions: vectors; of equal ones only the first counts.
    """
    _, first = np.unique(captions, axis=0, return_index=True)
    own = np.diagonal(scores)[first]
    columns = scores[:, first]
    higher = (own > columns).sum(0) + 0.5 * ((own == columns).sum(0) - 1)
    return float((higher / (len(scores) - 1)).mean())


def shown_by(words: Sequence[str], spoken: Sequence[frozenset[str]]) -> np.ndarray:
    """Whether the captions of each picture mention each word, float64 [B, W]."""
    return np.array([[word in each for word in words] for each in spoken], np.float64).reshape(len(spoken), len(words))
