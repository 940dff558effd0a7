"""UNEM: its updates, the Dirichlet fit, learning by unrolling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import digamma, gammaln

from diptych.choose.ways.unlabelled.unem import GaussianUnem, Unem, draw_tasks
from diptych.core.errors import DiptychError
from diptych.inference.unrolled import Unrolled, dirichlet, dirichlet_fit, gaussian
from transfer_fixture import world
from ways_fixture import softmax


def softplus(v: float) -> float:
    return float(np.log1p(np.exp(v)))


def plain_gaussian(support, y, query, sharpness, balance, temperature):
    classes = y.max() + 1
    support, query = softplus(sharpness) * support, softplus(sharpness) * query
    means = np.stack([support[y == c].mean(0) for c in range(classes)])
    v = np.ones(classes)
    for gamma, t in zip(balance, temperature, strict=True):
        u = np.zeros((len(query), classes))
        for i, q in enumerate(query):
            logits = np.array([-((q - m) ** 2).sum() / 2 for m in means]) + softplus(gamma) * v
            u[i] = softmax(logits / (softplus(t) + 1))
        v = np.log(u.mean(0) + 1e-6) + 1
        for c in range(classes):
            total = support[y == c].sum(0) + sum(u[i, c] * query[i] for i in range(len(query)))
            means[c] = total / ((y == c).sum() + u[:, c].sum())
    return u


def mm_fit(mean, rounds=20000):
    """The authors' minorisation, one Dirichlet: a quadratic equation for each parameter in each round."""
    alpha = np.ones(len(mean))
    for _ in range(rounds):
        curve = np.abs(2 * (-gammaln(alpha + 1) + digamma(alpha + 1) * alpha) / alpha**2)
        b = digamma(alpha + 1) - digamma(alpha.sum()) - curve * alpha - mean
        alpha = (-b + np.sqrt(b**2 + 4 * curve)) / (2 * curve)
    return alpha


def plain_dirichlet(support, y, query, sharpness, balance, temperature, prior):
    classes = query.shape[1]
    u = softmax(sharpness * query)
    log_s, log_q = np.log(softmax(sharpness * support) + 1e-15), np.log(u + 1e-15)
    flat = digamma(1) - digamma(classes)
    for gamma, t in zip(balance, temperature, strict=True):
        logits = np.zeros_like(u)
        for c in range(classes):
            total = log_s[y == c].sum(0) + u[:, c] @ log_q + prior * flat
            alpha = mm_fit(total / ((y == c).sum() + u[:, c].sum() + prior))
            logits[:, c] = gammaln(alpha.sum()) - gammaln(alpha).sum() + log_q @ (alpha - 1)
        v = np.log(u.mean(0) + 1e-15) + 1
        u = softmax((logits + softplus(gamma) * v) / (softplus(t) + 1))
    return u


def small(seed: int = 0):
    w = world(classes=3, shots=4, width=6, test=5, noise=1.0, seed=seed)
    onehot = torch.tensor(w.support.onehot, dtype=torch.float64)[None]
    return w, torch.tensor(w.support.x, dtype=torch.float64)[None], onehot, torch.tensor(w.x, dtype=torch.float64)[None]


def test_gaussian_updates() -> None:
    w, support, onehot, query = small()
    balance, temperature = [0.5, -1.0, 2.0], [1.0, 0.3, -2.0]
    t = [torch.tensor(v, dtype=torch.float64) for v in (2.0, balance, temperature)]
    got = gaussian(support, onehot, query, torch.zeros(3, 6, dtype=torch.float64), *t)[0].exp().numpy()
    expected = plain_gaussian(w.support.x.astype(np.float64), w.support.y, w.x.astype(np.float64), 2.0, balance, temperature)
    assert np.allclose(got, expected, atol=1e-5) and np.abs(got.max(1) - 1).max() > 0.05


def test_dirichlet_updates() -> None:
    w, support, onehot, query = small()
    texts = torch.tensor(w.support.texts, dtype=torch.float64)
    balance, temperature = [0.5, 1.5], [1.0, -0.5]
    t = [torch.tensor(v, dtype=torch.float64) for v in (4.0, balance, temperature)]
    got = dirichlet(support @ texts.T, onehot, query @ texts.T, *t, prior=0.5)[0].exp().numpy()
    cosines = [np.asarray(a[0] @ texts.T) for a in (support, query)]
    expected = plain_dirichlet(cosines[0], w.support.y, cosines[1], 4.0, balance, temperature, 0.5)
    assert np.allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("alpha", [[0.3, 2.0, 5.0], [80.0, 1.0, 400.0], [1e-2, 0.1, 0.5]])
def test_the_fit_solves_its_equation_from_any_start(alpha: list[float]) -> None:
    true = torch.tensor([alpha], dtype=torch.float64)
    mean = torch.digamma(true) - torch.digamma(true.sum(-1, keepdim=True))
    for start in (None, torch.full_like(true, 100.0), true * 3):
        assert torch.allclose(dirichlet_fit(mean, start), true, rtol=1e-5)


def test_gradients() -> None:
    _, support, onehot, query = small()
    texts = torch.nn.functional.normalize(torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1)
    parameters = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, [0.5, -1.0], [1.0, 0.3])]
    start = torch.zeros(3, 6, dtype=torch.float64)
    weight = torch.ones_like(query[..., 0])
    weight[0, 2:5] = 0
    assert torch.autograd.gradcheck(lambda *p: gaussian(support, onehot, query, start, *p, weight=weight), parameters)
    cosines = support @ texts.T, onehot, query @ texts.T
    assert torch.autograd.gradcheck(lambda *p: dirichlet(*cosines, *p, weight=weight, prior=0.5), parameters)
    mean = torch.tensor([[-1.0, -2.0, -1.5], [-0.8, -1.2, -3.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dirichlet_fit, (mean,))


def test_queries_of_weight_zero_change_nothing_for_the_rest() -> None:
    _, support, onehot, query = small()
    start, weight = torch.zeros(3, 6, dtype=torch.float64), torch.ones_like(query[..., 0])
    weight[0, 4:] = 0
    parameters = [torch.tensor(v, dtype=torch.float64) for v in (2.0, [0.5, -1.0], [1.0, 0.3])]
    for run in (lambda q, w: gaussian(support, onehot, q, start, *parameters, weight=w),
                lambda q, w: dirichlet(support[..., :3], onehot, q[..., :3], *parameters, weight=w)):  # fmt: skip
        assert torch.allclose(run(query, weight)[:, :4], run(query[:, :4], None))


def test_tasks_have_no_image_on_both_sides() -> None:
    y = np.array([0] * 9 + [1] * 2 + [2])
    tasks = draw_tasks(y, 50, 0.5, 0)
    assert tasks is not None
    present = set()
    for support, query, counts in zip(tasks.support, tasks.query, tasks.counts, strict=True):
        assert not set(support) & set(query)
        assert sorted([*support, *query]) == list(range(12))
        assert np.bincount(y[query], minlength=3).tolist() == [3, 1, 0]
        present.add(frozenset(y[query[counts > 0]].tolist()))
    assert present == {frozenset({0}), frozenset({1}), frozenset({0, 1})}
    assert draw_tasks(np.arange(4), 5, 0.5, 0) is None


@pytest.mark.parametrize("way", [Unem, GaussianUnem])
def test_unrolling_makes_it_better(way: type[Unem]) -> None:
    gains = []
    for seed in range(2):
        w = world(shift=1.2, noise=2.0, shots=8, seed=seed)
        gains.append(w.accuracy(way().fit(w.support)) - w.accuracy(way(steps=0).fit(w.support)))
    assert np.mean(gains) > (0.05 if way is Unem else 0.0)


def test_more_is_right_than_by_zero_shot_and_by_the_means_alone() -> None:
    w = world(shift=1.5, noise=2.2)
    means = np.stack([w.support.x[w.support.y == c].mean(0) for c in range(10)])
    nearest = float((((w.x[:, None] - means) ** 2).sum(-1).argmin(1) == w.y).mean())
    assert w.accuracy(GaussianUnem().fit(w.support)) > max(nearest, w.zeroshot + 0.2)
    assert w.accuracy(Unem().fit(w.support)) > w.zeroshot


def test_a_class_without_pictures_begins_at_its_name_or_is_never_named() -> None:
    w = world(shift=0.3, noise=1.0, classes=5)
    some = w.support.rows(np.flatnonzero(w.support.y != 3))
    for way in (Unem, GaussianUnem):
        logits = way(steps=5).fit(some).logits(w.x)
        assert np.isfinite(logits).all() and (logits[w.y == 3].argmax(1) == 3).mean() > 0.9
    blind = GaussianUnem(steps=5).fit(type(some)(some.x, some.y, some.names))
    logits = blind.logits(w.x)
    assert np.isfinite(logits).all() and 3 not in logits.argmax(1)


def test_one_picture_of_a_class_learns_nothing_and_stays_finite() -> None:
    w = world(shots=1, classes=4)
    for way in (Unem, GaussianUnem):
        head = way().fit(w.support)
        start = way().first(w.support)
        assert isinstance(head, Unrolled) and head.sharpness == pytest.approx(start[0])
        assert head.balance.tolist() == [start[1]] * 10 and np.isfinite(head.logits(w.x)).all()
        assert head.logits(w.x[:1]).shape == (1, 4) and head.logits(w.x[:0]).shape == (0, 4)


def test_other_forms_are_refused() -> None:
    w = world(classes=2)
    head = Unrolled(w.support.x, w.support.onehot, w.support.texts, np.ones(1), np.ones(1), 1.0, "laplace")
    with pytest.raises(DiptychError, match="gaussian or dirichlet"):
        head.logits(w.x)
