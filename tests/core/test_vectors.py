"""Unit vectors."""

from __future__ import annotations

import numpy as np

from diptych.core.vectors import unit


def test_vectors_get_length_one_in_their_own_precision_and_zeros_stay() -> None:
    for precision in (np.float32, np.float64):
        vectors = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(precision)
        vectors[1, 2] = 0
        result = unit(vectors)
        assert result.dtype == precision
        np.testing.assert_allclose(np.linalg.norm(result, axis=-1), [[1, 1, 1], [1, 1, 0]], rtol=1e-6)
        np.testing.assert_allclose(result[0, 0], vectors[0, 0] / np.sqrt((vectors[0, 0] ** 2).sum()), rtol=1e-6)
