"""Paired tests and intervals of several recipes and seeds, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diptych.comparison.paired import Credits, estimates, paired_tests

KEY = ("retrieval", "text-to-image/recall@1")


def run(values: list[float], cluster: int = 1) -> Credits:
    return {KEY: {f"i{n}": (float(v), f"c{n // cluster}") for n, v in enumerate(values)}}


def recipes(
    seed: int, effects: dict[str, float], seeds: int = 3, items: int = 200, seed_noise: float = 0.0
) -> dict[str, dict[int, Credits]]:
    rng = np.random.default_rng(seed)
    hard = rng.uniform(-0.2, 0.2, items)
    return {
        name: {
            s: run(list((rng.uniform(size=items) < 0.5 + effect + hard + rng.normal(0, seed_noise)).astype(float)))
            for s in range(seeds)
        }
        for name, effect in effects.items()
    }


def test_one_seed_covers_items_alone_and_three_cover_both() -> None:
    runs = recipes(0, {"a": 0.2, "b": 0.0})
    one = paired_tests({name: {0: seeds[0]} for name, seeds in runs.items()})[0]
    a, b = (np.array([c for c, _ in runs[name][0][KEY].values()]) for name in "ab")
    assert one["difference"] == pytest.approx(a.mean() - b.mean())
    all_seeds = paired_tests(runs)[0]
    means = {name: np.mean([[c for c, _ in run[KEY].values()] for run in seeds.values()]) for name, seeds in runs.items()}
    assert all_seeds["difference"] == pytest.approx(means["a"] - means["b"])
    assert all_seeds["high"] - all_seeds["low"] < one["high"] - one["low"], "three times the data, and no noise of seeds"


def test_noise_of_seeds_widens_the_interval() -> None:
    """Each seed is off by as much for all items: more items do not help, and the difference is not shown."""
    quiet, noisy = (paired_tests(recipes(3, {"a": 0.1, "b": 0.0}, items=2000, seed_noise=noise))[0] for noise in (0.0, 0.2))
    assert noisy["high"] - noisy["low"] > 4 * (quiet["high"] - quiet["low"])
    assert quiet["p"] < 0.05


@pytest.mark.slow
def test_coverage_over_items_and_seeds() -> None:
    """Without a difference, p < .05 in about 5 % of comparisons of three seeds, where seeds are noisy too."""
    false = sum(paired_tests(recipes(s, {"a": 0.0, "b": 0.0}, items=100, seed_noise=0.05))[0]["p"] < 0.05 for s in range(400))
    assert false / 400 < 0.09


def test_estimates_are_means_and_never_leave_the_range() -> None:
    runs = {"a": {0: run([1.0] * 199 + [0.0]), 1: run([1.0] * 200), 2: run([1.0] * 200)}, "b": {0: run([0.0, 1.0] * 100)}}
    rows = estimates(runs)
    assert [(r["recipe"], r["seeds"]) for r in rows] == [("a", 3)], "one seed has no interval over seeds"
    assert rows[0]["value"] == pytest.approx(599 / 600) and 0.98 < rows[0]["low"] < 599 / 600 and rows[0]["high"] == 1.0
    scores = {"a": {s: {("captions", "cider"): {f"i{n}": (2.0 + n / 10 + s, f"i{n}") for n in range(30)}} for s in range(3)}}
    assert estimates(scores)[0]["high"] > 3.9, "CIDEr has no such range"


def test_recipes_that_agree_everywhere_and_recipes_that_differ_everywhere() -> None:
    same = {name: {s: run([1.0, 0.0] * 50) for s in range(3)} for name in "ab"}
    assert paired_tests(same)[0]["p"] == 1.0 and paired_tests(same)[0]["difference"] == 0
    apart = {"a": {s: run([1.0] * 100) for s in range(3)}, "b": {s: run([0.0] * 100) for s in range(3)}}
    row = paired_tests(apart)[0]
    assert row["difference"] == 1.0 == row["high"] and row["p"] < 1e-6


def test_items_of_one_cluster_say_nothing() -> None:
    """There is no spread, so neither a difference nor an interval is claimed."""
    runs = {
        "a": {s: run([1.0, 1.0, 0.0], cluster=3) for s in range(3)},
        "b": {s: run([0.0, 1.0, 0.0], cluster=3) for s in range(3)},
    }
    assert paired_tests(runs) == [] and estimates(runs) == []


def test_the_reference_limits_pairs_and_correction() -> None:
    runs = recipes(5, {"clip": 0.0, "a": 0.05, "b": 0.1, "c": -0.1})
    rows = paired_tests(runs, "clip")
    assert {frozenset((r["a"], r["b"])) for r in rows} == {frozenset(("clip", x)) for x in "abc"}
    by_all = {frozenset((r["a"], r["b"])): r for r in paired_tests(runs)}
    for row in rows:
        other = by_all[frozenset((row["a"], row["b"]))]
        assert other["p"] == pytest.approx(row["p"]) and other["p_holm"] >= row["p_holm"] >= row["p"]


def test_recipes_without_common_items_are_not_compared() -> None:
    other: Credits = {KEY: {"x": (1.0, "x")}}
    assert paired_tests({"a": {0: run([1.0, 0.0])}, "b": {0: other}}) == []
    assert not any(math.isnan(r["value"]) for r in estimates({"a": {0: run([1.0, 0.0]), 1: run([1.0, 1.0])}}))
