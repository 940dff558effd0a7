"""The modality gap (Liang et al., arXiv:2203.02053): how far apart the image and text embeddings of the retrieval items lie on
the sphere.

One record per item with both vectors, which are also written to ``embeddings.npz``. ``separability`` of 0.5 means that the modality
cannot be recognised; ``matched_cosine`` is the mean cosine of image and caption, and its shuffled control that of unrelated ones.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, Progress, at_least_two, by_item, count_not_finite, images_of, retrieval_items
from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import distinct
from diptych.benchmarks.statistics import Interval, function_interval, mean, mean_interval
from diptych.core.capabilities import Model
from diptych.core.files import write_atomically
from diptych.core.sample import Sample
from diptych.data.source import Source


def modality_gap(image: np.ndarray, text: np.ndarray) -> float:
    """The distance of the two centroids, from embeddings float [n, E]."""
    return float(np.linalg.norm(image.mean(0) - text.mean(0)))


def separability(image: np.ndarray, text: np.ndarray, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Per item, the share of its two embeddings of which a linear classifier recognises the modality; float [n], chance 0.5.

    ``image`` and ``text``: float [n, E], row i of both from the same item. Logistic regression (``logistic``),
    cross-validated with both embeddings of an item in the same fold.
    """
    n = len(image)
    fold = np.random.default_rng(seed).permutation(n) % min(folds, n)
    credits = np.zeros(n)
    for f in range(min(folds, n)):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        slope, offset = logistic(np.concatenate([image[train], text[train]]), np.repeat([1, 0], len(train)))
        of_image, of_text = image[test] @ slope + offset, text[test] @ slope + offset
        credits[test] = (np.heaviside(of_image, 0.5) + np.heaviside(-of_text, 0.5)) / 2
    return credits


def logistic(x: np.ndarray, y: np.ndarray, penalty: float = 1.0, steps: int = 100) -> tuple[np.ndarray, float]:
    """Binary logistic regression with an L2 penalty on the slope: x [n, E], y 0 or 1 [n] → slope float64 [E], offset.

    The minimum of penalty / 2 · ‖slope‖² + Σ log(1 + exp(−(2y − 1)(x · slope + offset))), by Newton's method with step halving:
    what scikit-learn's ``LogisticRegression(C=1 / penalty)`` approaches.
    """
    rows = np.concatenate([np.asarray(x, np.float64), np.ones((len(x), 1))], axis=1)
    sign = 2.0 * np.asarray(y) - 1
    ridge = np.full(rows.shape[1], penalty)
    ridge[-1] = 0  # the offset is free
    w = np.zeros(rows.shape[1])

    def loss(at: np.ndarray) -> float:
        """The negative log likelihood with the ridge penalty, at weights [E + 1]."""
        return float(0.5 * (ridge * at * at).sum() + np.logaddexp(0, -sign * (rows @ at)).sum())

    now = loss(w)
    for _ in range(steps):
        p = 0.5 * (1 + np.tanh(0.5 * (rows @ w)))
        gradient = ridge * w + rows.T @ (p - (sign + 1) / 2)
        if np.abs(gradient).max() < 1e-9:
            break
        curvature = (rows.T * (p * (1 - p))) @ rows + np.diag(ridge)
        curvature[-1, -1] += 1e-12
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while (new := loss(w - size * step)) > now and size > 1e-10:
            size /= 2
        if new >= now:
            break
        w, now = w - size * step, new
    return w[:-1], float(w[-1])


@dataclass(frozen=True)
class Embedding:
    """The gap between the modalities in the shared space."""

    name: str = "embedding"
    needs: tuple[str, ...] = ("embed_image", "embed_text")
    n: int = 100
    seed: int = 0

    def items(self, source: Source) -> Items:
        """Up to n samples with an image and a caption. Raises NotApplicable if there are fewer than two."""
        return at_least_two(retrieval_items(source, self.n))

    def run(self, model: Model, items: list[Sample], records: Records, progress: Progress | None = None) -> None:
        """One record per sample with the embeddings of its image and of its first caption, and the cosine of that caption with a
        grey image. With a folder, all embeddings are also saved as ``embeddings.npz``.
        """
        if not all(item.id in records for item in items):
            images = images_of(items)
            image = model.embed_image([*images, blank(images[0])])
            text = model.embed_text([item.captions[0] for item in items])
            records.add(
                {
                    "item": item.id,
                    "cluster": item.id,
                    "image": image[i],
                    "text": text[i],
                    "blind_cosine": float(np.nan_to_num(image[-1] @ text[i])),
                    "nans": count_not_finite(image[i]) + count_not_finite(text[i]),
                }
                for i, item in enumerate(items)
            )
        if records.folder is not None:
            image, text = _vectors(records.all())
            data = io.BytesIO()
            np.savez(data, image=image, text=text)
            write_atomically(records.folder / "embeddings.npz", lambda path: path.write_bytes(data.getvalue()))

    def summarise(self, records: list[Record]) -> list[Result]:
        """``modality_gap``, ``separability`` and ``matched_cosine``, the last with the controls blind and shuffled."""
        records = by_item(records)
        clusters = [r["cluster"] for r in records]
        image, text = _vectors(records)
        gap = function_interval(lambda index: modality_gap(image[index], text[index]), clusters)
        recognised = separability(image, text, seed=self.seed)
        cosine = np.einsum("ne,ne->n", image, text).astype(np.float64)
        order = derangement(len(records), seed=self.seed)
        unrelated = None if order is None else mean(np.einsum("ne,ne->n", image[order], text))
        nans = sum(r["nans"] for r in records)

        def result(metric: str, at: Interval, **fields: Any) -> Result:
            """A metric of all records."""
            return Result(self.name, metric, at.value, at.low, at.high, len(records), distinct(clusters), nans=nans, **fields)

        controls = {"blind": mean([r["blind_cosine"] for r in records]), "shuffled": unrelated}
        return [
            result("modality_gap", replace(gap, low=max(0.0, gap.low)), higher_is_better=False),
            result("separability", mean_interval(recognised, clusters), chance=0.5, higher_is_better=False),
            result("matched_cosine", mean_interval(cosine, clusters, share=False), controls=controls),
        ]


def _vectors(records: list[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Image and text embeddings, float32 [n, E]; what is not finite counts as 0."""
    image, text = (np.nan_to_num(np.array([r[side] for r in records], dtype=np.float32)) for side in ("image", "text"))
    return image, text
