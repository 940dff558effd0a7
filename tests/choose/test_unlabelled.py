"""Pseudo-labels, and certain but varied predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diptych.choose.ways.linear import LinearProbe
from diptych.choose.ways.unlabelled.pseudo import Entropy, PseudoLabels, information, most_confident, pool
from diptych.choose.ways.zeroshot import ZeroShot
from diptych.core.errors import DiptychError
from transfer_fixture import world
from ways_fixture import softmax


@pytest.mark.parametrize("k", [1, 3, 100])
def test_pseudo_labels_are_the_most_confident_of_each_class(k: int) -> None:
    logits = np.random.default_rng(0).normal(size=(60, 5)) * 3
    logits[:, 4] -= 20  # no image is called so
    rows, labels = most_confident(logits, k)
    p = softmax(logits)
    for c in range(5):
        called = [i for i in range(60) if max(range(5), key=lambda d, i=i: p[i, d]) == c]
        assert set(rows[labels == c].tolist()) == set(sorted(called, key=lambda i, c=c: -p[i, c])[:k])
    assert 4 not in labels


def test_upl_reads_no_label() -> None:
    support = world(noise=2.2).support
    other = replace(support, y=np.random.default_rng(1).permutation(support.y))
    for given in (support, replace(support, unlabelled=None)):
        again = replace(other, unlabelled=given.unlabelled)
        assert np.array_equal(PseudoLabels().fit(given).logits(support.x), PseudoLabels().fit(again).logits(support.x))


def test_upl_is_the_other_way_on_pseudo_labels() -> None:
    support = world(noise=2.2).support
    assert pool(support) is support.unlabelled and pool(replace(support, unlabelled=None)) is support.x
    images = support.unlabelled
    rows, labels = most_confident(support.scale * images @ support.texts.T, 7)
    expected = LinearProbe(c=2.0).fit(replace(support, x=images[rows], y=labels))
    given = PseudoLabels(k=7, way="probe", settings={"c": 2.0}).fit(support)
    assert np.allclose(given.logits(support.x), expected.logits(support.x))


def test_upl_refuses_itself_and_unknown_ways() -> None:
    support = world().support
    with pytest.raises(DiptychError, match="upl itself"):
        PseudoLabels(way="upl").fit(support)
    with pytest.raises(DiptychError, match="no way of adapting 'wize'"):
        PseudoLabels(way="wize").fit(support)


def test_upl_without_any_image_is_zero_shot() -> None:
    support = world().support
    empty = replace(support.rows(np.arange(0)), unlabelled=None)
    assert np.allclose(PseudoLabels().fit(empty).logits(support.x), ZeroShot().fit(support).logits(support.x))


def test_information_is_entropy_minus_entropy_of_the_mean() -> None:
    logits = np.random.default_rng(0).normal(size=(7, 4))
    p = [softmax(row) for row in logits]
    single = sum(-sum(q * np.log(q) for q in row) for row in p) / 7
    mean = [sum(row[c] for row in p) / 7 for c in range(4)]
    expected = single - 0.3 * -sum(q * np.log(q) for q in mean)
    assert float(information(torch.tensor(logits), 0.3)) == pytest.approx(expected, abs=1e-9)
    assert torch.autograd.gradcheck(lambda z: information(z, 0.3), torch.tensor(logits, requires_grad=True))


def test_entropy_raises_the_information_of_the_unlabelled_images() -> None:
    support = world(noise=2.2, shift=1.5).support

    def held(head: object) -> float:
        return float(information(torch.tensor(head.logits(support.unlabelled)), 1.0))  # type: ignore[attr-defined]

    assert held(Entropy().fit(support)) < held(ZeroShot().fit(support)) - 0.1
    assert np.allclose(Entropy(steps=0).fit(support).logits(support.x), ZeroShot().fit(support).logits(support.x), atol=1e-4)


@pytest.mark.parametrize(("way", "gain"), [(PseudoLabels, 0.025), (Entropy, 0.06)])
def test_more_is_right_than_by_zero_shot(way: type, gain: float) -> None:
    worlds = [world(shift=1.5, noise=2.2, seed=seed) for seed in range(3)]
    assert np.mean([w.accuracy(way().fit(w.support)) - w.zeroshot for w in worlds]) > gain
    worlds = [world(shift=0.0, noise=1.5, seed=seed) for seed in range(2)]
    assert np.mean([w.accuracy(way().fit(w.support)) - w.zeroshot for w in worlds]) > -0.01
