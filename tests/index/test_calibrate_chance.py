"""How high the best of many pictures scores by chance, where captions tell which pictures do not show what a query is for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from diptych.core.arrays import unit_rows
from diptych.index.calibrate import Calibration
from diptych.index.cutoff.background import Background
from diptych.index.cutoff.chance import Chance


def test_chance_against_plain_loops() -> None:
    rng = np.random.default_rng(0)
    absent = rng.normal(size=(4, 40))
    absent[rng.random((4, 40)) < 0.2] = np.nan
    chance = Chance(absent)

    rows = [[v for v in row if not math.isnan(v)] for row in absent.tolist()]
    means = [sum(row) / len(row) for row in rows]
    spreads = [math.sqrt(sum((v - m) ** 2 for v in row) / len(row)) for row, m in zip(rows, means, strict=True)]
    pool = sorted((v - m) / d for row, m, d in zip(rows, means, spreads, strict=True) for v in row)
    tail = len(pool) // 10
    edge = pool[-tail - 1]
    excess = sum(v - edge for v in pool[-tail:]) / tail

    def one(z: float, pictures: int) -> float:
        above = tail / len(pool) * math.exp(-(z - edge) / excess) if z > edge else sum(v >= z for v in pool) / len(pool)
        return 1 - (1 - above) ** pictures

    for score in (-2.0, -0.3, 0.4, 1.2, 1.9, 3.5):
        for pictures in (1, 7, 500):
            expected = sum(one((score - m) / d, pictures) for m, d in zip(means, spreads, strict=True)) / 4
            assert np.isclose(chance.of(np.array([score]), pictures)[0], expected, atol=1e-9)


def test_the_threshold_has_the_rate() -> None:
    chance = Chance(np.random.default_rng(1).normal(size=(12, 60)))
    for rate in (0.01, 0.05, 0.3):
        for pictures in (1, 12, 10_000):
            assert np.isclose(chance.of(np.array(chance.threshold(rate, pictures)), pictures), rate, rtol=1e-3, atol=1e-6)
    assert chance.threshold(0.05, 10) < chance.threshold(0.05, 100) < chance.threshold(0.01, 100)


def test_higher_scores_have_a_lower_chance_and_a_shift_shifts_the_threshold() -> None:
    absent = np.random.default_rng(2).normal(size=(5, 50))
    chance, shifted = Chance(absent), Chance(absent * 2 + 3)
    scores = np.linspace(-3, 5, 40)
    assert (np.diff(chance.of(scores, 20)) <= 1e-12).all()
    assert np.allclose(chance.of(scores, 20), shifted.of(scores * 2 + 3, 20), atol=1e-6)
    assert np.isclose(shifted.threshold(0.05, 20), chance.threshold(0.05, 20) * 2 + 3, atol=1e-5)


def test_queries_of_few_pictures_are_left_out() -> None:
    absent = np.full((3, 30), np.nan)
    absent[2, 0] = 1
    assert not Chance(absent).known and not Chance(np.zeros((0, 30))).known
    absent[0] = np.arange(30)
    absent[1, :5] = 1000  # too few to know
    assert Chance(absent).known and Chance(absent).threshold(0.05, 3) < 100


@pytest.mark.parametrize("pictures", [12, 100, 1000])
def test_the_stated_rate_holds_where_queries_differ_in_noise(pictures: int) -> None:
    """New queries and new pictures; each query with a mean and a deviation of its own."""
    alarms = []
    for seed in range(6):
        rng = np.random.default_rng(seed)

        def drawn(queries: int, n: int, rng: np.random.Generator = rng) -> np.ndarray:
            return rng.normal(0, 0.5, (queries, 1)) + rng.uniform(0.7, 1.3, (queries, 1)) * rng.normal(size=(queries, n))

        alarms.append((drawn(500, pictures).max(1) > Chance(drawn(200, 200)).threshold(0.05, pictures)).mean())
    error = math.sqrt(0.05 * 0.95 / (6 * 200))  # six thresholds of 200 queries
    assert abs(np.mean(alarms) - 0.05) < 3 * error


def concepts(rng: np.random.Generator, shown: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Pictures that show concepts, as the mean of their vectors with noise."""
    noise = 0.5 * unit_rows(rng.normal(size=(len(shown), names.shape[1])))
    return unit_rows((unit_rows(shown @ names) + noise).astype(np.float32))


def background(rng: np.random.Generator, names: np.ndarray, words: list[str]) -> Background:
    """Two concepts a picture; captions are of pairs."""
    shown = np.zeros((200, len(names)))
    for row in shown:
        row[rng.choice(len(names), 2, replace=False)] = 1
    pairs = [(int(a), int(b)) for a, b in (np.flatnonzero(r) for r in shown)]
    texts = unit_rows(np.stack([names[a] + names[b] for a, b in pairs]).astype(np.float32))
    made = Background([f"a {words[a]} and a {words[b]}" for a, b in pairs], texts, concepts(rng, shown, names))
    made.absent = made.of_absent(words, names.astype(np.float32), [frozenset({words[a], words[b]}) for a, b in pairs])
    return made


def test_present_and_absent_where_most_background_texts_are_of_what_is_there(tmp_path: Path) -> None:
    """Most captions of the background fit a collection of the same world: its best hits by them say nothing of chance."""
    rng = np.random.default_rng(4)
    words = [f"{a}{b}w" for a in "abcd" for b in "klm"]
    names = unit_rows(rng.normal(size=(12, 64)))
    made = background(rng, names, words)
    assert np.isnan(made.absent).sum() == 400  # two concepts of each of 200 pictures
    found, alarms = [], []
    for _ in range(40):
        shown = np.zeros((12, 12))
        for row in shown:
            row[rng.choice(12, 2, replace=False)] = 1
        pictures = concepts(rng, shown, names)
        calibration = Calibration.of_background(made, pictures)
        for c in range(12):
            verdict = calibration.judge(names[c], pictures[np.argsort(-pictures @ names[c])], text=f"a {words[c]}")
            (found if shown[:, c].any() else alarms).append(verdict.present)
    assert np.mean(found) > 0.9 and np.mean(alarms) < 0.15
    calibration.save(tmp_path / "c.npz")
    again = Calibration.load(tmp_path / "c.npz")
    assert np.isclose(again.threshold(0.05), calibration.threshold(0.05)) and again.by_chance.known
    assert again.threshold(0.05, 3) < again.threshold(0.05)
