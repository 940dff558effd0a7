"""Flamingo: the gated layer against Idefics', closed gates, open gates, and the cache."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from batch_fixture import batch_of
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch
from diptych.core.errors import DiptychError
from diptych.models.fusion.gated import GatedLayer
from diptych.models.teachers import averaged_teacher
from diptych.models.vlm import build_model
from gated_fixture import idefics_layers

CAPTIONS = ["a red fox left of a blue heart", "two green keys", "there is a big yellow house"]


def test_the_gated_layer_equals_idefics() -> None:
    theirs, ours = idefics_layers()
    x, image = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    expected = theirs(x, image_hidden_states=image, cross_attention_gate=torch.ones(2, 5))
    torch.testing.assert_close(ours(x, image), expected, atol=1e-5, rtol=1e-5)


def test_the_gated_layer_with_squared_relu_equals_its_formula() -> None:
    """NumPy, float64: y = x + tanh(α) · attention(norm x, image); y + tanh(β) · W₂ max(0, W₁ norm y)²."""
    torch.manual_seed(0)
    layer = GatedLayer(6, 2, 10).double()
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.6)
    x, image = torch.randn(1, 3, 6, dtype=torch.float64, requires_grad=True), torch.randn(1, 4, 6, dtype=torch.float64)
    w = {n: p.detach().numpy() for n, p in layer.named_parameters()}

    def norm(v: np.ndarray, name: str) -> np.ndarray:
        scaled: np.ndarray = v / np.sqrt((v**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"]
        return scaled

    given, seen = x[0].detach().numpy(), image[0].numpy()
    q = norm(given, "norm1") @ w["attention.q.weight"].T + w["attention.q.bias"]
    kv = seen @ w["attention.kv.weight"].T + w["attention.kv.bias"]
    heads = []
    for h in (slice(0, 3), slice(3, 6)):
        e = np.exp(q[:, h] @ kv[:, :6][:, h].T / np.sqrt(3))
        heads.append(e / e.sum(1, keepdims=True) @ kv[:, 6:][:, h])
    looked = np.concatenate(heads, 1) @ w["attention.out.weight"].T + w["attention.out.bias"]
    y = given + np.tanh(w["alpha"]) * looked
    y = y + np.tanh(w["beta"]) * (np.maximum(norm(y, "norm2") @ w["mlp.0.weight"].T, 0) ** 2 @ w["mlp.2.weight"].T)
    np.testing.assert_allclose(layer(x, image)[0].detach().numpy(), y, atol=1e-10)
    assert torch.autograd.gradcheck(lambda v: layer(v, image), (x,))


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    recipe = load_recipe(
        "flamingo", ["parts.lm.kind=random", "parts.vision={kind: vit, depth: 1}", "parts.fusion.every=1", "parts.fusion.hidden=64"]
    )
    return build_model(recipe, None, 32, CAPTIONS)


def batch_for(model: Any) -> Batch:
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(CAPTIONS))
    return batch_of(pixels=torch.rand(3, 3, 32, 32) * 2 - 1, text=ids, text_mask=mask, captions=tuple(CAPTIONS))


def test_with_closed_gates_it_is_the_language_model(model: Any) -> None:
    batch = batch_for(model)
    real = batch["text"].mask[:, 1:]
    p = model.encode(batch)
    torch.testing.assert_close(
        p["text.logits"][real], model.part("lm").text_logits(batch["text"].ids, batch["text"].mask)[real], atol=1e-5, rtol=1e-5
    )
    p["text.logits"][real].square().mean().backward()
    gates = [layer.alpha for layer in model.part("fusion").layers]
    assert all(bool(g.grad.any()) for g in gates), "a closed gate can open"
    assert all(q.grad is None for q in model.part("lm").parameters())


def test_open_gates_see_the_image_and_the_cache_remembers_it(model: Any) -> None:
    for layer in model.part("fusion").layers:
        layer.alpha.data.fill_(1.0)
        layer.beta.data.fill_(1.0)
    model.eval()
    batch = batch_for(model)
    whole = model.encode(batch)["text.logits"]
    real = batch["text"].mask[:, 1:]
    blind = model.part("lm").text_logits(batch["text"].ids, batch["text"].mask)
    assert (whole - blind)[real].abs().max() > 1e-3
    with torch.no_grad():
        again = model.encode(batch)["text.logits"]  # the image is read once, then continued
        torch.testing.assert_close(again[real], whole[real].detach(), atol=1e-5, rtol=1e-5)
        swapped = torch.tensor([2, 0, 1])
        pairs = model.encode(batch).pairs(image=swapped, text=torch.arange(3))
        other = batch_of(pixels=batch["image"].pixels[swapped], text=batch["text"].ids, text_mask=batch["text"].mask)
        torch.testing.assert_close(pairs["text.logits"][real], model.encode(other)["text.logits"][real], atol=1e-5, rtol=1e-5)
    assert model.part("lm").lm.seen is None


def opened(model: Any) -> Any:
    for layer in model.part("fusion").layers:
        layer.alpha.data.fill_(1.0)
        layer.beta.data.fill_(1.0)
    return model.eval()


@torch.no_grad()
def test_a_copy_looks_by_its_own_layers(model: Any) -> None:
    opened(model)
    batch = batch_for(model)
    other = copy.deepcopy(model)
    mine = model.encode(batch)["text.logits"]
    assert torch.equal(other.encode(batch)["text.logits"], mine)
    other.part("fusion").layers[0].alpha.fill_(-1.0)
    assert torch.equal(model.encode(batch)["text.logits"], mine)
    assert not torch.allclose(other.encode(batch)["text.logits"], mine, atol=1e-3)


@pytest.mark.parametrize("of", ["all", ["fusion"]])
@torch.no_grad()
def test_an_averaged_teacher_looks_by_its_own_layers(model: Any, of: Any) -> None:
    opened(model)
    teacher = averaged_teacher(model, of, 0.5, "teachers.ema")
    model.add_teacher("ema", teacher)
    batch = batch_for(model)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        p = model.encode(batch)
        return p["text.logits"], p["ema:text.logits"]

    before, taught = both()
    assert torch.equal(taught, before)
    for layer in model.part("fusion").layers:
        layer.alpha.fill_(-1.0)
    mine, taught = both()
    assert torch.equal(taught, before) and not torch.allclose(mine, before, atol=1e-3)
    model.update_teachers(0.0)
    mine, taught = both()
    assert torch.equal(taught, mine)
    own, lm = dict(teacher.parts["lm"].named_parameters()), dict(model.part("lm").named_parameters())
    assert own and all(own[n] is lm[n] for n in lm), "what never changes is there once"
    saved = model.saved_state()
    assert any(k.startswith("teachers.ema.parts.fusion.") for k in saved) and not any(".lm." in k for k in saved)


@torch.no_grad()
def test_a_teachers_remembered_texts_follow_its_weights() -> None:
    torch.manual_seed(0)
    small = ["parts.lm={kind: random, frozen: false}", "parts.vision={kind: vit, depth: 1}"]
    model = build_model(load_recipe("llava-joint", small), None, 32, CAPTIONS).eval()
    model.add_teacher("ema", averaged_teacher(model, "all", 0.5, "teachers.ema"))
    batch = batch_for(model)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        p = model.encode(batch)
        return p["text.state"], p["ema:text.state"]

    before, taught = both()
    torch.testing.assert_close(taught, before)
    for p in model.part("lm").parameters():
        p.mul_(1.1)
    mine, taught = both()
    torch.testing.assert_close(taught, before)
    assert not torch.allclose(mine, before, atol=1e-3)
    model.update_teachers(0.0)
    _, taught = both()
    torch.testing.assert_close(taught, mine)


def test_it_trains_and_writes(tmp_path: Any) -> None:
    import diptych as dp

    small = {
        "parts.lm.kind": "random", "parts.vision": {"kind": "vit", "depth": 1}, "parts.fusion": {"kind": "gated", "every": 1, "hidden": 32},
        "stages.0.batch_size": 8, "stages.0.micro_batch": 4,
    }  # fmt: skip
    run = dp.train("flamingo", data="scenes:small", budget="64 samples", out=tmp_path / "run", set=small)
    model = dp.load(run.path)
    assert model.model.part("fusion").layers[0].alpha.item() != 0
    assert len(model.generate([np.zeros((48, 48, 3), np.uint8)] * 2, max_tokens=4, beams=2)) == 2
    assert model.embed_text(CAPTIONS).shape == (3, 32)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DiptychError, match=r"every: the language model has 2 layers only"):
        build_model(
            load_recipe("flamingo", ["parts.lm.kind=random", "parts.vision.kind=vit", "parts.vision.frozen=false"]),
            None,
            32,
            CAPTIONS,
        )
