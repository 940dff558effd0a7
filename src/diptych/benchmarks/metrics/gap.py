"""The modality gap (Liang et al., arXiv:2203.02053): how far apart image and text embeddings lie on the sphere.

``image`` and ``text`` are float [n, E], row i of both from the same item.
"""

from __future__ import annotations

import numpy as np


def modality_gap(image: np.ndarray, text: np.ndarray) -> float:
    """Distance of the two centroids."""
    return float(np.linalg.norm(image.mean(0) - text.mean(0)))


def separability(image: np.ndarray, text: np.ndarray, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Per item, the share of its two embeddings whose modality a linear classifier tells; float [n], chance 0.5.

    Logistic regression (``logistic``), cross-validated with both embeddings of an item in the same fold.
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
