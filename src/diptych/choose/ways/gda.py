"""Gaussian discriminant analysis of image vectors, beside zero-shot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.choose.ways.base import Support, Way
from diptych.choose.ways.linear import of_known
from diptych.inference.heads import Head, Linear


@dataclass(frozen=True)
class GaussianDiscriminant(Way):
    """Classes as Gaussians with one covariance and equal shares, added to zero-shot (Wang et al. 2024).

    logits = scale · cos(image, name) + α · (w_c · x + b_c), w_c = Σ⁻¹ μ_c, b_c = −w_c · μ_c / 2. With S the covariance of the
    vectors about their class means (divided by N − 1): Σ⁻¹ = E · ((N − 1) S + tr(S) I)⁻¹, the shrinkage of Kubokawa & Srivastava
    2008 as the authors' code has it (mrflogs/ICLR24, main_few_shots.py, also the values of α). Without ``shrink``: Σ = N⁻¹ (N −
    1) S, by pseudo-inverse. There the covariance is of 10 crops of each image and α starts at 0.1; here of the images alone.

    A model without texts has α · (w_c · x + b_c) alone. Where no class has two pictures S is 0; then S is the covariance about
    the mean of all, a multiple of I. Discriminants are centred over the classes, which changes no probability, so that a class
    without pictures, known by its name alone, has the mean discriminant of the others: 0.
    """

    name = "gda"
    about = "classes as Gaussians with a shared covariance, added to zero-shot"
    cite = "Wang et al. 2024, arXiv:2402.04087"
    alpha: float = 0.1
    shrink: bool = True

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """α over seven powers of ten; without texts α changes no decision."""
        if support.prompts is None:
            return [{"alpha": 1.0}]
        return [{"alpha": a} for a in (0.1, 0.0001, 0.001, 0.01, 1.0, 10.0, 100.0)]

    def fit(self, support: Support) -> Head:
        """A linear classifier; open to further names if the model has texts."""
        return self._head(support, *self._discriminants(support))

    @classmethod
    def logits_of(cls, settings: Sequence[Mapping[str, Any]], support: Support, x: np.ndarray) -> list[np.ndarray]:
        """By one estimate for all α."""
        ways = [cls(**s) for s in settings]
        estimates = {shrink: cls(shrink=shrink)._discriminants(support) for shrink in {way.shrink for way in ways}}
        return [way._head(support, *estimates[way.shrink]).logits(x) for way in ways]

    def _discriminants(self, support: Support) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The classes with pictures [K], their weights [K, E] and offsets [K]; float64."""
        x, (n, width) = support.x.astype(np.float64), support.x.shape
        known, label = np.unique(support.y, return_inverse=True)
        means = np.stack([x[label == k].mean(0) for k in range(len(known))])
        within = x - means[label]
        scatter = within.T @ within
        spread = np.trace(scatter)
        if spread <= 1e-12 * n:  # no two images of a class, or copies only
            around = x - x.mean(0)
            scatter, spread = np.zeros_like(scatter), float((around**2).sum()) or 1.0
        if self.shrink:
            precision = width * np.linalg.inv(scatter + spread / max(n - 1, 1) * np.eye(width))
        else:
            precision = n * np.linalg.pinv(scatter if scatter.any() else spread / width * np.eye(width), hermitian=True)
        weight = means @ precision
        bias = -(weight * means).sum(1) / 2
        return known, weight - weight.mean(0), bias - bias.mean()

    def _head(self, support: Support, known: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Head:
        if support.prompts is None:
            return of_known(self.alpha * weight, self.alpha * bias, known, support.classes)
        rows, offsets = (support.scale * support.texts).astype(np.float64), np.zeros(support.classes)
        rows[known] += self.alpha * weight
        offsets[known] += self.alpha * bias
        return Linear(rows.astype(np.float32), offsets.astype(np.float32), open=True)
