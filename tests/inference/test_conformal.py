"""Conformal sets: small cases by hand, scores against plain loops, and coverage over many random splits."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.stats import binom

from diptych.core.errors import DiptychError
from diptych.inference.predict.calibration import FILE, read_calibration
from diptych.inference.predict.conformal import (
    KINDS,
    Conformal,
    aps_scores,
    calibrated,
    fewest,
    lac_scores,
    threshold,
    too_few,
    uniform,
)


@pytest.mark.parametrize(
    ("n", "error", "rank"),
    [(9, 0.1, 9), (8, 0.1, None), (19, 0.1, 18), (20, 0.1, 19), (99, 0.05, 95), (10, 0.3, 8), (9, 0.3, 7), (1, 0.5, 1), (3, 0.25, 3)],
)  # fmt: skip
def test_the_threshold_is_the_rank_with_one_more(n: int, error: float, rank: int | None) -> None:
    scores = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
    assert threshold(scores, error) == (math.inf if rank is None else rank)
    exact = math.ceil((n + 1) * (1 - Fraction(str(error))))  # in fractions: 10 · (1 − 0.3) is 7, not 7.000000000000001
    assert (exact if exact <= n else None) == rank


@pytest.mark.parametrize("error", [0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.5])
def test_the_fewest_pictures(error: float) -> None:
    n = fewest(error)
    assert math.isfinite(threshold(np.zeros(n), error)) and (n == 1 or math.isinf(threshold(np.zeros(n - 1), error)))


def aps_by_hand(p: list[float], label: int, u: float) -> float:
    """Romano et al. 2020, equation 7, as a loop: classes from the likeliest on, the last one only in part."""
    total = 0.0
    for c in sorted(range(len(p)), key=lambda c: (-p[c], c)):
        if c == label:
            return total + u * p[c]
        total += p[c]
    raise AssertionError


def test_scores_are_those_of_plain_loops() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), 40)
    p[0] = [0.3, 0.3, 0.2, 0.1, 0.1]  # ties
    u = rng.random(40)
    expected = [[aps_by_hand(list(row), c, v) for c in range(5)] for row, v in zip(p, u, strict=True)]
    np.testing.assert_allclose(aps_scores(p, u), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(aps_scores(p), [[aps_by_hand(list(row), c, 1.0) for c in range(5)] for row in p], atol=1e-12)
    np.testing.assert_array_equal(lac_scores(p), [[1 - v for v in row] for row in p])


def test_sets_by_hand() -> None:
    p = np.array([[0.9, 0.05, 0.05], [0.45, 0.45, 0.1], [0.4, 0.3, 0.3]])
    assert Conformal("lac", 0.1, 0.6, 9).sets(p).tolist() == [[True, False, False], [True, True, False], [True, False, False]]
    assert Conformal("lac", 0.1, 0.5, 9).sets(p).tolist()[1:] == [[False] * 3, [False] * 3]
    assert Conformal("aps", 0.1, 0.92, 9).sets(p).tolist() == [[True, False, False], [True, True, False], [True, True, False]]
    assert Conformal("lac", 0.1, math.inf, 3).sets(p).all()


def drawn(rng: np.random.Generator, n: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a model that is overconfident and prefers a class, and true classes."""
    labels = rng.integers(classes, size=n)
    logits = rng.normal(0, 1, (n, classes)) + 1.2 * np.eye(classes)[labels] + np.array([0.5, *[0.0] * (classes - 1)])
    e = np.exp(2.5 * logits)
    return e / e.sum(1, keepdims=True), labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "error"), [(9, 0.25), (39, 0.1), (30, 0.2)])
def test_coverage_over_random_splits(kind, n: int, error: float) -> None:
    """One new picture a split, so that hits are independent: binomial with p = ⌈(n + 1)(1 − error)⌉ / (n + 1), exactly."""
    rng, splits, hits = np.random.default_rng(n), 3000, 0
    p, y = drawn(rng, splits * (n + 1))
    for s in range(splits):
        rows = slice(s * (n + 1), (s + 1) * (n + 1) - 1)
        new = rows.stop
        conformal = calibrated(p[rows], y[rows], error, kind, seed=f"{s} ")
        hits += bool(conformal.sets(p[new : new + 1], uniform([f"new {s}"]))[0, y[new]])
    expected = math.ceil((n + 1) * (1 - error) - 1e-9) / (n + 1)
    assert expected >= 1 - error - 1e-12
    assert binom.ppf(1e-5, splits, expected) <= hits <= binom.ppf(1 - 1e-5, splits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_coverage_of_each_class(kind) -> None:
    """A rare, difficult class is covered as often as promised with thresholds of its own, and not with one for all."""
    rng, splits = np.random.default_rng(11), 800
    hits, alone, seen = np.zeros(2), 0, 0
    for s in range(splits):
        y = np.repeat([0, 1], [60, 19])
        logits = rng.normal(0, 1, (81, 2)) + np.array([2.0, 0.0])  # the model prefers class 0
        logits[np.arange(81), [*y, 0, 1]] += 1.0
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        own = calibrated(p[:79], y, 0.1, kind, f"{s} ", each_class=True)
        draws = uniform([f"{s} a", f"{s} b"])
        hits += own.sets(p[79:], draws)[[0, 1], [0, 1]]
        alone += calibrated(p[:79], y, 0.1, kind, f"{s} ").sets(p[79:], draws)[1, 1]
        seen += 1
    for c, n in enumerate((60, 19)):
        expected = math.ceil((n + 1) * 0.9 - 1e-9) / (n + 1)
        assert binom.ppf(1e-5, splits, expected) <= hits[c] <= binom.ppf(1 - 1e-5, splits, expected)
    assert alone < 0.8 * seen


def test_thresholds_of_classes_with_few_pictures() -> None:
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    found = calibrated(p, np.array([0, 0, 0, 1]), 0.25, each_class=True)
    assert found.threshold == (pytest.approx(0.3), math.inf) and found.few == (1,) and found.n == 4
    assert found.sets(np.array([[0.95, 0.05], [0.1, 0.9]])).tolist() == [[True, True], [False, True]]
    assert "needs 3 calibration pictures of it at least; every set holds the 1 class with fewer: b" in too_few(found, ("a", "b"))
    assert Conformal.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    for threshold_ in (0.5, math.inf):
        one = Conformal("aps", 0.1, threshold_, 9)
        assert Conformal.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_aps_without_draws_covers_at_least() -> None:
    rng, splits, hits = np.random.default_rng(5), 2000, 0
    p, y = drawn(rng, splits * 20)
    for s in range(splits):
        own = aps_scores(p[20 * s : 20 * s + 19])[np.arange(19), y[20 * s : 20 * s + 19]]
        hits += aps_scores(p[20 * s + 19 : 20 * s + 20])[0, y[20 * s + 19]] <= threshold(own, 0.1)
    assert hits >= binom.ppf(1e-5, splits, 0.9)


def test_classes_that_the_model_does_not_know_make_sets_larger() -> None:
    rng = np.random.default_rng(1)
    p, y = drawn(rng, 99)
    known = calibrated(p, y, 0.2)
    some = calibrated(p, np.where(np.arange(99) < 10, -1, y), 0.2)
    assert some.threshold > known.threshold and some.n == 99
    most = calibrated(p, np.where(np.arange(99) < 30, -1, y), 0.2)
    assert math.isinf(most.threshold) and "30" not in too_few(most) and "does not know" in too_few(most)


def test_too_few_pictures_are_said_so() -> None:
    p, y = drawn(np.random.default_rng(2), 8)
    conformal = calibrated(p, y, 0.1)
    assert "needs 9 calibration pictures at least, there are 8" in too_few(conformal) and conformal.sets(p).all()
    assert not too_few(calibrated(*drawn(np.random.default_rng(2), 9), 0.1))
    for rate in (0, 1, -0.1, 10, math.nan):
        with pytest.raises(DiptychError, match=r"--error .*between 0 and 1"):
            calibrated(p, y, rate)
    with pytest.raises(DiptychError, match=r"--calibrate ADDRESS"):
        calibrated(np.zeros((0, 3)), np.zeros(0, int), 0.1)


def test_draws_do_not_depend_on_the_order() -> None:
    names = [f"{i}.png" for i in range(4000)]
    u = uniform(names)
    assert u.tolist() == uniform(names[::-1])[::-1].tolist() and abs(u.mean() - 0.5) < 0.02 and len(set(u)) == 4000
    assert uniform([]).shape == (0,)


def save_calibration(folder, logits, labels) -> None:
    save_file({"logits": np.asarray(logits, np.float32), "labels": np.asarray(labels, np.int64)}, folder / FILE)


def test_the_file_of_out_of_fold_logits(tmp_path) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(6, 3)).astype(np.float32)
    logits[2] = np.nan
    assert read_calibration(tmp_path, 3) is None
    save_calibration(tmp_path, logits, np.array([0, 1, 2, 2, 1, 0]))
    p, y = read_calibration(tmp_path, 3, temperature=2.0)
    assert y.tolist() == [0, 1, 2, 1, 0]
    for row, given in zip(p, logits[[0, 1, 3, 4, 5]].astype(float), strict=True):
        e = [math.exp(v / 2) for v in given]
        np.testing.assert_allclose(row, [v / sum(e) for v in e], atol=1e-12)
    save_calibration(tmp_path, np.full((2, 3), np.nan), np.array([0, 1]))
    assert read_calibration(tmp_path, 3)[0].shape == (0, 3)


def test_a_file_that_does_not_fit(tmp_path) -> None:
    save_calibration(tmp_path, np.zeros((4, 3)), np.zeros(4))
    with pytest.raises(DiptychError, match=rf"{FILE}: logits \[4, 3\] and labels \[4\] do not fit the model's 5 classes"):
        read_calibration(tmp_path, 5)
    save_calibration(tmp_path, np.zeros((4, 3)), np.array([0, 1, 2, 3]))
    with pytest.raises(DiptychError, match=r"labels from 0 to 3; expected 0 to 2"):
        read_calibration(tmp_path, 3)
    save_file({"logits": np.zeros((4, 3), np.float32)}, tmp_path / FILE)
    with pytest.raises(DiptychError, match=r"no array .*labels"):
        read_calibration(tmp_path, 3)
    (tmp_path / FILE).write_bytes(b"half a file")
    with pytest.raises(DiptychError, match=r"cannot be read"):
        read_calibration(tmp_path, 3)
