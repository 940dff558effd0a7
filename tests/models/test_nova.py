"""NOVA: SIGReg against NumPy and what it is for, views, and what would collapse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychError
from diptych.models.vision.drawn import random_crops
from diptych.objectives.nova import directions, epps_pulley, sigreg
from engine_fixture import Little


def reference(x: np.ndarray) -> float:
    """The statistic of one direction, with complex numbers as it is written."""
    t = np.linspace(-5, 5, 17)
    empirical = np.exp(1j * np.outer(x, t)).mean(0)
    normal = np.exp(-(t**2) / 2)
    return len(x) * np.trapezoid(np.abs(empirical - normal) ** 2 * normal, t)


def test_the_statistic_equals_the_reference() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)) * [1.0, 2.0, 0.1] + [0.0, 0.5, 0.0]
    np.testing.assert_allclose(epps_pulley(torch.tensor(x)).numpy(), [reference(column) for column in x.T], rtol=1e-12)


def test_it_has_the_gradient_of_finite_differences() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: sigreg(v, directions(3, 5, 0).double()), (x,))


def test_a_gaussian_is_best_and_the_order_of_samples_is_nothing() -> None:
    rng = torch.Generator().manual_seed(0)
    gaussian = torch.randn(2000, 16, generator=rng)
    along = directions(16, 64, 1)
    best = sigreg(gaussian, along)
    flat = gaussian * (torch.arange(16) < 4)  # collapsed to a quarter of the dimensions
    for worse in (torch.zeros_like(gaussian), 0.1 * gaussian, 3 * gaussian, gaussian + 1, flat, gaussian.sign() * 3):
        assert sigreg(worse, along) > 3 * best
    torch.testing.assert_close(sigreg(gaussian[torch.randperm(2000)], along), best)
    torch.testing.assert_close(directions(16, 64, 1).norm(dim=0), torch.ones(64))


def test_following_its_gradient_undoes_a_collapse() -> None:
    torch.manual_seed(0)
    x = (0.05 * torch.randn(256, 4)).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for step in range(200):
        optimizer.zero_grad()
        sigreg(x, directions(4, 32, step)).backward()
        optimizer.step()
    torch.testing.assert_close(x.detach().T.cov(), torch.eye(4), atol=0.25, rtol=0)


def test_views_are_crops_of_their_own_image() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 16).expand(3, 16, 16)
    pixels = torch.stack([ramp, 5 + ramp])
    views = random_crops(pixels.repeat_interleave(3, 0), 0.4)
    assert views.shape == (6, 3, 16, 16) and bool((views[:3] <= 1.001).all()) and bool((views[3:] >= 4.999).all())
    assert bool((views[:, 0].diff(dim=2) > -1e-3).all()), "left stays left"
    spans = views[:3, 0, 0, -1] - views[:3, 0, 0, 0]
    assert bool((spans > 0.5).all()) and len({round(s.item(), 4) for s in spans}) == 3


def test_texts_that_could_move_are_refused_and_only_the_image_side_learns() -> None:
    with pytest.raises(DiptychError, match="would collapse to one point with the images"):
        Little("nova", "parts.text={kind: transformer}", "embed_dim=128")
    with pytest.raises(DiptychError, match="project: false"):
        Little("nova", "parts.text.project=true")
    little = Little("nova")
    assert not any("text" in name for name in little.parameters())
    gradients = little.gradients(None)
    assert all(bool(g.any()) for n, g in gradients.items() if n.startswith("0.parts.vision") or n.startswith("0.parts.space.image"))
