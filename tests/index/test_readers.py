"""Words that are read from vectors of pictures: ridge regression on the words of captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diptych.index.calibrate import Calibration
from diptych.index.cutoff.background import Background
from diptych.index.cutoff.readers import Readers, area
from diptych.index.cutoff.ridge import SHARES as RIDGE

WORDS = ["heart", "key", "moon"]


def data(number: int = 150, width: int = 12, seed: int = 0) -> tuple[np.ndarray, list[frozenset[str]]]:
    """Vectors in which each word adds a direction of its own, and the words."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(9).normal(size=(3, width))
    shown = rng.random((number, 3)) < np.array([0.3, 0.25, 0.2])
    vectors = shown @ directions + 0.8 * rng.normal(size=(number, width)) + 0.3
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), [frozenset(w for w, s in zip(WORDS, row, strict=True) if s) for row in shown]


def ridge(vectors: np.ndarray, truth: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Weights and bias by the normal equations; the bias is not penalised."""
    middle, mean = vectors.mean(0), truth.mean()
    centred = vectors - middle
    weights = np.linalg.solve(centred.T @ centred + penalty * np.eye(vectors.shape[1]), centred.T @ (truth - mean))
    return weights, float(mean - middle @ weights)


def test_readers_against_refits_without_each_picture() -> None:
    vectors, spoken = data()
    made = Readers.fit(vectors, spoken, WORDS, np.zeros((3, 150)))
    x = vectors.astype(np.float64)
    scale = np.linalg.svd(x - x.mean(0), compute_uv=False)
    truth = np.array([[w in each for w in WORDS] for each in spoken], np.float64)

    def left_out(share: float) -> np.ndarray:
        """Predictions for each picture by a regression on the others, with the penalty of all."""
        out = np.zeros_like(truth)
        for i in range(len(x)):
            rest = np.arange(len(x)) != i
            for j in range(3):
                weights, bias = ridge(x[rest], truth[rest, j], share * (scale**2).mean())
                out[i, j] = x[i] @ weights + bias
        return out

    errors = {}
    for share in RIDGE:
        errors[share] = float((((left_out(share) - truth) ** 2).mean(0) / (truth.mean(0) * (1 - truth.mean(0)))).mean())
    best = min(errors, key=lambda share: errors[share])
    out = left_out(best)
    assert list(made.words) == WORDS and np.array_equal(np.isnan(made.absent), truth.T > 0)
    np.testing.assert_allclose(made.absent, np.where(truth > 0, np.nan, out).T, atol=2e-4)
    for j, word in enumerate(WORDS):
        weights, bias = ridge(x, truth[:, j], best * (scale**2).mean())
        np.testing.assert_allclose(made.scores(vectors[:7], f"a {word}"), x[:7] @ weights + bias, atol=1e-5)


def test_words_are_kept_only_where_reading_is_better() -> None:
    vectors, spoken = data()
    truth = np.array([[w in each for w in WORDS] for each in spoken], float).T
    perfect = np.stack([truth[0], 0 * truth[1], truth[2] + 1])  # another way that knows hearts and moons
    assert list(Readers.fit(vectors, spoken, WORDS, perfect).words) == ["key"]
    assert not Readers.fit(vectors, spoken, WORDS, truth).words
    rare = [each - {"key"} for each in spoken]
    assert list(Readers.fit(vectors, rare, WORDS, np.zeros((3, 150))).words) == ["heart", "moon"]  # nothing to learn from
    assert not Readers.fit(vectors[:50], spoken[:50], WORDS, np.zeros((3, 50))).words  # too few pictures


def test_which_texts_are_read() -> None:
    made = Readers.fit(*data(), WORDS, np.zeros((3, 150)))
    assert [made.word_of(t) for t in ("a heart", "the Hearts", "two keys", "a photo of a moon")] == [
        "heart",
        "heart",
        "key",
        "moon",
    ]
    assert [made.word_of(t) for t in ("a red heart", "a heart and a key", "a dog", "", "of")] == [None] * 5
    kept = Readers.of_arrays({name: np.asarray(array) for name, array in made.arrays().items()})
    assert kept is not None and kept.words == made.words
    np.testing.assert_array_equal(kept.absent, made.absent)
    assert Readers.of_arrays({}) is None  # a file of an older version


def test_area_by_counting() -> None:
    assert area(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True])) == 1
    assert area(np.array([3.0, 1, 2, 2]), np.array([True, False, True, False])) == pytest.approx((2 + 1.5) / 4)
    assert area(np.ones(3), np.ones(3, bool)) == 0.5


def test_a_calibration_with_readers_has_the_stated_rate_and_is_kept(tmp_path: Path) -> None:
    vectors, spoken = data(400)
    words = [" and ".join(sorted(each)) or "nothing" for each in spoken[:60]]
    texts = np.random.default_rng(1).normal(size=(60, 12)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    background = Background(words, texts, vectors[:100])
    named = np.stack([texts[0], texts[1], texts[2]])
    background.absent = background.of_absent(WORDS, named, spoken[:100])
    background.readers = Readers.fit(vectors, spoken, WORDS, np.zeros((3, 100)))
    made = Calibration.of_background(background, vectors[:20])
    new, shown = data(2400, seed=5)
    alarms, found = [], []
    for start in range(0, 2400, 6):
        for word, text in zip(WORDS, named, strict=True):
            verdict = made.judge(text, new[start : start + 6], text=f"a {word}", searched=6)
            (found if any(word in each for each in shown[start : start + 6]) else alarms).append(verdict.present)
    assert 0.01 < np.mean(alarms) < 0.1 and np.mean(found) > 0.6
    made.save(tmp_path / "c.npz")
    again = Calibration.load(tmp_path / "c.npz")
    both = [each.judge(named[0], new[:6], text="a heart", searched=6) for each in (made, again)]
    assert both[0].threshold == both[1].threshold and np.array_equal(both[0].relevance, both[1].relevance)
    other = made.judge(named[0], new[:6], text="a red heart", searched=6)  # not read: another score, another threshold
    assert other.threshold != both[0].threshold
