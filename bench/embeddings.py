"""Vectors that look like a model's vectors of scenes, as many as wanted: real ones of a few thousand scenes, and samples of a mixture of
Gaussians that is fitted to them. Isotropic noise would be another task: there all neighbours are equally far away."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.core.arrays import unit_rows

WIDTH = 512
DATA = "scenes:small"


def real_vectors(scenes: int, samples: int, cache: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the pictures and of the captions of test scenes, float32 [scenes, 512], by a ``clip`` of 512 numbers that was trained on
    ``samples`` other scenes. cache: a file that keeps them.
    """
    if cache is not None and cache.is_file():
        with np.load(cache) as file:
            return file["images"], file["texts"]
    import diptych

    with tempfile.TemporaryDirectory() as folder:
        options = [f"embed_dim={WIDTH}"]
        diptych.train("clip", data=DATA, budget=f"{samples} samples", out=folder, set=options)
        model = diptych.load(folder)
    source = diptych.open_source(DATA).split("test")
    images, texts = [], []
    for start in range(0, scenes, 128):
        some = [source[i] for i in range(start, min(start + 128, scenes))]
        images.append(model.embed_image([sample.image for sample in some]))
        texts.append(model.embed_text([sample.captions[0] for sample in some]))
    found = unit_rows(np.concatenate(images), np.float32), unit_rows(np.concatenate(texts), np.float32)
    if cache is not None:
        np.savez(cache, images=found[0], texts=found[1])
    return found


@dataclass(frozen=True)
class Mixture:
    """Gaussians around the centres of groups of real vectors, each with the covariance of its group, which is of low rank, mixed with
    that of all groups.

    residuals: of each group, its vectors minus their mean, divided by the root of their number. own: share of the group's covariance.
    """

    means: np.ndarray  # float32 [C, E]
    weights: np.ndarray  # float64 [C]
    residuals: list[np.ndarray]  # float32 [n of C, E]
    pooled: np.ndarray  # float32 [P, E], so that pooled.T @ pooled is the mean covariance
    own: float = 0.8

    @classmethod
    def fit(cls, vectors: np.ndarray, groups: int, seed: int = 0) -> Mixture:
        """Groups by k-means (20 rounds); those of fewer than four vectors are left out."""
        rng = np.random.default_rng(seed)
        centres = vectors[rng.choice(len(vectors), groups, replace=False)]
        for _ in range(20):
            which = np.argmax(vectors @ centres.T, axis=1)
            centres = unit_rows(
                np.stack([vectors[which == c].mean(0) if (which == c).any() else centres[c] for c in range(groups)])
            )
        sizes = np.bincount(which, minlength=groups)
        kept = [c for c in range(groups) if sizes[c] >= 4]
        means = np.stack([vectors[which == c].mean(0) for c in kept])
        spread = [vectors[which == c] - mean for c, mean in zip(kept, means, strict=True)]
        everything = np.concatenate(spread)
        _, scale, directions = np.linalg.svd(everything, full_matrices=False)
        rank = int(np.searchsorted(np.cumsum(scale**2), 0.9999 * (scale**2).sum())) + 1  # what is left is rounding
        directions, scale = directions[:rank], scale[:rank]
        pooled = (directions * (scale / np.sqrt(len(everything)))[:, None]).astype(np.float32)
        return cls(means, sizes[kept] / sizes[kept].sum(), [r / np.sqrt(np.float32(len(r))) for r in spread], pooled)

    def sample(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Unit vectors, float32 [number, E], in random order."""
        which = rng.choice(len(self.means), number, p=self.weights)
        out = self.means[which]
        for c, residuals in enumerate(self.residuals):
            rows = np.flatnonzero(which == c)
            noise = rng.standard_normal((len(rows), len(residuals)), np.float32) @ residuals
            out[rows] += np.float32(self.own**0.5) * noise
        noise = rng.standard_normal((number, len(self.pooled)), np.float32) @ self.pooled
        return unit_rows(out + np.float32((1 - self.own) ** 0.5) * noise, np.float32)


def neighbourhood(vectors: np.ndarray, queries: np.ndarray, k: int = 20) -> tuple[float, float, float]:
    """Of queries among vectors: mean cosine with the nearest, with the k-th, and the local intrinsic dimension (Levina & Bickel 2005)."""
    top = -np.sort(-(queries @ vectors.T), axis=1)[:, :k].astype(np.float64)
    distance = np.sqrt(np.maximum(2 - 2 * top, 1e-12))
    inverse = np.log(distance[:, -1:] / distance[:, :-1]).mean(1)
    return float(top[:, 0].mean()), float(top[:, -1].mean()), float(1 / inverse.mean())
