"""Metrics of scores and embeddings: retrieval in blocks, zero-shot, CLIPScore, déjà vu, concept frequency, bias."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diptych.benchmarks.matching import retrieval, zeroshot
from diptych.benchmarks.metrics import bias
from diptych.benchmarks.metrics.ranking import recall_at, standing
from diptych.benchmarks.probes import frequency, memorization
from diptych.benchmarks.results import class_sums, mean_of_classes
from diptych.benchmarks.texts import clipscore
from diptych.core.capabilities import FunctionModel


def positives_of(rng: np.random.Generator, rows: int, columns: int) -> list[list[int]]:
    """Every column belongs to some row, every row has one."""
    owners = np.concatenate([np.arange(rows), rng.integers(rows, size=columns - rows)])
    rng.shuffle(owners)
    return [np.flatnonzero(owners == i).tolist() for i in range(rows)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8])
@pytest.mark.parametrize("block", [1, 200, 1 << 20])
def test_blocks_agree_with_the_plain_ranks(dtype: type, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", block)
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, (7, 19)).astype(dtype)  # many ties
    if scores.dtype.kind == "f":
        scores[rng.random(scores.shape) < 0.1] = np.nan
        scores[0, 0] = np.inf
    positives = positives_of(rng, 7, 19)
    truth = np.zeros((7, 19), dtype=bool)
    for i, mine in enumerate(positives):
        truth[i, mine] = True
    forward, backward = retrieval.standings(scores, positives)
    assert backward is not None
    for found, plain in ((forward, standing(scores, truth)), (backward, standing(scores.T, truth.T))):
        assert [x.tolist() for x in (found.above, found.tied, found.hits)] == [x.tolist() for x in plain]
        assert found.credit(3).tolist() == recall_at(3, *plain).tolist()
        assert found.nans == (~np.isfinite(scores)).sum()


def test_a_caption_of_no_image_allows_one_direction_only() -> None:
    forward, backward = retrieval.standings(np.array([[3.0, 1.0, 2.0]]), [[2]])
    assert forward.rank().tolist() == [2] and backward is None


@pytest.mark.parametrize(
    ("positives", "message"),
    [([[0]], "2 rows"), ([[0], []], "row 1 has no positive"), ([[0], [3]], "no column 3"), ([[0], [1, 1]], "twice")],
)
def test_wrong_positives_are_refused(positives: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval.standings(np.zeros((2, 3)), positives)


@pytest.mark.parametrize(("k", "columns"), [(1, 5), (5, 20), (10, 10)])
def test_equal_scores_land_on_chance(k: int, columns: int) -> None:
    rng = np.random.default_rng(k)
    positives = positives_of(rng, 5, columns)
    forward, backward = retrieval.standings(np.zeros((5, columns)), positives)
    sizes = np.array([len(p) for p in positives])
    assert forward.credit(k).mean() == pytest.approx(retrieval.chance(k, columns, sizes))
    assert backward is not None
    assert backward.credit(k).mean() == pytest.approx(retrieval.chance(k, 5, np.ones(columns)))
    # 1 − C(M − p, k) / C(M, k), by its definition
    assert retrieval.chance(k, columns, sizes) == pytest.approx(
        np.mean([1 - math.comb(columns - int(p), k) / math.comb(columns, k) for p in sizes])
    )


def test_zero_shot_by_hand() -> None:
    texts = {
        "a cat": [2.0, 0],
        "a dog": [0, 1],
        "the cat": [0, 5.0],
        "the dog": [0, 3],
    }  # of "cat", (1, 0) and (0, 1) average to (1, 1)/√2
    model = FunctionModel("m", embed_image=lambda images: np.eye(2), embed_text=lambda given: np.array([texts[t] for t in given]))
    found = zeroshot.ZeroShot(templates=("a {}", "the {}")).scores(model, [np.zeros((1, 1, 3), np.uint8)] * 2, ["cat", "dog"])
    assert found == pytest.approx(np.array([[0.5**0.5, 0], [0.5**0.5, 1]]))
    scores = np.array([[0.9, 0.1, 0], [0.5, 0.5, 0], [0, 1, 0], [1, 0, 0]])
    credits = zeroshot.topk_credits(scores, np.array([0, 0, 0, 2]))
    assert credits.keys() == {"top1"} and credits["top1"].tolist() == [1, 0.5, 0, 0]
    sums = class_sums(credits["top1"], np.array([0, 0, 0, 2])).sum(0)
    assert mean_of_classes(sums) == pytest.approx((1.5 / 3 + 0) / 2)  # class 1 does not occur
    assert "top5" in zeroshot.topk_credits(np.zeros((2, 6)), np.array([0, 1]))


@given(st.integers(2, 30), st.integers(1, 20))
def test_zero_shot_without_an_opinion_is_chance(classes: int, n: int) -> None:
    credits = zeroshot.topk_credits(np.full((n, classes), np.nan), np.arange(n) % classes)
    assert (credits["top1"] == 1 / classes).all()
    assert classes < 6 or (credits["top5"] == 5 / classes).all()


def test_clipscore_by_hand() -> None:
    """cos .6 → 1.5; a negative cosine → 0. RefCLIPScore: best reference cosine .8: 2 · 1.5 · .8 / 2.3."""
    image, caption = np.array([[2.0, 0], [1, 0]]), np.array([[0.6, 0.8], [-1, 0]])
    assert clipscore.clipscore(image, caption) == pytest.approx([1.5, 0])
    references = [np.array([[0.0, 3], [-1, 0]]), np.array([[1.0, 0]])]
    assert clipscore.refclipscore(image, caption, references) == pytest.approx([2 * 1.5 * 0.8 / 2.3, 0])


def test_deja_vu_by_hand() -> None:
    public = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [-1, 0]])
    neighbours = memorization.nearest(np.array([[1.0, 0], [0, 2]]), public, 2)
    assert neighbours.tolist() == [[0, 1], [2, 1]]
    predicted = memorization.predicted_objects(neighbours, [{"cat"}, {"cat", "dog"}, {"car"}, {"bus"}])
    assert predicted == [{"cat", "dog"}, {"car", "cat", "dog"}]
    precision, recall = memorization.precision_recall(predicted, [{"cat", "bus", "tv"}, {"car"}])
    assert precision.tolist() == [1 / 2, 1 / 3] and recall.tolist() == [1 / 3, 1]
    with pytest.raises(ValueError, match="sample 0 has no objects"):
        memorization.precision_recall([{"a"}], [set()])


def test_gaps_by_hand() -> None:
    """Target better in 2 of 4, worse in 1."""
    target, reference = np.array([0.5, 1, 0.2, 0.3]), np.array([0.4, 0.5, 0.4, 0.3])
    assert memorization.population_gap(target, reference).mean() == 1 / 4
    grid = (np.arange(10_000) + 0.5) / 10_000
    curves = [memorization.recall_curve(r, grid).mean() for r in (target, reference)]  # the area by the midpoint rule
    values = [{"precision": r, "recall": r} for r in (target, reference)]
    found = {r.metric: r.value for r in memorization.memorization_results("m", range(4), values[0], {"reference": values[1]})}
    assert found["area"] == pytest.approx(curves[0] - curves[1], abs=1e-3) and found["recall_gap"] == 1 / 4


def test_neighbours_that_tie_are_taken_in_order_and_blocks_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    captions, public = rng.normal(size=(50, 8)), rng.normal(size=(30, 8))
    assert (memorization.nearest(captions, public, 5, block=7) == memorization.nearest(captions, public, 5)).all()
    assert memorization.nearest(np.ones((1, 2)), np.ones((4, 2)), 3).tolist() == [[0, 1, 2]]


def test_frequency_recovers_a_log_linear_law() -> None:
    counts = np.array([1, 3, 10, 30, 100, 300, 1000])
    accuracy = 0.1 + 0.2 * np.log10(counts)
    assert frequency.slope(counts, accuracy) == pytest.approx(0.2)
    assert frequency.correlation(counts, accuracy) == pytest.approx(1)
    bins = frequency.log_bins(counts, accuracy, per_decade=1)
    assert [(b.low, b.concepts) for b in bins] == [(1, 2), (10, 2), (100, 2), (1000, 1)]
    assert bins[1].frequency == pytest.approx(300**0.5) and bins[1].accuracy == pytest.approx(accuracy[2:4].mean())


def test_correlations_agree_with_scipy() -> None:
    rng = np.random.default_rng(2)
    counts, accuracy = rng.integers(1, 50, 40), rng.integers(0, 5, 40) / 4
    assert frequency.correlation(counts, accuracy) == pytest.approx(stats.pearsonr(np.log10(counts), accuracy).statistic)
    assert frequency.rank_correlation(counts, accuracy) == pytest.approx(stats.spearmanr(counts, accuracy).statistic)
    assert math.isnan(frequency.correlation(np.array([5, 5, 5]), np.array([0, 1, 0])))


def test_skew_by_hand() -> None:
    """Half of all are a; of the top two both are: ln(1/.5); b is not there. The tie at the cut is shared: 1 + 1/3 of 2."""
    groups = ["a", "b", "a", "b"]
    found = bias.skew(np.array([4.0, 1, 3, 2]), groups, 2)
    assert found == {"a": pytest.approx(math.log(2)), "b": -math.inf}
    assert bias.max_skew(np.array([4.0, 1, 3, 2]), groups, 2) == pytest.approx(math.log(2))
    assert bias.top_shares(np.array([4.0, 1, 1, 1]), groups, 2) == pytest.approx({"a": 2 / 3, "b": 1 / 3})


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.data())
def test_whoever_has_no_opinion_has_no_skew(groups: list[str], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(groups)))
    assert all(abs(v) < 1e-9 for v in bias.skew(np.zeros(len(groups)), groups, k).values())


def test_association_by_hand() -> None:
    s = np.array([0.2, -0.2])
    assert bias.effect_size(s[:1], s[1:]) == pytest.approx(0.4 / np.std([0.2, -0.2], ddof=1))
    assert math.isnan(bias.effect_size(np.ones(2), np.ones(2)))


def test_contrast_by_hand() -> None:
    found = bias.contrast([0.5, 0.3, 0.2, 0.6], ["m", "f", "m", "f"], ["x", "x", "y", "y"])
    assert found == {("f", "m"): {"x": pytest.approx(-0.2), "y": pytest.approx(0.4)}}
    with pytest.raises(ValueError, match="set 'y' has no member of the group 'm'"):
        bias.contrast([1, 2, 3], ["m", "f", "f"], ["x", "x", "y"])
    with pytest.raises(ValueError, match="'f' twice"):
        bias.contrast([1, 2], ["f", "f"], ["x", "x"])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1)), min_size=4, max_size=20), st.randoms())
def test_order_of_concepts_does_not_matter(rows: list[tuple[int, float]], random) -> None:
    def all_of(rows: list[tuple[int, float]]) -> list[float]:
        counts, accuracy = (np.array(x) for x in zip(*rows, strict=True))
        found = [f(counts, accuracy) for f in (frequency.correlation, frequency.rank_correlation, frequency.slope)]
        return found + [b.accuracy for b in frequency.log_bins(counts, accuracy)]

    shuffled = random.sample(rows, len(rows))
    assert all_of(shuffled) == pytest.approx(all_of(rows), nan_ok=True, abs=1e-6)
