"""Linear classifiers of image vectors, by logistic regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.choose.ways.base import Support, Way
from diptych.core.extras import need
from diptych.inference.heads import Head, Linear

NEVER = -1e4  # the offset of a class that is not to be named


def of_known(weight: np.ndarray, bias: np.ndarray, known: np.ndarray, classes: int) -> Linear:
    """A classifier of all classes from rows of those that have pictures; the others are never named."""
    weights, offsets = np.zeros((classes, weight.shape[1]), dtype=np.float32), np.full(classes, NEVER, dtype=np.float32)
    weights[known], offsets[known] = weight, bias
    return Linear(weights, offsets)


def regression(x: np.ndarray, y: np.ndarray, classes: int, c: float, weights: np.ndarray | None = None, *, what: str) -> Linear:
    """Multinomial logistic regression by L-BFGS with the L2 penalty ‖W‖² / 2c; ``weights`` of the samples are 1 unless given.

    With fewer samples than dimensions it runs in the span of the samples, where the solution lies, so the result is the same.
    """
    linear_model = need("sklearn.linear_model", extra="adapt", what=what)
    known = np.unique(y)
    if len(known) == 1:
        return of_known(np.zeros((1, x.shape[1])), np.zeros(1), known, classes)
    samples, basis = np.asarray(x, dtype=np.float64), None
    if len(samples) < samples.shape[1]:
        u, s, basis = np.linalg.svd(samples, full_matrices=False)
        samples = u * s
    fitted = linear_model.LogisticRegression(C=c, max_iter=1000).fit(samples, y, sample_weight=weights)
    coefficients, offsets = fitted.coef_, fitted.intercept_
    if len(known) == 2:  # scikit-learn keeps one row for two classes: the log-odds of the second
        coefficients, offsets = np.concatenate([-coefficients, coefficients]) / 2, np.concatenate([-offsets, offsets]) / 2
    return of_known(coefficients if basis is None else coefficients @ basis, offsets, known, classes)


@dataclass(frozen=True)
class LinearProbe(Way):
    """Multinomial logistic regression by L-BFGS on unit vectors, L2 penalty 1 / C (Radford et al. 2021, appendix A.3)."""

    name = "probe"
    about = "logistic regression on the image vectors"
    cite = "Radford et al. 2021, arXiv:2103.00020"
    c: float = 10.0

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """C over six powers of ten."""
        return [{"c": c} for c in (10.0, 0.1, 1.0, 100.0, 1000.0, 10000.0)]

    def fit(self, support: Support) -> Head:
        """The regression's weights and offsets; a class without pictures is never named."""
        return regression(support.x, support.y, support.classes, self.c, what="--way probe")


@dataclass(frozen=True)
class CrossModal(Way):
    """The class names' vectors, one for each template, are training samples beside the images (after Lin et al. 2023).

    As there, images and texts have the same total weight. The authors (linzhiqiu/cross_modal_adaptation, train.py) train with
    AdamW for 12,800 updates, half of each batch texts, from the text vectors on, and stop where validation images are best; here
    the same objective with an L2 penalty is solved by L-BFGS, as ``probe`` is, and no validation images are needed.
    """

    name = "cross-modal"
    about = "logistic regression on the image vectors and on the vectors of the class names"
    cite = "Lin et al. 2023, arXiv:2301.06267"
    needs_text = True
    c: float = 10.0

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """C over six powers of ten, as ``probe``."""
        return [{"c": c} for c in (10.0, 0.1, 1.0, 100.0, 1000.0, 10000.0)]

    def fit(self, support: Support) -> Head:
        """The regression's weights and offsets; a class without pictures is known by its texts."""
        texts = support.texts[:, None] if support.prompts is None else support.prompts  # ``texts`` says what is missing
        x = np.concatenate([support.x, texts.reshape(-1, texts.shape[-1])])
        y = np.concatenate([support.y, np.repeat(np.arange(support.classes), texts.shape[1])])
        images = len(support.y)
        weights = np.r_[np.ones(images), np.full(len(y) - images, images / (len(y) - images))]
        return regression(x, y, support.classes, self.c, weights, what="--way cross-modal")
