"""Test-time prompt tuning and CoOp's contexts of single classes: against formulas written out, and as runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import foreign_fixture
from diptych.api import load
from diptych.choose.towers import TOWER_WAYS, fit, tower_recipe
from diptych.choose.towers.tpt import Tpt, TunedPrompts, prompt_of, views_of
from diptych.choose.ways.unlabelled.views import entropy_of_mean, least_uncertain
from diptych.core.errors import DiptychError
from diptych.inference.adapted import AdaptedModel
from diptych.inference.run import TrainedModel
from towers_fixture import FAST, NAMES, folders, pictures, stir
from ways_fixture import softmax

FEW = {"views": 12, "share": 0.25}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"classes:{folders(tmp_path_factory.mktemp('data') / 'classes', n=6)}"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"hf:{foreign_fixture.clip(tmp_path_factory.mktemp('models') / 'clip')}"


def adapted(clip: str, data: str, out: Path, way: str = "tpt", **settings: object) -> AdaptedModel:
    model = load(fit(clip, TOWER_WAYS[way], data, out, settings=settings, budget="16 samples", overrides=FAST), device="cpu")
    assert isinstance(model, AdaptedModel)
    return model


def test_the_views_are_the_picture_and_crops_that_depend_on_it_alone() -> None:
    picture = pictures(1, 48)[0]
    shown = views_of(picture, 64, 32)
    assert len(shown) == 64 and (shown[0] == picture).all() and {x.shape for x in shown[1:]} == {(32, 32, 3)}
    assert all((a == b).all() for a, b in zip(shown, views_of(picture, 64, 32), strict=True))
    assert len({x.tobytes() for x in shown}) == 64


def test_entropies_by_hand() -> None:
    logits = np.random.default_rng(0).normal(size=(10, 4)) * 3
    p = softmax(logits)
    entropies = -(p * np.log(p)).sum(1)
    chosen = least_uncertain(torch.tensor(logits), 0.25).tolist()
    assert chosen == np.argsort(entropies)[:2].tolist()  # rounded down, as the authors' code does
    mean = p[chosen].mean(0)
    assert entropy_of_mean(torch.tensor(logits[chosen])).item() == pytest.approx(-(mean * np.log(mean)).sum())
    assert len(least_uncertain(torch.tensor(logits[:3]), 0.1)) == 1


def test_one_step_is_adamws_on_the_entropy_by_numerical_gradients(clip: str, data: str, tmp_path: Path) -> None:
    model = adapted(clip, data, tmp_path / "tpt", **FEW)
    head, base = model.head, model.base
    assert isinstance(head, TunedPrompts) and isinstance(base, TrainedModel) and head.steps == 1
    views = base.embed_image(views_of(pictures()[0], 12, base.model.image_size)).astype(np.float64)
    prompt = prompt_of(base)
    start = prompt.vectors.detach().clone()
    logits, moved = head.tuned(base, views)
    assert (prompt.vectors == start).all()  # the next picture begins anew

    def scores() -> np.ndarray:
        with torch.no_grad():
            return head.scale * views @ head._classes(base).numpy().T

    p = softmax(scores())
    chosen = np.argsort(-(p * np.log(p)).sum(1), kind="stable")[:3]

    def entropy() -> float:
        mean = softmax(scores()[chosen]).mean(0)
        return float(-(mean * np.log(mean)).sum())

    signs = 0
    for at in [(i, j) for i in range(4) for j in range(0, start.shape[1], 7)]:
        values = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                prompt.vectors[at] += step
                values.append(entropy())
                prompt.vectors[at] = start[at]
        slope = (values[0] - values[1]) / 2e-2
        if abs(slope) > 2e-4:  # the first step of Adam has the size of the rate, against the sign of the gradient
            signs += 1
            assert moved[at] == pytest.approx(float(start[at]) * (1 - 5e-3 * 0.01) - 5e-3 * np.sign(slope), abs=1e-5), at
    assert signs >= 5
    with torch.no_grad():
        prompt.vectors.copy_(torch.tensor(moved))
        np.testing.assert_allclose(logits, scores()[0], atol=1e-4)
        mean = softmax(scores()[chosen]).mean(0)
        after = float(-(mean * np.log(mean)).sum())
        prompt.vectors.copy_(start)
    assert after < entropy()  # what the step is for


def test_the_run_learns_nothing_and_names_pictures_one_by_one(clip: str, data: str, tmp_path: Path) -> None:
    model = adapted(clip, data, tmp_path / "tpt", **FEW)
    base = model.base
    assert isinstance(base, TrainedModel) and model.classes == tuple(sorted(NAMES))
    words = base.model.tokenizer.encode_batch(["a photo of a"])[0][0][1:5]
    table = base.model.part("text").embedding.weight  # type: ignore[union-attr]
    assert torch.equal(prompt_of(base).vectors, table[torch.from_numpy(np.asarray(words))])  # as it began
    shown = pictures(3)
    together = model.classify(shown)
    np.testing.assert_allclose(together[1:], model.classify(shown[1:]), atol=1e-6)
    np.testing.assert_allclose(together.sum(1), 1, atol=1e-5)
    plain = base.scale * base.embed_image(shown) @ base.embed_text([n.replace("_", " ") for n in model.classes]).T
    assert np.abs(softmax(plain.astype(np.float64)) - together).max() > 1e-6  # the tuning does something
    again = load(tmp_path / "tpt", device="cpu")
    np.testing.assert_allclose(again.classify(shown), together, atol=1e-6)  # type: ignore[attr-defined]
    with pytest.raises(DiptychError, match="computed for each picture"):
        model.head.logits(np.zeros((1, 4)))


def test_a_model_without_a_context_cannot_be_tuned(clip: str, data: str, tmp_path: Path) -> None:
    out = fit(clip, TOWER_WAYS["lora"], data, tmp_path / "lora", budget="8 samples", overrides=FAST)
    with pytest.raises(DiptychError, match="no learned context"):
        prompt_of(TrainedModel.load(out, "cpu"))
    assert Tpt().views == 64 and Tpt().share == 0.1 and Tpt().steps == 1 and Tpt().lr == 5e-3


def test_each_class_has_a_context_of_its_own(clip: str, data: str, tmp_path: Path) -> None:
    recipe = tower_recipe(clip, TOWER_WAYS["coop-class"], f"shots:{data}?shots=2")
    assert recipe.adapters["text"].options["classes"] == sorted(NAMES)
    model = adapted(clip, data, tmp_path / "c", "coop-class")
    base = model.base
    assert isinstance(base, TrainedModel)
    stir(base.model, 1.0)
    own, other = base.embed_text(["cat"]), base.embed_text(["a red dog"])
    with torch.no_grad():
        vectors = base.model.adapters["text"].vectors[sorted(NAMES).index("cat")]
        vectors += torch.linspace(-1, 1, vectors.shape[1])  # not the same everywhere, which norms take away
    assert np.abs(base.embed_text(["cat"]) - own).max() > 1e-3  # a class reads its own,
    np.testing.assert_allclose(base.embed_text(["a red dog"]), other, atol=1e-6)  # and other texts none
    with pytest.raises(DiptychError, match="begin at random"):
        tower_recipe(clip, TOWER_WAYS["coop-class"], f"shots:{data}?shots=2", {"words": "a photo of a"})
