"""Ways over several texts of each class: attention over sentences, projections, search for prompts."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from diptych.choose.ways import Support
from diptych.choose.ways.linear import LinearProbe
from diptych.choose.ways.texts import sentences_of
from diptych.choose.ways.texts.attention import SentenceAttention, attended, padded, start
from diptych.choose.ways.texts.projections import BagOfSentences, Gist, matched, own_caption, same_class, train_projections
from diptych.choose.ways.texts.search import PromptSearch, candidates, confusable, evolve, fitness
from diptych.choose.ways.zeroshot import Descriptions, ZeroShot
from diptych.core.arrays import unit_rows
from diptych.core.errors import DiptychError
from diptych.inference.heads import Linear
from transfer_fixture import World, world
from ways_fixture import softmax


def uneven(w: World) -> Support:
    """Classes with 5, 2, 1 and no sentences."""
    described = tuple(own[: (5, 2, 1, 0)[c % 4]] for c, own in enumerate(w.support.described))
    return replace(w.support, described=described)


def test_a_class_without_sentences_uses_its_templates() -> None:
    support = uneven(world(classes=4))
    assert [len(own) for own in sentences_of(support)] == [5, 2, 1, 6]
    assert [len(own) for own in sentences_of(replace(support, described=()))] == [6] * 4
    with pytest.raises(DiptychError, match="descriptions of 1 classes, but there are 4"):
        sentences_of(replace(support, described=support.described[:1]))
    with pytest.raises(DiptychError, match="no text vectors"):
        sentences_of(replace(support, prompts=None))


def plain_attention(sentences: np.ndarray, w: dict[str, np.ndarray], ratio: float) -> np.ndarray:
    out = []
    for a in sentences:
        weights = softmax(np.array([(w["query"] @ a) @ (w["key"] @ b) / math.sqrt(len(w["key"])) for b in sentences]))
        mixed = w["out"] @ sum(p * (w["value"] @ b) for p, b in zip(weights, sentences, strict=True)) + w["offset"]
        row = 2 * (ratio * mixed + (1 - ratio) * a)
        out.append((row - row.mean()) / np.sqrt(row.var() + 1e-5))
    mean = np.mean(out, axis=0)
    return mean / np.linalg.norm(mean)


def test_attention_over_sentences() -> None:
    sentences = sentences_of(uneven(world(classes=4, width=8)))
    weights = {k: v.double() + 0.1 for k, v in start(8, 0).items()}
    vectors, real = padded(sentences)
    assert vectors.shape == (4, 6, 8) and real.sum(1).tolist() == [5, 2, 1, 6]
    got = attended(vectors.double(), real, weights, 0.3).numpy()
    plain = {k: v.numpy() for k, v in weights.items()}
    for c, own in enumerate(sentences):  # without padding
        assert np.allclose(got[c], plain_attention(own.astype(np.float64), plain, 0.3), atol=1e-6)
    given = [v.clone().requires_grad_() for v in weights.values()]
    few = vectors[:2, :3, :8].double()
    keys = list(weights)
    assert torch.autograd.gradcheck(lambda *p: attended(few, real[:2, :3], dict(zip(keys, p, strict=True)), 0.3), given)


def test_an_adapter_of_ratio_0_are_the_descriptions() -> None:
    w = world()
    expected = Descriptions().fit(w.support).logits(w.x)
    assert np.allclose(SentenceAttention(ratio=0.0).fit(w.support).logits(w.x), expected, atol=1e-4)
    assert np.allclose(BagOfSentences(steps=0).fit(w.support).logits(w.x), expected, atol=1e-4)


def test_the_dropout_follows_the_seed_and_leaves_other_random_numbers_alone() -> None:
    w = world(classes=3, shots=3, width=8)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = SentenceAttention(steps=5).fit(w.support).logits(w.x)
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(first, SentenceAttention(steps=5).fit(w.support).logits(w.x))
    assert not np.array_equal(first, SentenceAttention(steps=5).fit(replace(w.support, seed=1)).logits(w.x))


def test_contrastive_losses() -> None:
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(6, 6)), np.array([0, 1, 0, 2, 2, 0])
    total = 0.0
    for z in (logits, logits.T):
        p = [softmax(row) for row in z]
        for i in range(6):
            mates = [j for j in range(6) if y[j] == y[i]]
            total -= sum(math.log(p[i][j]) for j in mates) / len(mates) / 6
    z = torch.tensor(logits, requires_grad=True)
    assert float(same_class(z, torch.tensor(y)).detach()) == pytest.approx(total)
    alone = -sum(math.log(softmax(logits[i])[i]) + math.log(softmax(logits.T[i])[i]) for i in range(6)) / 12
    assert float(own_caption(z).detach()) == pytest.approx(alone)
    assert float(same_class(z, torch.arange(6)).detach()) == pytest.approx(2 * alone)  # one pair a class
    assert torch.autograd.gradcheck(lambda a: same_class(a, torch.tensor(y)), z)
    assert torch.autograd.gradcheck(own_caption, z)


def test_projections_begin_at_the_identity_and_lower_the_loss() -> None:
    w = world(classes=4, shots=4, width=8, noise=2.0)
    x, y = torch.tensor(w.support.x), torch.tensor(w.support.y)
    t = torch.tensor(np.stack([w.support.described[c][0] for c in w.support.y]))

    def loss(images: np.ndarray, texts: np.ndarray) -> float:
        a, b = unit_rows(w.support.x @ images.T), unit_rows(t.numpy() @ texts.T)
        return float(same_class(torch.tensor(30 * a @ b.T), y))

    eye = np.eye(8, dtype=np.float32)
    none = train_projections(8, lambda: (x, t, y), same_class, 30.0, steps=0, rate=1.0)
    assert np.array_equal(none[0], eye) and np.array_equal(none[1], eye)
    some = train_projections(8, lambda: (x, t, y), same_class, 30.0, steps=40, rate=0.1)
    assert loss(*some) < loss(eye, eye) - 0.1


def test_images_are_matched_with_the_nearest_sentences_of_their_own_class() -> None:
    support = uneven(world(classes=4))
    sentences = sentences_of(support)
    for i, got in enumerate(matched(support, sentences, 3)):
        own = sentences[support.y[i]]
        expected = sorted(range(len(own)), key=lambda j: -float(own[j] @ support.x[i]))[:3]
        assert got.tolist() == expected


def test_gist_without_steps_is_the_probe() -> None:
    w = world(noise=2.0)
    assert np.allclose(Gist(steps=0).fit(w.support).logits(w.x), LinearProbe().fit(w.support).logits(w.x), atol=1e-2)


def test_further_names_go_through_the_projection_of_texts() -> None:
    w = world()
    head = BagOfSentences().fit(w.support)
    more = head.with_classes(30.0 * w.support.texts[:2])
    assert more is not None and more.logits(w.x).shape == (400, 12)
    assert np.allclose(more.logits(w.x)[:, :10], head.logits(w.x), atol=1e-4)
    projected = unit_rows(w.x @ head.images.T) @ unit_rows(w.support.texts[:2] @ head.texts.T).T  # type: ignore[attr-defined]
    assert np.allclose(more.logits(w.x)[:, 10:], 30 * projected, atol=1e-3)
    assert Gist(steps=2).fit(w.support).with_classes(w.support.texts[:2]) is None


def test_fitness_is_accuracy_minus_weighted_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits, y = 3 * rng.normal(size=(4, 30, 5)), rng.integers(0, 5, 30)
    for weight, got in ((0.0, fitness(logits, y, 0.0)), (2.5, fitness(logits, y, 2.5))):
        for one, value in zip(logits, got, strict=True):
            loss = log_loss(y, softmax(one), labels=range(5))
            assert value == pytest.approx(accuracy_score(y, one.argmax(1)) - weight * loss)


def test_candidates_are_one_step_from_a_parent_or_mixed_from_all() -> None:
    rng = np.random.default_rng(0)
    best = np.array([[1, 1, 1, 0, 0, 0, 1], [1, 0, 1, 1, 0, 0, 1]], dtype=bool)
    able = np.array([1, 1, 1, 1, 1, 1, 0], dtype=bool)
    new = candidates(best, 1, 5, able, rng)
    assert len(new) == 2 * 5 * 3 + 5 + 10 and new[:, 6].all()
    for k, parent in enumerate(best):
        near = new[15 * k : 15 * (k + 1)].reshape(5, 3, 7)
        assert (near[:, 0].sum(1) == parent.sum() + 1).all() and (near[:, 0] >= parent).all()
        assert (near[:, 1].sum(1) == parent.sum() - 1).all() and (near[:, 1] <= parent).all()
        assert (near[:, 2].sum(1) == parent.sum()).all() and ((near[:, 2] ^ parent).sum(1) == 2).all()
    assert (new[30:35, :6].sum(1) == 3).all()
    crossed = new[35:]
    assert crossed[:, [0, 2]].all() and not crossed[:, [4, 5]].any() and crossed[:, [1, 3]].any(1).all()
    assert {tuple(row) for row in crossed[:, [1, 3]].tolist()} == {(True, False), (False, True), (True, True)}


def test_evolution_finds_the_best_set() -> None:
    value = np.random.default_rng(3).normal(size=8)
    tried: list[bytes] = []

    def score(masks: np.ndarray) -> np.ndarray:
        tried.extend(m.tobytes() for m in masks)
        return np.abs(masks @ value - 1.7) * -1.0

    every = np.ones(8, dtype=bool)
    won = evolve(np.ones((1, 8), dtype=bool), score, every, steps=12, keep=4, number=8, seed=0)
    best = max(-abs(value[list(s)].sum() - 1.7) for n in range(1, 9) for s in itertools.combinations(range(8), n))
    assert -abs(value[won].sum() - 1.7) >= best - 0.05
    assert len(tried) == len(set(tried)) and np.zeros(8, dtype=bool).tobytes() not in tried
    same = evolve(np.ones((1, 8), dtype=bool), score, every, steps=12, keep=4, number=8, seed=0)
    assert np.array_equal(won, same)


def test_the_search_judges_sets_as_the_head_that_they_give() -> None:
    w = world(classes=6, noise=2.0, shift=1.5)
    support = uneven(w)
    way = PromptSearch(weight=2.0)
    assert support.prompts is not None
    masks = np.random.default_rng(0).random((5, 6)) < 0.5
    masks[:, 0] = True
    none = [np.zeros(len(own), dtype=bool) for own in support.described]
    for mask, got in zip(masks, way._score(support, support.prompts)(masks), strict=True):
        logits = support.scale * support.x @ way.vectors(support, mask, none).T
        assert got == pytest.approx(fitness(logits[None].astype(np.float64), support.y, 2.0)[0], abs=1e-4)
    texts = [np.concatenate(pair) for pair in zip(support.prompts, support.described, strict=True)]
    chosen = [np.r_[masks[1], own] for own in none]
    members = np.array([1, 4])
    score = way._group_score(support, texts, chosen, members)
    groups = np.random.default_rng(1).random((4, sum(len(chosen[c]) for c in members))) < 0.5
    groups[:, :6], groups[:, len(chosen[1]) : len(chosen[1]) + 6] = masks[1], masks[1]
    for mask, got in zip(groups, score(groups), strict=True):
        picked = [own.copy() for own in none]
        picked[1], picked[4] = mask[6 : len(chosen[1])], mask[len(chosen[1]) + 6 :]
        logits = support.scale * support.x @ way.vectors(support, masks[1], picked).T
        assert got == pytest.approx(fitness(logits[None].astype(np.float64), support.y, 2.0)[0], abs=1e-4)


def test_search_without_rounds_is_zero_shot_and_with_them_no_worse_on_its_own_pictures() -> None:
    w = world(classes=5, noise=2.0, shift=1.5, good=3)
    zero = ZeroShot().fit(w.support).logits(w.support.x)
    assert np.allclose(PromptSearch(steps=0).fit(w.support).logits(w.support.x), zero, atol=1e-4)
    for given in (w.support, replace(w.support, described=())):
        got = PromptSearch(weight=1.0).fit(given).logits(w.support.x)
        assert (
            fitness(got[None].astype(np.float64), w.support.y, 1.0)[0] > fitness(zero[None].astype(np.float64), w.support.y, 1.0)[0]
        )


def test_search_finds_the_planted_templates_and_sentences() -> None:
    first, rest = [], []
    for seed in range(3):
        templates, sentences = PromptSearch().search(world(noise=2.0, shift=1.5, good=2, seed=seed).support)
        assert templates[:2].any() and not templates[2:].all()
        first += [own[0] for own in sentences]  # it lies on the mean of the class's images
        rest += [own[1:].mean() for own in sentences]
    assert np.mean(first) > np.mean(rest) + 0.15


def test_groups_are_of_classes_that_are_alike() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(5)[[0, 0, 0, 1, 1, 2]]
    vectors = unit_rows(centres + 0.1 * rng.normal(size=(6, 5)))
    assert sorted(g.tolist() for g in confusable(vectors, 3, 0)) == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("way", "world_of", "over", "gain"),
    [
        (SentenceAttention, {"shift": 1.5, "noise": 2.2}, ZeroShot, 0.2),
        (BagOfSentences, {"shift": 1.5, "noise": 2.2}, ZeroShot, 0.2),
        (BagOfSentences, {"shift": 2.5, "noise": 2.2}, Descriptions, 0.02),
        (PromptSearch, {"shift": 1.5, "noise": 2.2, "good": 2}, ZeroShot, 0.3),
        (Gist, {"shift": 1.5, "noise": 2.2, "shots": 2}, LinearProbe, 0.04),
        (SentenceAttention, {"shift": 0.0, "noise": 1.5}, Descriptions, -0.01),
        (BagOfSentences, {"shift": 0.0, "noise": 1.5}, Descriptions, -0.01),
        (PromptSearch, {"shift": 0.0, "noise": 1.5}, ZeroShot, -0.01),
        (Gist, {"shift": 0.0, "noise": 1.5}, LinearProbe, -0.01),
    ],
)
def test_what_each_promises(way: type, world_of: dict[str, float], over: type, gain: float) -> None:
    gains = []
    for seed in range(3):
        w = world(seed=seed, **world_of)  # type: ignore[arg-type]
        gains.append(w.accuracy(way().fit(w.support)) - w.accuracy(over().fit(w.support)))
    assert np.mean(gains) > gain


def test_heads_of_texts_can_take_further_names() -> None:
    w = world(classes=4)
    for way in (SentenceAttention, PromptSearch):
        head = way(steps=2).fit(w.support)
        assert isinstance(head, Linear) and head.open
