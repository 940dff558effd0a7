"""Metrics of answers: VQA, yes/no, hallucinated objects, multiple choice, confidence. By hand, by independent reference, by
property."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.benchmarks.answers import choices, mme, pope, vqa
from diptych.benchmarks.metrics import calibration, selective
from diptych.benchmarks.texts import chair


# The vectors of the VQA protocol (visualqa.org/evaluation.html) and others worked out by its rules.
@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("3,000", "3000"), ("U.S.A.", "usa"), ("None", "0"), ("tv/monitor", "tv monitor"), ("a", ""), ("The  Cat\n", "cat"),
        ("dont", "don't"), ("two dogs", "2 dogs"), ("1.5", "1.5"), ("st. 5.", "st 5"), ("yes, it is", "yes it is"),
        ("black-and-white", "black and white"), ("left- and right-hand", "left and righthand"), ("1,5/6", "156"), ("youd've", "you'd've"),
    ],
)  # fmt: skip
def test_normal_form_of_answers(text: str, normal: str) -> None:
    assert vqa.normalise_answer(text) == normal


def test_vqa_accuracy_of_k_matches() -> None:
    """0, .3, .6, .9, 1 (arXiv:1612.00837, section 5)."""
    found = [vqa.vqa_accuracy("x", ["x"] * k + [f"y{i}" for i in range(10 - k)]) for k in range(11)]
    assert found == [0, 0.3, 0.6, 0.9, *[1.0] * 7]


def test_answers_are_left_as_they_are_where_all_humans_agree() -> None:
    assert vqa.vqa_accuracy("The Cat", ["The Cat"] * 10) == 1
    assert vqa.vqa_accuracy("cat", ["The Cat"] * 10) == 0
    assert vqa.vqa_accuracy("cat", ["The Cat"] * 9 + ["dog"]) == 1


def test_fewer_than_four_humans_are_refused() -> None:
    with pytest.raises(ValueError, match="4 human answers"):
        vqa.vqa_accuracy("x", ["x"] * 3)


def reference_accuracy(answer: str, humans: list[str]) -> float:
    """The protocol in plain steps, written from its description alone."""

    def normal(text: str) -> str:
        source = text
        for sign in [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]:
            beside_space = sign + " " in source or " " + sign in source
            text = "".join(("" if beside_space or re.search("[0-9],[0-9]", source) else " ") if c == sign else c for c in text)
        kept = [c for i, c in enumerate(text) if c != "." or text[i + 1 : i + 2].isdigit()]
        words = []
        for word in "".join(kept).lower().split():
            word = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "ten": "10"}.get(word, word)
            if word not in ("a", "an", "the"):
                words.append({"dont": "don't", "isnt": "isn't", "whats": "what's"}.get(word, word))
        return " ".join(words)

    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    humans = [h.replace("\n", " ").replace("\t", " ").strip() for h in humans]
    if not all(h == humans[0] for h in humans):
        answer, humans = normal(answer), [normal(h) for h in humans]
    parts = []
    for left_out in range(len(humans)):
        others = humans[:left_out] + humans[left_out + 1 :]
        parts.append(min(1.0, others.count(answer) / 3))
    return sum(parts) / len(parts)


WORDS = ["cat", "Cat", "the", "a", "one", "1", "none", "0", "dont", "don't", "isnt", "whats", "u.s.", "3,000", "3000", "tv", "ten"]
SIGNS = ["/", "-", ", ", " ,", "?", "! ", "(", ") ", '"', "_", " ", "  ", ".", ";", "`", "\n", "\t", "+", "@"]
ANSWERS = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(SIGNS)), min_size=1, max_size=3).map(
    lambda parts: "".join(word + sign for word, sign in parts)
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_vqa_accuracy_agrees_with_an_independent_reference(data: st.DataObject) -> None:
    pool = data.draw(st.lists(ANSWERS, min_size=1, max_size=4))
    humans = data.draw(st.lists(st.sampled_from(pool), min_size=10, max_size=10))
    answer = data.draw(st.one_of(st.sampled_from(pool), ANSWERS))
    assert vqa.vqa_accuracy(answer, humans) == pytest.approx(reference_accuracy(answer, humans))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", True), ("yes, there is a dog.", True), ("No.", False), ("NO", False), ("There isn't any", False),
        ("No, there is not. Yes!", False), ("There is not a cat", False), ("Yes, no doubt", True),
        ("Yes and no", None), ("There is a dog", None), ("", None), ("maybe", None), ("I know", None),
        ("I don't know", None), ("I am not quite sure.", None), ("No, not that I know", False),
    ],
)  # fmt: skip
def test_yes_no_is_never_guessed(text: str, answer: bool | None) -> None:
    assert pope.parse_yes_no(text) is answer


def test_the_published_rule_guesses_yes() -> None:
    assert pope.published_yes_no("") and pope.published_yes_no("maybe. no") and not pope.published_yes_no("there is, no")


def test_pope_by_hand() -> None:
    """tp 2, fp 1, fn 1 and an unparsed yes, tn 3, an unparsed no: n 9."""
    answers = [True, True, True, False, None, False, False, False, None]
    labels = [True, True, False, True, True, False, False, False, False]
    assert pope.pope_scores(answers, labels) == pytest.approx(
        {"accuracy": 5 / 9, "precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7, "yes_ratio": 3 / 9, "unparsed": 2 / 9}
    )
    band = pope.pope_band(answers, labels)
    assert band["accuracy"] == pytest.approx((5 / 9, 7 / 9))
    assert band["f1"] == pytest.approx((4 / 8, 6 / 8))  # tp 2, fp 2, fn 2; tp 3, fp 1, fn 1
    assert band["yes_ratio"] == pytest.approx((3 / 9, 5 / 9))


def test_pope_without_a_yes_divides_by_nothing() -> None:
    scores = pope.pope_scores([False, None], [False, False])
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0, 0, 0)
    assert pope.pope_scores([], [])["accuracy"] == 0


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.booleans()), min_size=1, max_size=20), st.randoms())
def test_order_of_questions_does_not_matter_and_duplicates_change_nothing(rows: list[tuple[bool | None, bool]], random) -> None:
    scores = pope.pope_scores(*zip(*rows, strict=True))
    assert pope.pope_scores(*zip(*(rows * 3), strict=True)) == pytest.approx(scores)
    low, high = pope.pope_band(*zip(*rows, strict=True))["accuracy"]
    assert low <= scores["accuracy"] <= high
    random.shuffle(rows)
    assert pope.pope_scores(*zip(*rows, strict=True)) == scores


def test_objects_of_a_caption() -> None:
    words = chair.coco_vocabulary()
    text = "Two men with hot dogs, a teddy bear and a catcher's mitt near train tracks; knives, buses, skis, ties and a cat's couch"
    assert chair.objects_in(text, words) == [
        "person", "hot dog", "teddy bear", "baseball glove", "knife", "bus", "skis", "tie", "cat", "couch",
    ]  # fmt: skip
    assert chair.objects_in("a pair of glasses, a baby elephant, a toilet seat", words) == []
    assert len({name for name in words.values() if name}) == 80


def chair_of(captions: list[str], truth: list[set[str]]) -> dict[str, float]:
    counts = chair.chair_counts([chair.objects_in(c, chair.coco_vocabulary()) for c in captions], truth, captions)
    return {name: float(v) for name, v in chair.chair_of_counts(counts.sum(0)).items()}


def test_chair_by_hand() -> None:
    """Of four mentions, two are false (dog twice); one of two captions has one; two of four true objects are named."""
    captions = ["a dog and a cat by a dog", "a man"]
    truth = [{"cat", "couch"}, {"person", "tv"}]
    assert chair_of(captions, truth) == {"chair_i": 2 / 4, "chair_s": 1 / 2, "recall": 2 / 4, "length": (8 + 2) / 2}
    assert chair_of(captions * 2, truth * 2) == chair_of(captions, truth)
    assert chair_of(["nothing of note"], [set()])["chair_i"] == 0


def test_a_synonym_of_two_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2: 'jet' means both 'plane' and 'bird'"):
        chair.vocabulary(["plane, jet", "bird, jet"])
    assert chair.vocabulary(["plane, jet", "- jet lag"])[("jet", "lag")] is None


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", 1), ("(b)", 1), ("B. dog", 1), ("The answer is C", 2), ("Answer: (A)", 0), ("hot dog", 2), ("It is a cat.", 0),
        ("a dog", 1), ("D", None), ("A or B", None), ("", None), ("cat and dog", None), ("I think it is (A) or (B)", None),
        ("The answer is a dog.", 1), ("Answer: a cat", 0), ("The answer is b.", 1), ("option a or option b", None),
        ("**B**", 1), ("**B.** dog", 1), ("'b'", 1), ("“B”", 1), ("The answer is **C**.", 2), ("`A`", 0), ("**A** or **B**", None),
        ("A, B", None), ("A. or B.", None), ("a, b", None), ("The answer is A or B", None), ("The answer is a and b.", None),
        ("A and B", None), ("not (A)", None), ("(A), not (B)", 0), ("The answer is A dog.", 1), ("Answer: A cat", 0),
        ("A, because it purrs", 0), ("A, a cat", 0), ("B. Cat or dog? Dog.", 1), ("The answer is B, a dog", 1), ("B / C", None),
    ],
)  # fmt: skip
def test_choice_is_never_guessed(text: str, choice: int | None) -> None:
    assert choices.parse_choice(text, ["cat", "dog", "hot dog"][: 3 if "hot" in text or choice == 2 else 2]) == choice


@given(st.lists(st.integers(0, 2), min_size=2, max_size=6), st.randoms())
def test_order_of_options_does_not_matter(scores: list[int], random) -> None:
    answer = random.randrange(len(scores))
    order = random.sample(range(len(scores)), len(scores))

    def credit(scores: list, names: list[int]) -> float:
        record = {"item": "q", "options": list(map(str, names)), "answers": [str(answer)], "scores": scores, "likelihoods": False}
        return choices.Choices().with_credits(record)["correct"]["accuracy"]

    names = list(range(len(scores)))
    assert credit(scores, names) == credit([scores[i] for i in order], order)
    assert credit([None] * len(scores), names) == 1 / len(scores)


def test_circular_by_hand() -> None:
    assert choices.circular([1, 1, 0, 1, 1, 1], ["q", "q", "q", "r", "r", "r"]) == {"q": 0, "r": 1}


def test_mme_by_hand() -> None:
    """Five of six right, two of three images whole: 100 · (5/6 + 2/3) = 150."""
    images, counts = mme.mme_counts([1, 1, 1, 0, 1, 1], ["i", "i", "j", "j", "k", "k"])
    assert images == ["i", "j", "k"] and counts.sum(0).tolist() == [6, 5, 3, 2]
    assert mme.mme_of_counts(counts.sum(0)) == pytest.approx(150)


def test_mme_of_a_scorer_without_opinion_is_at_chance() -> None:
    """Two coins for an image: 1/2 of the questions, 1/4 of the images. Always the same word: 1/2 and none."""
    images = [i // 2 for i in range(12)]
    for credits, score in (([0.5] * 12, 75), ([1, 0] * 6, 50)):
        assert mme.mme_of_counts(mme.mme_counts(credits, images)[1].sum(0)) == score


def brute_risks(confidence: list[float], error: list[float]) -> np.ndarray:
    """Mean over many random orders of ties."""
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):
        order = sorted(rng.permutation(len(error)), key=lambda i: -confidence[i])
        found.append(np.cumsum([error[i] for i in order]) / np.arange(1, len(error) + 1))
    return np.mean(found, axis=0)


def test_risk_coverage_by_hand_and_by_random_orders_of_ties() -> None:
    coverage, risk = selective.risk_coverage(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    tied, credit = [0.9, 0.5, 0.5, 0.5, 0.1], [1.0, 0.0, 1.0, 0.3, 1.0]
    _, risk = selective.risk_coverage(np.array(tied), np.array(credit))
    assert risk == pytest.approx(brute_risks(tied, [1 - c for c in credit]), abs=0.02)


def test_coverage_at_risk_never_splits_a_tie() -> None:
    confidence, credit = np.array([0.9, 0.8, 0.8, 0.8, 0.1]), np.array([1, 1, 1, 0, 0])
    assert selective.coverage_at_risk(confidence, credit, 0.1) == 1 / 5  # a split would reach 3/5
    assert selective.coverage_at_risk(confidence, credit, 0.25) == 4 / 5
    assert selective.coverage_at_risk(confidence, credit, 1.0) == 1
    assert selective.coverage_at_risk(np.array([0.9]), np.array([0]), 0.5) == 0


@given(st.lists(st.sampled_from([0.0, 0.3, 0.6, 1.0]), min_size=1, max_size=30))
def test_a_constant_confidence_gets_the_error_rate(credit: list[float]) -> None:
    area = selective.area_under_risk(np.full(len(credit), 0.7), np.array(credit))
    assert area == pytest.approx(1 - np.mean(credit))
    assert area == selective.area_under_risk(np.full(len(credit), np.nan), np.array(credit))


def test_effective_reliability_by_hand() -> None:
    """arXiv:2204.13631, eq. 3: its credit, −c, or 0 for an abstention."""
    confidence, credit = np.array([0.9, 0.8, 0.2, 0.1]), np.array([0.6, 0, 1, 0])
    assert selective.effective_reliability(confidence, credit, 0.5, 1).tolist() == [0.6, -1, 0, 0]
    assert selective.best_threshold(confidence, credit, 1) == 0.9  # .6, then −.4, then .6 again: the surer one
    assert selective.best_threshold(confidence, np.zeros(4), 1) == float("inf")
    assert selective.best_threshold(np.array([0.5, 0.5, 0.1]), np.array([1, 0, 0]), 0.5) == 0.5


def test_ece_and_brier_by_hand() -> None:
    """Two bins. (0, .5]: confidence .3, accuracy 1/2, 2 of 4; (.5, 1]: confidence .9, accuracy 1, 2 of 4: .5·.2 + .5·.1."""
    confidence, credit = np.array([0.1, 0.5, 0.8, 1.0]), np.array([0, 1, 1, 1])
    assert calibration.ece(confidence, credit, bins=2) == pytest.approx(0.15)
    assert calibration.brier(confidence, credit) == pytest.approx((0.01 + 0.25 + 0.04 + 0) / 4)
    bins = calibration.reliability(confidence, credit, bins=2)
    assert [(b.n, b.confidence, b.accuracy) for b in bins] == [(2, pytest.approx(0.3), 0.5), (2, pytest.approx(0.9), 1.0)]


def test_bins_cover_the_range_and_hold_what_lies_in_them() -> None:
    """The ends of the bins, which a diagram draws: equal widths from 0 to 1, each bin's items between its ends."""
    confidence = np.array([0.0, 0.2, 0.3, 0.6, 0.61, 1.0])
    bins = calibration.reliability(confidence, np.ones(6), bins=5)
    ends = [(b.low, b.high) for b in bins]
    assert ends == [pytest.approx(pair) for pair in ((0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1))]
    assert [b.n for b in bins] == [
        ((low < confidence) | ((low == 0) & (confidence == 0))).sum() - (confidence > high + 1e-9).sum() for low, high in ends
    ]


def test_ece_of_one_item_is_its_error_and_of_none_is_nothing() -> None:
    assert calibration.ece(np.array([0.8]), np.array([0.0])) == pytest.approx(0.8)
    with np.errstate(all="raise"):
        assert calibration.ece_of_sums(np.zeros(30)) == 0


def test_bins_are_closed_above() -> None:
    assert calibration.bin_of(np.array([0, 0.1, 0.1000001, 0.3, 1.0]), 10).tolist() == [0, 0, 1, 2, 9]


@pytest.mark.parametrize("bad", [1.2, -0.1, float("nan")])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="item 1: a confidence lies in"):
        calibration.ece(np.array([0.5, bad]), np.array([1, 0]))


@pytest.mark.parametrize("k", [2, 3])
def test_chance_of_a_group_with_a_score_for_each_direction(k: int) -> None:
    """2 k independent choices among k, counted over all of them: k for the texts and k for the images, and all must be right."""
    from itertools import product

    from diptych.benchmarks.metrics.groups import chance

    choices = list(product(range(k), repeat=2 * k))
    right = [sum(c == i % k for i, c in enumerate(chosen)) for chosen in choices]
    expected = {"text": 1 / k, "image": 1 / k, "group": sum(r == 2 * k for r in right) / len(choices)}
    assert chance(k, two_sided=True) == pytest.approx(expected)
    assert sum(right) / len(right) / (2 * k) == pytest.approx(expected["text"])
