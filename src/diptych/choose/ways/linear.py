"""Linear classifiers of image vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.choose.ways.base import Support, Way
from diptych.core.extras import need
from diptych.inference.heads import Head, Linear


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
        linear_model = need("sklearn.linear_model", extra="adapt", what="--way probe")
        width, classes = support.x.shape[1], support.classes
        weight, bias = np.zeros((classes, width), dtype=np.float32), np.full(classes, -1e4, dtype=np.float32)
        known = np.unique(support.y)
        if len(known) == 1:
            bias[known] = 0
            return Linear(weight, bias)
        fitted = linear_model.LogisticRegression(C=self.c, max_iter=1000).fit(support.x.astype(np.float64), support.y)
        coefficients, offsets = fitted.coef_, fitted.intercept_
        if len(known) == 2:  # scikit-learn keeps one row for two classes: the log-odds of the second
            coefficients, offsets = np.concatenate([-coefficients, coefficients]) / 2, np.concatenate([-offsets, offsets]) / 2
        weight[known], bias[known] = coefficients, offsets
        return Linear(weight, bias)
