"""Metrics against the reference code, against brute force and by hand."""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.benchmarks.metrics import captions, groups, tokens
from diptych.benchmarks.metrics.ranking import expected_rank, recall_at, standing, undecided
from diptych.benchmarks.probes.embedding import modality_gap, separability

References, Hypotheses = dict[str, list[str]], dict[str, str]


def bleu(references: References, made: Hypotheses) -> list[float]:
    scores = captions.caption_scores(references, made)
    return [scores[f"bleu{n}"] for n in (1, 2, 3, 4)]


def rouge_items(references: References, made: Hypotheses) -> dict[str, float]:
    return dict(zip(made, captions.Corpus(references, made).rouge_l().tolist(), strict=True))


def cider_items(references: References, made: Hypotheses) -> dict[str, float]:
    return dict(zip(made, captions.Corpus(references, made).cider_d().tolist(), strict=True))


def rouge(references: References, made: Hypotheses) -> float:
    return captions.caption_scores(references, made)["rouge_l"]


def cider(references: References, made: Hypotheses) -> float:
    return captions.caption_scores(references, made)["cider"]


# As edu.stanford.nlp.process.PTBTokenizer of stanford-corenlp-3.4.1 with -lowerCase, less the server's punctuation
# (pycocoevalcap 1.2, tokenizer/ptbtokenizer.py), printed them.
TOKENS = {
    "A man's dog can't run.": "a man 's dog ca n't run",
    "Two T-shirts, a well-known 3/4 bat & ball!": "two t-shirts a well-known 3/4 bat & ball",
    'He said "hello" (twice); it\'s 5:30 p.m. in the U.S.': "he said hello -lrb- twice -rrb- it 's 5:30 p.m. in the u.s.",
    "I cannot do it... gonna wanna": "i can not do it gon na wan na",
    "The dogs' bowl -- red and blue -- is 3,000 kg": "the dogs bowl red and blue is 3,000 kg",
    "$5.00 at 50% off": "$ 5.00 at 50 % off",
    "don't won't isn't 'quoted' word": "do n't wo n't is n't quoted word",
    "Mr. Smith's cat.": "mr. smith 's cat",
    "a/b and/or c": "a/b and/or c",
    "it's o'clock rock'n'roll": "it 's o'clock rock 'n' roll",
    "A woman [holding] {a} cat": "a woman -lsb- holding -rsb- -lcb- a -rcb- cat",
    "black-and-white cat; dog: mouse": "black-and-white cat dog mouse",
    "They're we've I'll he'd": "they 're we 've i 'll he 'd",
    "wow!! really?!": "wow !! really ?!",
    "a cat's-eye": "a cat 's eye",
    "three-year-old's toy": "three-year-old 's toy",
    "dog’s “bone”": "dog 's bone",
    "a cat — dog - mouse": "a cat dog mouse",
    "the 1990s and '90s": "the 1990s and '90s",
    "café naïve 1st 10am": "café naïve 1st 10am",
    "he said no.": "he said no",
    "I like vitamin c.": "i like vitamin c",  # a capital follows in the next line; before a small letter it is "c."
    "b&w photo": "b & w photo",
    "end.Start": "end.start",
    "½ cup": "1/2 cup",
}

REFERENCES = {
    "a": ["A man rides a brown horse on the beach.", "Someone is riding a horse by the sea."],
    "b": ["Two dogs play with a red ball in the park.", "Two dogs are playing in the grass.", "A couple of dogs with a ball."],
    "c": ["A plate of food with rice and beans.", "Rice and beans on a white plate."],
    "d": ["A woman's hat is on the table."],
}
HYPOTHESES = {
    "a": "a man rides a horse on the beach",
    "b": "two dogs play with a ball in the grass",
    "c": "a plate of rice and beans on a table",
    "d": "a woman's hat on a chair",
}


@pytest.mark.parametrize("text", TOKENS)
def test_tokens_are_those_of_the_server(text: str) -> None:
    assert " ".join(captions.tokenise(text)) == TOKENS[text]


def test_captions_agree_with_the_reference_code() -> None:
    """Numbers printed by pycocoevalcap 1.2 with its Java tokeniser on the four items above."""
    expected = [0.8525573819847627, 0.8273479821945057, 0.7518513543812247, 0.608875594189365]
    of_cider = [3.746752853250129, 3.646303829192035, 4.700756364628598, 4.451334750021073]
    of_rouge = [0.931297709923664, 0.8341880341880341, 0.7134502923976607, 0.6587473002159828]
    assert bleu(REFERENCES, HYPOTHESES) == pytest.approx(expected, abs=1e-9)  # the code adds 1e-15 and 1e-9 here and there
    assert list(cider_items(REFERENCES, HYPOTHESES).values()) == pytest.approx(of_cider, abs=1e-12)
    assert cider(REFERENCES, HYPOTHESES) == pytest.approx(4.136286949272959, abs=1e-12)
    assert list(rouge_items(REFERENCES, HYPOTHESES).values()) == pytest.approx(of_rouge, abs=1e-12)
    assert rouge(REFERENCES, HYPOTHESES) == pytest.approx(0.7844208341813353, abs=1e-12)


def test_bleu_by_hand() -> None:
    """Lengths 7 and 9 are as close to 8; the shorter is taken, so there is no brevity penalty."""
    references = {"x": ["a cat sits on the red mat", "the cat is lying down on a mat now"]}
    made = {"x": "a cat sits on the mat right now"}
    # 1-grams: a cat sits on the mat now (7 of 8); 2-grams: a cat, cat sits, sits on, on the (4 of 7)
    # 3-grams: a cat sits, cat sits on, sits on the (3 of 6); 4-grams: 2 of 5
    p = [7 / 8, 4 / 7, 3 / 6, 2 / 5]
    assert bleu(references, made) == pytest.approx([math.prod(p[:n]) ** (1 / n) for n in (1, 2, 3, 4)])


def test_bleu_without_a_match_is_zero_and_short_text_is_punished() -> None:
    assert bleu({"x": ["one two three four"]}, {"x": "two one four three"})[1:] == [0, 0, 0]
    assert bleu({"x": ["one two three four"]}, {"x": ""}) == [0, 0, 0, 0]
    assert bleu({"x": ["one two three four"]}, {"x": "one two"})[0] == pytest.approx(math.exp(1 - 4 / 2))


def plain_scores(references: dict[str, list[str]], made: dict[str, str]) -> list[float]:
    """BLEU-4, ROUGE-L and CIDEr-D by loops and dictionaries, as the papers say it."""

    def grams(words: tuple[str, ...], k: int) -> Counter:
        return Counter(words[i : i + k] for i in range(len(words) - k + 1))

    tokens = {key: captions.tokenise(text) for key, text in made.items()}
    refs = {key: [captions.tokenise(text) for text in references[key]] for key in made}
    matched, total, ours, closest = np.zeros(4), np.zeros(4), 0, 0
    for key, words in tokens.items():
        ours += len(words)
        closest += min((abs(len(r) - len(words)), len(r)) for r in refs[key])[1]
        for k in (1, 2, 3, 4):
            most: Counter = Counter()
            for r in refs[key]:
                most |= grams(r, k)
            matched[k - 1] += sum((grams(words, k) & most).values())
            total[k - 1] += max(0, len(words) - k + 1)
    bleu = math.exp(min(0, 1 - closest / ours) + np.log(matched / total).mean()) if matched.all() else 0.0
    rouge, cider = [], []
    for key, words in tokens.items():
        table = [lcs(words, r) for r in refs[key]]
        p = max(c / max(1, len(words)) for c in table)
        recall = max(c / max(1, len(r)) for c, r in zip(table, refs[key], strict=True))
        rouge.append((1 + 1.44) * p * recall / (recall + 1.44 * p) if p and recall else 0.0)
        score = 0.0
        for k in (1, 2, 3, 4):
            frequency = Counter(g for texts in refs.values() for g in set().union(*(grams(t, k) for t in texts)))
            idf = {g: math.log(len(made)) - math.log(max(1, n)) for g, n in frequency.items()}
            h = {g: c * idf.get(g, math.log(len(made))) for g, c in grams(words, k).items()}
            for text in refs[key]:
                r = {g: c * idf[g] for g, c in grams(text, k).items()}
                norm = math.sqrt(sum(v * v for v in h.values()) * sum(v * v for v in r.values()))
                gap = max(0, len(words) - 1) - max(0, len(text) - 1)
                if norm:
                    score += math.exp(-(gap**2) / 72) * sum(min(v, r[g]) * r[g] for g, v in h.items() if g in r) / norm
        cider.append(10 * score / 4 / len(refs[key]))
    return [bleu, float(np.mean(rouge)), float(np.mean(cider))]


def lcs(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    if not a or not b:
        return 0
    return lcs(a[:-1], b[:-1]) + 1 if a[-1] == b[-1] else max(lcs(a[:-1], b), lcs(a, b[:-1]))


TEXTS = st.lists(st.sampled_from(["red", "fox", "runs", "on", "a", "red", "mat", "."]), max_size=6).map(" ".join)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_arrays_agree_with_loops(items: list[tuple[str, list[str]]]) -> None:
    made = {str(i): text for i, (text, _) in enumerate(items)}
    references = {str(i): texts for i, (_, texts) in enumerate(items)}
    found = captions.caption_scores(references, made)
    assert [found[k] for k in ("bleu4", "rouge_l", "cider")] == pytest.approx(plain_scores(references, made))


# As the same Java class printed them, except "vitamin c." (see tokenise).
NASTY_TOKENS = {
    "R&B AT&T at&t b&w": "r&b at&t at & t b & w",
    "c++ C# f#": "c++ c# f#",
    "x -5 +1 .5 v2.0 1+1": "x -5 +1 .5 v2 .0 1 +1",
    "<b>bold</b> < 3": "<b> bold </b> < 3",
    "6'2\" tall, '99 and a'b": "6 2 tall '99 and a b",
    "'tis 'cause 'til d'oh ma'am": "'t is 'cause 'til d'oh ma'am",
    "see www.site.com! http://a.b/c?d=1, me@mail.com.": "see www.site.com http://a.b/c?d=1 me@mail.com",
    "on Jan. 5, Ph.D. oz. lbs.": "on jan. 5 ph.d. oz lbs",
    "1½ cups ¾ :) a?b": "1 1/2 cups 3/4 :-rrb- a?b",
    "U.S.-based **bold** a---b": "u.s.-based ** bold ** a b",
    "salt &amp; pepper &lt;": "salt & pepper <",
    "I like vitamin c. A lot": "i like vitamin c a lot",
    "I like vitamin c. a lot": "i like vitamin c. a lot",
}


@pytest.mark.parametrize("text", NASTY_TOKENS)
def test_nasty_tokens_are_those_of_the_server(text: str) -> None:
    assert " ".join(captions.tokenise(text)) == NASTY_TOKENS[text]


@given(
    st.lists(st.sampled_from(["a", "cat", "St.", "can't", "gonna", ",", "7", "no.", "b.", "U.S.", "Mat."]), min_size=1, max_size=6)
)
def test_shortcuts_of_the_tokeniser_change_nothing(words: list[str]) -> None:
    text = " ".join(words)
    assert captions.tokenise(text) == tokens._cut(text)


@pytest.mark.slow
def test_captions_agree_with_pycocoevalcap() -> None:
    """A thousand images whose captions are full of what a tokeniser may stumble over; needs Java and make bench-peers."""
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    bench = pytest.importorskip("bench.cases.captions")
    references, made = bench.caption_sets(1000, nasty=0.25, seed=7)
    try:
        theirs = bench.theirs(references, made)
    except (bench.MissingPeer, OSError) as missing:
        pytest.skip(str(missing))
    found = captions.caption_scores(references, made)
    assert [found[f"bleu{n}"] for n in (1, 2, 3, 4)] == pytest.approx(theirs["bleu"], abs=1e-4)
    for name, items in (("rouge_l", rouge_items), ("cider", cider_items)):
        assert found[name] == pytest.approx(float(theirs[name]), abs=1e-4)
        assert list(items(references, made).values()) == pytest.approx([float(v) for v in theirs[f"{name} items"]], abs=1e-4)


def test_bleu_takes_the_closest_length_and_the_shorter_of_two() -> None:
    counts = captions.Corpus({"x": ["a b c d e", "a b c"]}, {"x": "a b c d"}).bleu_counts()  # 5 and 3 are as close
    assert counts[0, :2].tolist() == [4, 3]


def test_rouge_by_hand() -> None:
    """LCS 3 of 4 with the first (r = 3/6), 2 of 4 with the second (r = 2/2): best p = 3/4, best r = 1."""
    p, r, b2 = 3 / 4, 1.0, 1.2**2
    made = rouge({"x": ["a b c d e f", "g c"]}, {"x": "a g b c"})
    assert made == pytest.approx((1 + b2) * p * r / (r + b2 * p))


def test_cider_by_hand() -> None:
    """Two items without a shared word: every n-gram has df 1 and weight log 2, so cosines are counts."""
    references = {"x": ["red fox runs"], "y": ["blue bird sings"]}
    assert cider_items(references, {"x": "red fox runs", "y": "red fox runs"}) == pytest.approx(
        {"x": 10 * (1 + 1 + 1 + 0) / 4, "y": 0}
    )
    # "red fox": 2 of 3 unigrams cos 2/√(2·3), 1 bigram cos 1/√2; lengths 1 and 2 bigrams: exp(−1/72)
    expected = 10 * math.exp(-1 / 72) * (2 / math.sqrt(6) + 1 / math.sqrt(2)) / 4
    assert cider_items(references, {"x": "red fox", "y": "blue bird"})["x"] == pytest.approx(expected)
    # "red" twice counts once (the clipping of CIDEr-D) but weighs in the norm: 2/√(5·3); 1 of 2 bigrams
    expected = 10 * (2 / math.sqrt(15) + 1 / 2) / 4
    assert cider_items(references, {"x": "red red fox", "y": "blue bird"})["x"] == pytest.approx(expected)


def test_cider_of_one_item_is_zero() -> None:
    assert cider({"x": ["red fox runs far"]}, {"x": "red fox runs far"}) == 0


@settings(max_examples=30, deadline=None)
@given(st.permutations(list(HYPOTHESES)))
def test_order_of_captions_does_not_matter(order: list[str]) -> None:
    made = {key: HYPOTHESES[key] for key in order}
    assert bleu(REFERENCES, made) == bleu(REFERENCES, HYPOTHESES)
    assert cider(REFERENCES, made) == cider(REFERENCES, HYPOTHESES)
    assert rouge(REFERENCES, made) == rouge(REFERENCES, HYPOTHESES)


def brute_recall(scores: list[float], positive: list[bool], k: int) -> float:
    """The mean over all orders of the candidates, ties broken by the order."""
    found = []
    for order in itertools.permutations(range(len(scores))):
        top = sorted(order, key=lambda i: -scores[i])[:k]  # stable: the order decides ties
        found.append(any(positive[i] for i in top))
    return float(np.mean(found))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=2, max_size=5), st.integers(1, 5))
def test_recall_is_the_expected_value_over_orders_of_ties(pairs_: list[tuple[int, bool]], k: int) -> None:
    scores, positive = [float(s) for s, _ in pairs_], [p for _, p in pairs_]
    if not any(positive):
        positive[0] = True
    credit = recall_at(k, *standing(np.array([scores]), np.array([positive])))[0]
    assert credit == pytest.approx(brute_recall(scores, positive, k))


@given(st.integers(2, 40), st.integers(1, 12))
def test_equal_scores_get_exactly_k_of_n(n: int, k: int) -> None:
    found = standing(np.zeros((n, n)), np.eye(n, dtype=bool))
    assert (recall_at(k, *found) == min(k, n) / n).all()
    assert (expected_rank(*found) == (n + 1) / 2).all()


def test_what_is_not_finite_is_lowest() -> None:
    scores = np.array([[np.nan, 0.0, -5.0], [np.inf, 0.0, np.nan]])
    credit = recall_at(2, *standing(scores, np.array([[True, False, False], [False, False, True]])))
    assert credit.tolist() == [0.0, 0.5]  # last; tied with the infinity for the second place
    assert undecided(2, *standing(scores, np.array([[True, False, False], [False, False, True]]))).tolist() == [0, 1]


def test_a_query_without_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        standing(np.zeros((1, 2)), np.zeros((1, 2), dtype=bool))


def brute_group(scores: np.ndarray) -> float:
    k = len(scores)
    good = []
    for order in itertools.permutations(range(k * k)):
        rank = np.empty(k * k)
        rank[sorted(order, key=lambda i: scores.flat[i])] = np.arange(k * k)
        rank = rank.reshape(k, k)
        good.append((rank.argmax(0) == np.arange(k)).all() and (rank.argmax(1) == np.arange(k)).all())
    return float(np.mean(good))


@pytest.mark.parametrize("entries", [*itertools.product([0, 1], repeat=4), (2, 1, 0, 1), (1, 1, 0, 2)])
def test_group_credit_is_the_expected_value_over_orders_of_ties(entries: tuple[int, ...]) -> None:
    scores = np.array(entries, dtype=float).reshape(2, 2)
    assert groups.group_credit(scores) == pytest.approx(brute_group(scores))


def test_group_credit_of_three_by_simulation() -> None:
    """Random orders of ties in matrices of few values; 3 standard errors of 20,000 draws are below .011."""
    rng = np.random.default_rng(0)
    for scores in [np.zeros((3, 3)), np.eye(3), *rng.integers(0, 2, (12, 3, 3)).astype(float)]:
        drawn = scores + rng.uniform(0, 0.5, (20_000, 3, 3))
        own = np.diagonal(drawn, axis1=1, axis2=2)
        right = ((drawn.max(1) == own) & (drawn.max(2) == own)).all(1).mean()
        assert groups.group_credit(scores) == pytest.approx(right, abs=0.011)


@pytest.mark.parametrize(("k", "group"), [(2, 1 / 6), (3, 1 / 60), (4, 1 / 840)])
def test_equal_scores_land_on_chance(k: int, group: float) -> None:
    chance = groups.chance(k)
    assert chance["group"] == pytest.approx(group)
    assert groups.group_credit(np.zeros((k, k))) == pytest.approx(group)
    assert (groups.text_credit(np.zeros((k, k))) == chance["text"]).all()
    assert (groups.image_credit(np.full((k, k), np.nan)) == chance["image"]).all()


def test_winoground_as_in_the_paper() -> None:
    """s(image, caption): the conditions of arXiv:2204.03162, eq. 1–3, by hand."""
    assert groups.winoground(np.array([[3.0, 2.0], [0.0, 1.0]])) == {"text": 1.0, "image": 0.0, "group": 0.0}
    assert groups.winoground(np.array([[3.0, 0.0], [2.0, 1.0]])) == {"text": 0.0, "image": 1.0, "group": 0.0}
    assert groups.winoground(np.array([[3.0, 0.0], [0.0, 1.0]])) == {"text": 1.0, "image": 1.0, "group": 1.0}
    assert groups.winoground(np.zeros((2, 2))) == pytest.approx({"text": 1 / 4, "image": 1 / 4, "group": 1 / 6})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=9, max_size=9), st.permutations(range(3)))
def test_order_of_options_does_not_matter(entries: list[int], order: list[int]) -> None:
    scores = np.array(entries, dtype=float).reshape(3, 3)
    moved = scores[np.ix_(order, order)]
    assert groups.group_credit(moved) == pytest.approx(groups.group_credit(scores))
    assert sorted(groups.text_credit(moved)) == sorted(groups.text_credit(scores))


@given(st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_whoever_does_not_look_gets_exactly_one_in_k(preference: list[int]) -> None:
    blind = np.tile(np.array(preference, dtype=float), (3, 1))
    assert groups.text_credit(blind).mean() == pytest.approx(1 / 3, abs=1e-15)
    assert groups.image_credit(blind).mean() == pytest.approx(1 / 3, abs=1e-15)


def test_gap_by_hand_and_separability() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(60, 4))
    assert modality_gap(image, image + np.array([3, 0, 4, 0])) == pytest.approx(5)
    assert separability(image, image + np.array([30, 0, 40, 0])).mean() == 1
    assert separability(image, image).mean() == 0.5
    assert 0.3 < separability(image, rng.normal(size=(60, 4))).mean() < 0.7
    wide = rng.normal(size=(2, 60, 200))  # more dimensions than points: what was seen in training is told without fail
    assert separability(*wide).mean() < 0.7
