"""NOVA: SIGReg against NumPy and what it is for, views, and what would collapse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.models import Words
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Texts
from diptych.core.errors import DiptychError
from diptych.inference.able import capabilities_of
from diptych.models.vision.drawn import random_crops
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
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


TOWER_FORM = ("embed_dim=384", "parts.text.project=false", "parts.space={kind: linear}",
              "stages.0.objectives.text_prediction={regularise: tower, local: 0, least: 0.8}")  # fmt: skip


@pytest.mark.parametrize("regularise", ["joint", "apart", "predictions"])
@pytest.mark.parametrize("error_of", ["mean", "sum"])
def test_the_loss_equals_the_reference(regularise: str, error_of: str) -> None:
    """NumPy, float64, from the encodings: squares averaged over views and dimensions, or summed over dimensions; SIGReg over
    predictions and texts as one set, over each view and the texts apart, or over the predictions.
    """
    options = [f"stages.0.objectives.text_prediction.{key}" for key in (f"regularise={regularise}", f"error={error_of}")]
    small = ["parts.vision.width=32", "parts.vision.depth=1", "parts.vision.heads=2", "precision=fp32"]
    recipe = load_recipe("nova", [*small, *options])
    torch.manual_seed(0)
    model = build_model(recipe, Words(64, 8), 32)
    objective = build_objectives(recipe, model)["text_prediction"]
    pixels = torch.rand(5, 3, 32, 32) * 2 - 1
    meaning = torch.arange(7, 12)
    strings = ("a red fox", "two keys", "a blue drum", "a tree", "a green snail")
    ids = torch.randint(4, 64, (5, 6))
    batch = Batch({"image": Images(pixels), "text": Texts(ids, ids > 0, strings, meaning)}, 5)
    p = model.encode(batch)
    loss = objective(p)
    assert p["crops.pooled"].shape == (5, 8, 32)
    space = model.part("space")
    predicted = space.image(p["crops.pooled"]).detach().double().numpy()  # [5, 8, 64]
    text = space.text(p["text.pooled"]).detach().double().numpy()  # [5, 64]
    along = directions(64, 256, 7).double().numpy()
    error = np.mean([(predicted[b, v] - text[b]) ** 2 for b in range(5) for v in range(8)]) * (64 if error_of == "sum" else 1)
    sets = {
        "joint": [np.concatenate([predicted.reshape(40, 64), text])],
        "predictions": [predicted.reshape(40, 64)],
        "apart": [*(predicted[:, v] for v in range(8)), text],
    }[regularise]
    shape = np.mean([[reference(some @ along[:, k]) for k in range(256)] for some in sets])
    assert objective.metrics() == pytest.approx({"error": error, "sigreg": shape}, rel=1e-5)
    assert loss.item() == pytest.approx(0.98 * error + 0.02 * shape, rel=1e-5)
    loss.backward()
    assert space.text.weight.grad.abs().sum() > 0, "the projection of the texts learns, too"
    assert {"embed_image", "embed_text"} <= capabilities_of(model, [objective])


def test_texts_that_could_collapse_are_refused_and_the_tower_form_trains_the_image_side_alone() -> None:
    with pytest.raises(DiptychError, match="must be frozen"):
        Little("nova", "parts.text={kind: transformer}")
    with pytest.raises(DiptychError, match="would collapse to one point with the images"):
        Little("nova", "stages.0.objectives.text_prediction.regularise=tower")
    little = Little("nova", *TOWER_FORM)
    assert not any("text" in name for name in little.parameters())
    gradients = little.gradients(None)
    assert all(bool(g.any()) for n, g in gradients.items() if n.startswith("0.parts.vision") or n.startswith("0.parts.space.image"))


def test_local_views_are_small_crops() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 64).expand(200, 3, 64, 64)
    for least, most in ((0.3, 1.0), (0.05, 0.3)):
        views = random_crops(ramp, least, most)
        area = (views[:, 0, 0, -1] - views[:, 0, 0, 0]) ** 2  # of a square crop, by its share of the ramp
        assert float(area.min()) >= least * 0.9 and float(area.max()) <= most * 1.05
