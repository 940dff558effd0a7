"""What a result is compared with: no image, the wrong image, equal scores for all."""

from __future__ import annotations

import numpy as np

from diptych.core.capabilities import FunctionModel, Image
from diptych.data.fields.base import grey


def blank(image: Image) -> Image:
    """A mid-grey image of the same size: the control without an image."""
    return grey(image)


def derangement(n: int, labels: np.ndarray | None = None, seed: int = 0) -> np.ndarray | None:
    """A random permutation of n without a fixed point, int [n]; with ``labels`` [n], no item gets one of its own label either.

    None if there is no such permutation (one item, or a label that more than half of the items have).
    """
    labels = np.arange(n) if labels is None else np.asarray(labels)
    shuffled = np.random.default_rng(seed).permutation(n)
    order = shuffled[np.argsort(labels[shuffled], kind="stable")] if len(np.unique(labels)) < n else shuffled
    step = int(np.unique(labels, return_counts=True)[1].max()) if n else 1
    if n < 2 * step:
        return None
    result = np.empty(n, dtype=np.int64)
    result[order] = np.roll(
        order, step
    )  # sorted by label: a shift by the size of the largest class moves every item to another class
    return result


def constant() -> FunctionModel:
    """A model that gives every pair the same score; its result must be chance everywhere."""
    return FunctionModel("constant", score=lambda images, texts: np.zeros((len(images), len(texts)), dtype=np.float32))
