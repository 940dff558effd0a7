"""What a number is compared with: no image, the wrong image, no opinion."""

from __future__ import annotations

import numpy as np

from diptych.core.capabilities import FunctionModel, Image


def blank(image: Image) -> Image:
    """Mid-grey of the same size: what is left when the image is taken away."""
    return np.full_like(image, 128)


def derangement(n: int, labels: np.ndarray | None = None, seed: int = 0) -> np.ndarray | None:
    """A random order of n in which none keeps its place, int [n]; with ``labels`` [n] none gets its own label either.

    None where that cannot be (one item, or a label that holds more than half).
    """
    labels = np.arange(n) if labels is None else np.asarray(labels)
    shuffled = np.random.default_rng(seed).permutation(n)
    order = shuffled[np.argsort(labels[shuffled], kind="stable")] if len(np.unique(labels)) < n else shuffled
    step = int(np.unique(labels, return_counts=True)[1].max()) if n else 1
    if n < 2 * step:
        return None
    result = np.empty(n, dtype=np.int64)
    result[order] = np.roll(order, step)  # sorted by label, a shift by the largest class leaves every class
    return result


def constant() -> FunctionModel:
    """The scorer without an opinion; it must land on chance everywhere."""
    return FunctionModel("constant", score=lambda images, texts: np.zeros((len(images), len(texts)), dtype=np.float32))
