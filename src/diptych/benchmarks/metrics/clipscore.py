"""CLIPScore and RefCLIPScore (Hessel et al., arXiv:2104.08718): captions judged by a model with two embeddings.

Embeddings float [N, E], of any length: they are normalised here. Comparable only between captions judged by the same model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PREFIX = "A photo depicts "
WEIGHT = 2.5


def clipscore(image: np.ndarray, caption: np.ndarray) -> np.ndarray:
    """2.5 · max(cos, 0) of each image and its caption (eq. 1); float [N]."""
    return WEIGHT * np.maximum((_unit(image) * _unit(caption)).sum(-1), 0)


def refclipscore(image: np.ndarray, caption: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """Harmonic mean of CLIPScore and the best cosine of the caption with its references [R_i, E], not below 0 (eq. 2); float [N]."""
    alone, unit = clipscore(image, caption), _unit(caption)
    best = np.array([max(0.0, float((_unit(r) @ u).max())) for r, u in zip(references, unit, strict=True)])
    total = alone + best
    return np.divide(2 * alone * best, total, out=np.zeros_like(total), where=total > 0)


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
