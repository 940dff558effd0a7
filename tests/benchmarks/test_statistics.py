"""Intervals that cover, tests that do not cry wolf."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diptych.benchmarks.statistics import (
    clopper_pearson,
    function_interval,
    holm,
    mean,
    mean_interval,
    paired_test,
    sign_flip_p,
    spread,
    sums_interval,
)  # fmt: skip


def clustered_data(rng: np.random.Generator, clusters: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Items of a cluster share most of their value; the true mean is 0."""
    values = rng.normal(size=(clusters, 1)) + 0.5 * rng.normal(size=(clusters, size))
    return values.ravel(), np.repeat(np.arange(clusters), size)


def test_clustered_bootstrap_covers_and_unclustered_does_not() -> None:
    rng = np.random.default_rng(1)
    hits = np.zeros(2)
    for trial in range(150):
        values, clusters = clustered_data(rng, 40, 8)
        for i, names in enumerate((clusters, np.arange(len(values)))):
            found = mean_interval(values, names.tolist(), share=False, resamples=300, seed=trial)
            hits[i] += found.low <= 0 <= found.high
    assert hits[0] / 150 > 0.88
    assert hits[1] / 150 < 0.70


def test_function_interval_agrees_with_that_of_the_mean() -> None:
    values, clusters = clustered_data(np.random.default_rng(2), 30, 5)
    a = mean_interval(values, clusters.tolist(), share=False)
    b = function_interval(lambda index: values[index].mean(), clusters.tolist())
    assert a.value == pytest.approx(b.value)
    assert (b.low, b.high) == pytest.approx((a.low, a.high), abs=0.04)


def test_a_biased_metric_keeps_its_estimate_inside() -> None:
    """The norm of a mean of noise is larger on every resample than on the sample."""
    noise = np.random.default_rng(3).normal(size=(100, 50))
    found = function_interval(lambda index: float(np.linalg.norm(noise[index].mean(0))), range(100), resamples=300)
    assert found.low < found.value < found.high


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=3, max_size=20), st.randoms())
def test_order_and_duplicates(values: list[float], random) -> None:
    names = [f"c{i // 2}" for i in range(len(values))]
    found = mean_interval(values, names, resamples=200)
    order = list(range(len(values)))
    random.shuffle(order)
    shuffled = mean_interval([values[i] for i in order], [names[i] for i in order], resamples=200)
    assert (shuffled.value, shuffled.low, shuffled.high) == pytest.approx((found.value, found.low, found.high))
    twice = mean_interval(values * 2, names * 2, resamples=200)  # the same items again tell nothing new
    assert (twice.value, twice.low, twice.high) == pytest.approx((found.value, found.low, found.high))


def test_unclustered_duplicates_would_narrow() -> None:
    """What the clusters are there to prevent: hence the test above can fail."""
    values = np.random.default_rng(4).uniform(size=40)
    once = mean_interval(values, range(40))
    twice = mean_interval(np.tile(values, 2), range(80))
    assert twice.high - twice.low < 0.85 * (once.high - once.low)


def test_agreement_of_all_is_not_certainty() -> None:
    """0 of 10: the exact two-sided bound 1 − .025^(1/10) = .3085 (Clopper & Pearson 1934, any table)."""
    found = mean_interval([0.0] * 10, range(10))
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(1 - 0.025**0.1) == pytest.approx(0.3085, abs=1e-4)
    assert mean_interval([1.0] * 10, range(10)).low == pytest.approx(0.025**0.1)
    assert mean_interval([1.0] * 100, [i % 10 for i in range(100)]).low == pytest.approx(0.025**0.1)  # ten clusters
    half = mean_interval([0.5] * 100, range(100))
    assert half.low < 0.41 and half.high > 0.59
    assert function_interval(lambda index: 1.0, range(10), share=True).low == pytest.approx(0.025**0.1)


def test_clopper_pearson_agrees_with_scipy() -> None:
    for hits, n in [(0, 7), (3, 20), (20, 20)]:
        theirs = stats.binomtest(hits, n).proportion_ci(method="exact")
        assert clopper_pearson(hits / n, n) == pytest.approx((theirs.low, theirs.high))


def test_one_cluster_says_nothing_about_an_unbounded_metric() -> None:
    found = mean_interval([3.0, 4.0], ["a", "a"], share=False)
    assert found.value == 3.5 and math.isnan(found.low) and math.isnan(found.high)


def test_mean_of_equal_values_is_that_value() -> None:
    assert mean([1 / 6] * 100) == 1 / 6  # a plain sum gives .16666666666666663


def test_exact_paired_test_by_hand_and_against_scipy() -> None:
    assert paired_test([1, 1, 1], [0, 0, 0], range(3)).p == 2 / 8  # all signs alike: 2 of 8 patterns
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.6, 1, 9), rng.normal(0, 1, 9)
    theirs = stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf)
    assert paired_test(a, b, range(9)).p == pytest.approx(theirs.pvalue)


def test_drawn_paired_test() -> None:
    rng = np.random.default_rng(6)
    a = rng.integers(0, 2, 300).astype(float)
    assert paired_test(a, a, range(300)).p == 1
    assert paired_test(np.ones(50), np.zeros(50), range(50)).p == 1 / 10_001  # never 0
    found = paired_test(a, np.zeros(300), range(300))
    assert found.difference == pytest.approx(a.mean()) and found.low < found.difference < found.high
    b = rng.normal(size=40)
    theirs = stats.permutation_test((b, np.zeros(40)), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=9999)
    assert paired_test(b, np.zeros(40), range(40)).p == pytest.approx(theirs.pvalue, abs=0.03)


def test_false_alarms_are_rare_only_with_clusters() -> None:
    rng = np.random.default_rng(7)
    alarms = np.zeros(2)
    for _ in range(100):
        values, clusters = clustered_data(rng, 12, 8)
        alarms[0] += paired_test(values, np.zeros_like(values), clusters.tolist()).p < 0.05
        values, clusters = clustered_data(rng, 12, 8)
        alarms[1] += stats.ttest_1samp(values, 0).pvalue < 0.05
    assert alarms[0] <= 12
    assert alarms[1] >= 25


def test_holm_by_hand() -> None:
    """.005·4, .01·3, .03·2, then .04·1 is raised to the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.slow
def test_intervals_keep_their_promise() -> None:
    """Clustered intervals cover 93–97 %, unclustered ones fail; of 800 trials the standard error is .8 points."""
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    bench = pytest.importorskip("bench.cases.intervals")
    for case in bench.CASES[:4]:
        found = bench.coverage(case, clusters=40, trials=800, resamples=600, seed=3)
        assert 0.93 <= found["clustered"] <= 0.97, (case.name, found)
        assert found["unclustered"] < 0.9, (case.name, found)


def test_intervals_of_few_clusters_are_wider_than_percentiles() -> None:
    """By Student's t and √(G/(G−1)): at G = 6 by 2.57/1.96 · 1.095, for data without skew."""
    values = np.array([-5.0, -3, -1, 1, 3, 5])
    found = mean_interval(values, range(6), share=False, resamples=20_000)
    drawn = np.random.default_rng(0).choice(values, (20_000, 6)).mean(1)
    plain = np.quantile(drawn, [0.025, 0.975])
    assert 1.2 < (found.high - found.low) / (plain[1] - plain[0]) < 1.45


def test_skewed_data_get_skewed_intervals() -> None:
    values = np.random.default_rng(0).lognormal(size=30)
    found = mean_interval(values, range(30), share=False)
    assert found.high - found.value > 1.2 * (found.value - found.low)


def test_sums_agree_with_the_mean_and_with_any_function() -> None:
    values, clusters = clustered_data(np.random.default_rng(8), 25, 4)
    items = np.stack([values, np.ones(len(values))], axis=1)
    a = mean_interval(values, clusters.tolist(), share=False)
    b = sums_interval(items, lambda sums: sums[..., 0] / sums[..., 1], clusters.tolist())
    assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high), abs=0.01)


def test_many_clusters_are_bundled_without_a_change() -> None:
    values = np.random.default_rng(9).normal(size=20_000)
    bundled = mean_interval(values, range(20_000), share=False)
    assert bundled.high - bundled.low == pytest.approx(2 * 1.96 / math.sqrt(20_000), rel=0.06)


def test_sign_flips_of_equal_sums_agree_with_the_binomial_test() -> None:
    sums = np.array([1.0] * 40 + [-1.0] * 20)
    assert sign_flip_p(sums) == pytest.approx(stats.binomtest(40, 60).pvalue, abs=0.005)
    many = np.random.default_rng(10).normal(0.02, 1, 30_000)
    assert sign_flip_p(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.005)


def test_spread_by_hand() -> None:
    found = spread([0.5, 0.7, 0.6])
    assert (found.n, found.mean, found.low, found.high, found.deviation) == (3, pytest.approx(0.6), 0.5, 0.7, pytest.approx(0.1))
    with pytest.raises(ValueError, match="no values"):
        spread([])


@pytest.mark.parametrize("clusters", [6, 8, 12])
def test_intervals_of_few_clusters_are_as_wide_as_those_of_students_t(clusters: int) -> None:
    """Of values like a normal sample. Without the factor for the variance of few clusters they would be 5 to 9 % too narrow."""
    values = stats.norm.ppf((np.arange(clusters) + 0.5) / clusters)
    found = mean_interval(values, list(range(clusters)), share=False, resamples=100_000)
    wanted = stats.t.ppf(0.975, clusters - 1) * values.std(ddof=1) / clusters**0.5
    assert (found.high - found.low) / 2 == pytest.approx(wanted, rel=0.035)
    assert (found.high + found.low) / 2 == pytest.approx(0, abs=0.02 * wanted)


def test_the_interval_of_a_share_is_where_the_share_is() -> None:
    """Clusters that are alike are drawn as one kind, as often as there are of them."""
    found = mean_interval([1.0] * 30 + [0.0] * 170, range(200))
    half = 1.96 * math.sqrt(0.15 * 0.85 / 200)
    assert (found.low, found.high) == pytest.approx((0.15 - half, 0.15 + half), abs=0.01)


def test_two_large_clusters_count_as_few() -> None:
    """Two clusters have nearly three quarters of the items. With the freedom of all 14 clusters, intervals cover 83 %."""
    clusters = np.repeat(np.arange(14), [60, 40] + [3] * 12)
    rng, hits = np.random.default_rng(0), 0
    for trial in range(300):
        found = mean_interval(rng.normal(size=14)[clusters], clusters, share=False, resamples=400, seed=trial)
        hits += found.low <= 0 <= found.high
    assert hits / 300 > 0.92
