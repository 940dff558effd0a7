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

    Logistic regression, cross-validated with both embeddings of an item in the same fold.
    """
    from sklearn.linear_model import LogisticRegression

    n = len(image)
    fold = np.random.default_rng(seed).permutation(n) % min(folds, n)
    credits = np.zeros(n)
    for f in range(min(folds, n)):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        labels = np.repeat([1, 0], len(train))
        model = LogisticRegression(max_iter=1000).fit(np.concatenate([image[train], text[train]]), labels)
        of_image, of_text = model.decision_function(image[test]), model.decision_function(text[test])
        credits[test] = (np.heaviside(of_image, 0.5) + np.heaviside(-of_text, 0.5)) / 2
    return credits
