"""Arithmetic of NumPy arrays that several layers need."""

from __future__ import annotations

from typing import Any

import numpy as np


def unit_rows(vectors: np.ndarray, dtype: Any = None) -> np.ndarray:
    """Vectors [..., E] scaled to unit length, of ``dtype`` (None: that of the vectors); vectors of zeros are unchanged."""
    vectors = np.asarray(vectors, dtype=dtype)
    scaled: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return scaled
