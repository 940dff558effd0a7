"""The distribution functions of core/special.py against scipy.special."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special as reference

from diptych.core import special

SHAPES = [(a, b) for a in (0.5, 1, 2.5, 30, 999.5, 1e5) for b in (0.5, 1, 3, 70, 2e4)]
FREEDOM = (0.7, 1, 1.9, 2, 5, 7.3, 30, 99, 1000, 1e5)
SHARES = (1e-9, 1e-4, 0.005, 0.025, 0.2, 0.4999, 0.5, 0.6, 0.9, 0.975, 0.9999)


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_beta(a: float, b: float) -> None:
    for p in SHARES:
        x = reference.betaincinv(a, b, p)
        if x < 1e-290 or x == 1:  # beyond what float64 can hold
            continue
        assert special.beta_quantile(a, b, p) == pytest.approx(x, rel=1e-9)
        assert special.beta_cdf(a, b, x) == pytest.approx(reference.betainc(a, b, x), rel=1e-8 if a > 1000 else 1e-9, abs=1e-15)
    assert special.beta_cdf(a, b, 0.0) == special.beta_quantile(a, b, 0.0) == 0
    assert special.beta_cdf(a, b, 1.0) == special.beta_quantile(a, b, 1.0) == 1


@pytest.mark.parametrize("freedom", FREEDOM)
def test_student(freedom: float) -> None:
    for t in (-50, -4.0, -2.0, -0.3, 0.0, 1e-6, 1.0, 2.5, 9.0):
        assert special.student_cdf(freedom, t) == pytest.approx(reference.stdtr(freedom, t), rel=1e-10, abs=1e-15)
    for p in SHARES:
        assert special.student_quantile(freedom, p) == pytest.approx(reference.stdtrit(freedom, p), rel=1e-9, abs=1e-12)
    assert (special.student_cdf(freedom, -np.inf), special.student_cdf(freedom, np.inf)) == (0, 1)


def test_normal() -> None:
    for x in (-8.0, -2.0, 0.0, 0.5, 3.0):
        assert special.normal_cdf(x) == pytest.approx(float(reference.ndtr(x)), rel=1e-13)
    for p in SHARES:
        assert special.normal_quantile(p) == pytest.approx(float(reference.ndtri(p)), rel=1e-12, abs=1e-15)
