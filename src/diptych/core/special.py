"""Distribution functions that confidence intervals and tests need, in float64, without SciPy.

The incomplete beta function is Lentz's evaluation of its continued fraction (Press et al. 2007, Numerical Recipes, 6.4).
Against scipy.special the relative error is below 1e-9 for parameters up to 1,000 and 1e-8 up to 100,000
(tests/core/test_special.py).
"""

from __future__ import annotations

import math
from statistics import NormalDist

_NORMAL = NormalDist()
_TINY = 1e-300
_TERMS = 20_000  # the fraction converges in about sqrt(max(a, b)) terms


def normal_cdf(x: float) -> float:
    """P(X < x) of the standard normal distribution."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def normal_quantile(p: float) -> float:
    """The x with P(X < x) = p, 0 < p < 1."""
    return _NORMAL.inv_cdf(p)


def beta_cdf(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b): P(X < x) of the beta distribution. a, b > 0."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    front = math.exp(_log_beta(a, b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _log_beta(a: float, b: float) -> float:
    """−log B(a, b)."""
    return math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 / _off_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1 / _off_zero(1 + even * d), _off_zero(1 + even / c)
        value *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 / _off_zero(1 + odd * d), _off_zero(1 + odd / c)
        value *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return value


def _off_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def beta_quantile(a: float, b: float, p: float) -> float:
    """The x with I_x(a, b) = p, by Newton's method kept within a bracket."""
    if p <= 0:
        return 0.0
    if p >= 1:
        return 1.0
    low, high, x = 0.0, 1.0, a / (a + b)
    scale = _log_beta(a, b)
    for _ in range(200):
        above = beta_cdf(a, b, x) - p
        if above == 0:
            return x
        low, high = (low, x) if above > 0 else (x, high)
        log_slope = scale + (a - 1) * math.log(x) + (b - 1) * math.log1p(-x)
        new = x - above * math.exp(-log_slope) if abs(log_slope) < 600 else math.nan
        if not low < new < high:
            # far below: the geometric mean, since quantiles near 0 are many orders of magnitude from the mean
            new = math.sqrt(low * high) if low > 0 and high / low > 4 else (low + high) / 2 if low > 0 else high / 16
        if abs(new - x) <= 1e-15 * x or high - low <= 1e-16 * high:
            return new
        x = new
    return x


def student_cdf(freedom: float, t: float) -> float:
    """P(T < t) of Student's t distribution; ``freedom`` > 0 need not be a whole number."""
    if math.isinf(t):
        return float(t > 0)
    if t * t < freedom:  # near the centre the other tail's argument would be close to 1 and lose digits
        return 0.5 + math.copysign(0.5 * beta_cdf(0.5, freedom / 2, t * t / (freedom + t * t)), t)
    tail = 0.5 * beta_cdf(freedom / 2, 0.5, freedom / (freedom + t * t))
    return 1 - tail if t > 0 else tail


def student_quantile(freedom: float, p: float) -> float:
    """The t with P(T < t) = p, 0 < p < 1."""
    if p == 0.5:
        return 0.0
    tail = 2 * min(p, 1 - p)
    if tail < 0.5:
        x = beta_quantile(freedom / 2, 0.5, tail)
        size = math.sqrt(freedom * (1 - x) / x)
    else:  # near the centre x is close to 1 and would lose digits
        y = beta_quantile(0.5, freedom / 2, 1 - tail)
        size = math.sqrt(freedom * y / (1 - y))
    return size if p > 0.5 else -size
