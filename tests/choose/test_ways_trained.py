"""Ways that are trained, against plain updates in float64 with gradients from differences of the loss."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
import torch

from diptych.choose.ways import WAYS
from diptych.choose.ways.descent import Descent, slope
from diptych.core.arrays import unit_rows
from ways_fixture import clusters, cross_entropy, descend

SMALL = {"classes": 3, "shots": 4, "width": 5}


def texts(support):
    return unit_rows(support.prompts.astype(np.float64).mean(1))


def warm(rate, epochs):
    """One epoch at 1e-5, then half a cosine that began at the second epoch and is as long as the training."""
    return [1e-5] + [rate / 2 * (1 + math.cos(math.pi * (e - 1) / epochs)) for e in range(1, epochs)]


def test_rates_are_those_of_torchs_cosine():
    """By update as Tip-Adapter steps its scheduler; by epoch as Dassl does, whose scheduler begins after the first epoch."""
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 12)
    by_update = []
    for _ in range(12):
        by_update.append(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()
    plan = Descent("sgd", 0.3, epochs=4, batch=4, by_step=True)
    np.testing.assert_allclose([plan.rate(e, u, n=10) for e in range(4) for u in range(3)], by_update)
    plan = Descent("sgd", 0.3, epochs=12, batch=4, warm=True)
    np.testing.assert_allclose([plan.rate(e, 2, n=10) for e in range(12)], [1e-5, *by_update[:11]])


def test_every_epoch_takes_every_image_once_in_an_order_of_the_seed():
    seen: list[list[int]] = []

    def logits_of(some):
        seen.append(some.tolist())
        return weight.expand(len(some), 2)

    weight = torch.zeros(2)
    for seed in (1, 1, 2):
        Descent("sgd", 0.1, epochs=3, batch=4).train(logits_of, torch.zeros(10, dtype=torch.int64), [weight], seed)
    assert [len(b) for b in seen] == [4, 4, 2] * 9
    epochs = [list(chain(*seen[i : i + 3])) for i in range(0, 27, 3)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert epochs[:3] == epochs[3:6] and epochs[:3] != epochs[6:] and epochs[0] != epochs[1]


def test_the_slope_is_that_of_cross_entropy():
    """To float32, also where probabilities are too small for it, which are 0 exactly."""
    random = np.random.default_rng(0)
    for scale in (1, 30, 300):
        z = torch.tensor(scale * random.standard_normal((6, 4)), requires_grad=True)
        y = torch.tensor(random.integers(0, 4, 6))
        torch.nn.functional.cross_entropy(z, y).backward()
        got = slope(z.detach().float(), y)
        torch.testing.assert_close(got.double(), z.grad, rtol=1e-4, atol=1e-7)
        assert ((got == 0) | (got.abs() > 1e-27)).all()


def test_probe_from_the_names():
    support = clusters(**SMALL)

    def loss(w, _):
        return cross_entropy(support.scale * support.x @ unit_rows(w).T, support.y)

    rows = descend(loss, 2 * texts(support), warm(0.4, 6), "sgd")
    head = WAYS["probe-init"](lr=0.4, epochs=6, length=2.0).fit(support)
    np.testing.assert_allclose(head.weight, support.scale * unit_rows(rows), rtol=1e-3, atol=1e-4)
    assert np.abs(head.weight - support.scale * texts(support)).max() > 0.1  # it has moved


def test_clap_holds_each_class_by_what_its_name_is_worth():
    support = clusters(**SMALL, noise=2)
    names = 2 * texts(support)
    logits = support.scale * support.x.astype(np.float64) @ texts(support).T
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    held = [np.mean([p[i, c] for i in range(len(p)) if support.y[i] == c]) for c in range(3)]
    np.testing.assert_allclose(WAYS["clap"].multipliers(support), held, rtol=1e-5)
    without = support.rows(np.flatnonzero(support.y != 1))
    np.testing.assert_allclose(WAYS["clap"].multipliers(without), [held[0], 1, held[2]], rtol=1e-5)

    def loss(w, _):
        penalty = np.mean([held[c] * ((w[c] - names[c]) ** 2).sum() for c in range(3)])
        return cross_entropy(support.scale * support.x @ unit_rows(w).T, support.y) + penalty

    rows = descend(loss, names, warm(0.4, 6), "sgd")
    head = WAYS["clap"](lr=0.4, epochs=6, length=2.0).fit(support)
    np.testing.assert_allclose(head.weight, support.scale * unit_rows(rows), rtol=1e-3, atol=1e-4)
    free = WAYS["probe-init"](lr=0.4, epochs=6, length=2.0).fit(support)
    assert np.abs(head.weight - free.weight).max() > 0.05


def test_clap_stays_nearer_to_the_names_than_the_free_probe():
    support = clusters(5, 4, 16, noise=2)
    start = support.scale * support.texts
    near, far = (np.linalg.norm(WAYS[w]().fit(support).weight - start) for w in ("clap", "probe-init"))
    assert near < far


def test_taskres():
    support = clusters(**SMALL)
    names = 2 * texts(support)

    def loss(r, _):
        return cross_entropy(support.scale * support.x @ unit_rows(names + 0.7 * r).T, support.y)

    residual = descend(loss, np.zeros_like(names), warm(0.05, 5), "adam", decay=5.0)
    head = WAYS["taskres"](alpha=0.7, lr=0.05, epochs=5, decay=5.0, length=2.0).fit(support)
    np.testing.assert_allclose(head.weight, support.scale * unit_rows(names + 0.7 * residual), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("shots", "epochs"), [(4, 100), (5, 200)])
def test_taskres_takes_more_epochs_for_more_shots(shots, epochs):
    support = clusters(3, shots, 5)
    got, expected = (WAYS["taskres"](epochs=e).fit(support).weight for e in (None, epochs))
    np.testing.assert_array_equal(got, expected)


def batches_of(support, epochs, size):
    """The images of each update: an order of the seed for every epoch."""
    order = torch.Generator().manual_seed(support.seed)
    return [b.numpy() for _ in range(epochs) for b in torch.randperm(len(support.y), generator=order).split(size)]


def test_tip_f():
    """In batches of 5 of 12, so that the learning rate falls within an epoch."""
    support = clusters(**SMALL)
    x = support.x.astype(np.float64)
    names = support.scale * x @ texts(support).T
    batches = batches_of(support, 2, 5)

    def loss(keys, t):
        some = batches[t]
        affinity = np.exp(-2.0 * (1 - x[some] @ keys.T))
        return cross_entropy(names[some] + 1.5 * affinity @ np.eye(3)[support.y], support.y[some])

    rates = [0.2 / 2 * (1 + math.cos(math.pi * t / 6)) for t in range(6)]
    keys = descend(loss, x, rates, "adamw", decay=0.01, eps=1e-4)
    head = WAYS["tip-f"](alpha=9.0, beta=7.0, train_alpha=1.5, train_beta=2.0, lr=0.2, epochs=2, batch=5).fit(support)
    np.testing.assert_allclose(head.keys, keys, rtol=1e-3, atol=1e-3)
    assert (head.alpha, head.beta) == (9.0, 7.0)
    np.testing.assert_array_equal(head.values, np.eye(3)[support.y])


def test_clip_adapter_in_batches():
    """Both matrices side by side in one array, so that the plain loop moves both."""
    support, epochs = clusters(3, 4, 8), 2
    x = support.x.astype(np.float64)
    batches = batches_of(support, epochs, 5)

    def loss(both, t):
        down, up, some = both[0].reshape(2, 8), both[1].reshape(8, 2), batches[t]
        changed = np.maximum(np.maximum(x[some] @ down.T, 0) @ up.T, 0)
        mixed = unit_rows(0.4 * changed + 0.6 * x[some])
        return cross_entropy(support.scale * mixed @ texts(support).T, support.y[some])

    start = WAYS["clip-adapter"](share=0.4, lr=0.0, epochs=epochs, batch=5).fit(support)
    rates = [0.01, 0.01, 0.01, 0.005, 0.005, 0.005]
    both = descend(loss, np.stack([start.down.ravel(), start.up.ravel()]), rates, "adam", decay=0.05)
    head = WAYS["clip-adapter"](share=0.4, lr=0.01, epochs=epochs, batch=5, decay=0.05).fit(support)
    np.testing.assert_allclose(np.stack([head.down.ravel(), head.up.ravel()]), both, rtol=1e-2, atol=1e-3)
    assert np.abs(both[0] - start.down.ravel()).max() > 0.02


def test_clip_adapter_begins_as_a_linear_layer_of_torch_does():
    head = WAYS["clip-adapter"](lr=0.0, epochs=1).fit(clusters(3, 4, 64))
    assert head.down.shape == (16, 64) and head.up.shape == (64, 16)
    assert 0.9 * 64**-0.5 < np.abs(head.down).max() <= 64**-0.5 and 0.9 * 16**-0.5 < np.abs(head.up).max() <= 16**-0.5
    assert abs(head.down.mean()) < 0.01


def test_clip_adapter_has_no_more_updates_than_allowed():
    support = clusters(3, 8)
    got, expected = (WAYS["clip-adapter"](batch=8, **s).fit(support).down for s in ({"updates": 10}, {"epochs": 3}))
    np.testing.assert_array_equal(got, expected)
