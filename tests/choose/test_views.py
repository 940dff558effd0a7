"""TPS: class vectors that are moved by the views of one image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diptych.choose.ways.unlabelled.views import confident_entropy, prototype_shift
from diptych.core.arrays import unit_rows
from transfer_fixture import world
from ways_fixture import slope, softmax


def plain_loss(logits: np.ndarray, share: float) -> float:
    p = [softmax(row) for row in logits]
    order = sorted(range(len(p)), key=lambda i: -sum(q * math.log(q) for q in p[i]))
    mean = np.mean([p[i] for i in order[: max(1, int(len(p) * share))]], axis=0)
    return float(-sum(q * math.log(q) for q in mean))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.01, 1.0])
def test_the_loss_is_the_entropy_of_the_mean_of_the_confident_views(share: float) -> None:
    logits = 2 * np.random.default_rng(0).normal(size=(20, 4))
    assert float(confident_entropy(torch.tensor(logits), share)) == pytest.approx(plain_loss(logits, share))
    assert torch.autograd.gradcheck(lambda z: confident_entropy(z, share), torch.tensor(logits, requires_grad=True))


@pytest.mark.parametrize("shared", [False, True])
def test_one_step_of_adam_from_no_shift(shared: bool) -> None:
    w = world(classes=3, width=5, noise=1.0)
    views, texts = w.x[:20].astype(np.float64), w.support.texts.astype(np.float64)

    def loss(shift: np.ndarray) -> float:
        return plain_loss(10 * views @ unit_rows(texts + shift).T, 0.3)

    g = slope(loss, np.zeros((1, 5) if shared else (3, 5)))
    expected = unit_rows(texts - 0.02 * g / (np.abs(g) + 1e-8))
    assert np.abs(g).min() > 1e-5
    got = prototype_shift(views, texts, 10.0, share=0.3, rate=0.02, shared=shared)
    assert np.allclose(got, expected, atol=1e-5)


def test_more_images_are_named_right_by_their_views() -> None:
    rng = np.random.default_rng(0)
    w = world(shift=1.5, noise=1.5, classes=5)
    views = unit_rows(w.x[:, None] + 0.12 * rng.normal(size=(len(w.x), 32, 64))).astype(np.float32)
    views[:, 0] = w.x
    named = [(x[0] @ prototype_shift(x, w.support.texts, 30.0, rate=0.01).T).argmax() for x in views]
    assert np.mean(named == w.y) >= w.zeroshot
    same = prototype_shift(views[0], w.support.texts, 30.0, steps=0)
    assert np.allclose(same, w.support.texts, atol=1e-6)
