"""WiSE-FT of the head: between zero-shot and a linear head trained from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diptych.choose.select import choose_settings
from diptych.choose.ways.wise import Wise
from diptych.choose.ways.zeroshot import ZeroShot
from transfer_fixture import world
from ways_fixture import cross_entropy, descend


def test_the_head_is_the_mean_of_both_heads_with_the_weight_alpha() -> None:
    support = world().support
    zero, trained = (Wise(alpha=alpha).fit(support).logits(support.x) for alpha in (0.0, 1.0))
    assert np.allclose(zero, ZeroShot().fit(support).logits(support.x))
    assert np.abs(trained - zero).max() > 1
    for alpha in (0.2, 0.5):
        assert np.allclose(Wise(alpha=alpha).fit(support).logits(support.x), (1 - alpha) * zero + alpha * trained, atol=1e-4)


def test_training_is_adamw_from_the_text_vectors() -> None:
    support = world(classes=3, shots=4, width=5).support
    steps, rate = 12, 0.04 / 5**0.5
    x = np.concatenate([support.x, np.ones((len(support.y), 1))], 1).astype(np.float64)
    start = np.concatenate([support.texts, np.zeros((3, 1))], 1).astype(np.float64)
    rates = [rate * (1 + np.cos(np.pi * i / steps)) / 2 for i in range(steps)]
    expected = support.scale * descend(
        lambda w, _: cross_entropy(support.scale * x @ w.T, support.y), start, rates, "adamw", decay=0.1
    )
    weight, bias = Wise(steps=steps).trained(support)
    assert np.allclose(np.concatenate([weight, bias[:, None]], 1), expected, atol=2e-3)


def test_without_images_it_is_zero_shot() -> None:
    support = world().support
    empty = support.rows(np.arange(0))
    assert np.array_equal(Wise().fit(empty).logits(support.x), ZeroShot().fit(support).logits(support.x))


@pytest.mark.parametrize(("shift", "least"), [(1.5, 0.1), (0.0, -0.01)])
def test_cross_validation_takes_much_of_it_where_names_are_off_and_little_where_they_are_right(shift: float, least: float) -> None:
    gained, alphas = [], []
    for seed in range(2):
        w = world(shift=shift, noise=2.2, seed=seed)
        choice = choose_settings(Wise, w.support)
        alphas.append(choice.settings["alpha"])
        gained.append(w.accuracy(Wise(**choice.settings).fit(w.support)) - w.zeroshot)
    assert np.mean(gained) > least
    assert min(alphas) >= 0.7 if shift else max(alphas) <= 0.7


def test_a_class_without_pictures_keeps_its_name() -> None:
    w = world(shift=0.3, noise=1.0)
    some = w.support.rows(np.flatnonzero(w.support.y != 3))
    logits = Wise(alpha=0.5).fit(replace(some)).logits(w.x[w.y == 3])
    assert (logits.argmax(1) == 3).mean() > 0.9


def test_several_settings_at_once_give_what_each_gives() -> None:
    w = world(noise=2.0)
    settings = [*Wise.grid(w.support)[:4], {"alpha": 0.3, "steps": 7}]
    for setting, got in zip(settings, Wise.logits_of(settings, w.support, w.x), strict=True):
        assert np.allclose(got, Wise(**setting).fit(w.support).logits(w.x), atol=1e-3)
