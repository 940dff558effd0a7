"""limber, mapl, magma: what learns between frozen models, against NumPy and the class of torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from frozen_fixture import CAPTIONS, LM, TOWER, built, captioned, connector, learned, parts_of, seen
from plain_fixture import f64, linear, normed

SMALL_MAP = {"tokens": 5, "width": 16, "depth": 2, "heads": 4}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    result: np.ndarray = e / e.sum(-1, keepdims=True)
    return result


def attention(layer: Any, x: np.ndarray) -> np.ndarray:
    """Every token sees every token, head by head."""
    width = x.shape[1]
    d = width // layer.heads
    q, kv = linear(layer.q, x), linear(layer.kv, x)
    out = np.zeros_like(q)
    for h in range(layer.heads):
        at = slice(h * d, (h + 1) * d)
        out[:, at] = softmax(q[:, at] @ kv[:, :width][:, at].T / math.sqrt(d)) @ kv[:, width:][:, at]
    result: np.ndarray = linear(layer.out, out)
    return result


# --- limber ---


def test_one_matrix_and_one_bias_are_all_that_learns() -> None:
    recipe, model, objectives = built("limber")
    losses, changed = learned(recipe, model, objectives, captioned(model))
    assert changed == {"parts.connector.layers.0.weight", "parts.connector.layers.0.bias"}
    assert losses[-1] < losses[0]
    own = model.part("connector").double()
    x = torch.randn(2, own.tokens, own.image_width, dtype=torch.float64)
    want = np.stack([[f64(own.layers[0].weight) @ v + f64(own.layers[0].bias) for v in row] for row in f64(x)])
    np.testing.assert_allclose(f64(own(x)), want, atol=1e-12)


# --- mapl ---


def test_constants_read_the_image() -> None:
    own, x = connector("mapping", **SMALL_MAP), seen()
    want = []
    for row in f64(x):
        s = np.concatenate([linear(own.down, row[1:]), f64(own.constants)])
        for block in own.transformer.blocks:
            s = s + attention(block.attention, normed(block.norm1, s))
            s = s + linear(block.mlp[2], np.maximum(linear(block.mlp[0], normed(block.norm2, s)), 0))
        want.append(linear(own.up, s[-5:]))
    np.testing.assert_allclose(f64(own(x)), np.stack(want), atol=1e-10)
    assert own(x).shape == (2, 5, LM) and own.tokens == 5


def test_the_mapping_is_torchs_encoder() -> None:
    own, x = connector("mapping", **SMALL_MAP), seen()
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=True)
    theirs = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    for mine, other in zip(own.transformer.blocks, theirs.layers, strict=True):
        state = {"linear1": mine.mlp[0], "linear2": mine.mlp[2], "norm1": mine.norm1, "norm2": mine.norm2}
        for name, module in state.items():
            getattr(other, name).load_state_dict(module.state_dict())
        a = mine.attention
        other.self_attn.in_proj_weight.data = torch.cat([a.q.weight, a.kv.weight])
        other.self_attn.in_proj_bias.data = torch.cat([a.q.bias, a.kv.bias])
        other.self_attn.out_proj.load_state_dict(a.out.state_dict())
    whole = torch.cat([own.down(x[:, 1:]), own.constants.expand(2, -1, -1)], 1)
    torch.testing.assert_close(own(x), own.up(theirs(whole)[:, -5:]), atol=1e-10, rtol=1e-10)


def test_the_papers_mapping_has_its_number_of_weights() -> None:
    """3.4 M between CLIP's ViT-L/14 (1024) and GPT-J (4096), as the paper says of it."""
    own = connector("mapping")
    of_transformer = sum(p.numel() for p in own.transformer.parameters())
    down, up = 1024 * 256 + 256, 256 * 4096 + 4096
    assert 3.3e6 < of_transformer + own.constants.numel() + down + up < 3.5e6


def test_mapl_trains_and_nothing_else_of_it_does() -> None:
    recipe, model, objectives = built("mapl", "parts.connector={kind: mapping, tokens: 4, width: 16, depth: 1, heads: 2}")
    losses, changed = learned(recipe, model, objectives, captioned(model))
    assert losses[-1] < losses[0] - 0.05 and parts_of(changed) == {"parts.connector"}  # the language model is a random one


def test_heads_that_do_not_fit() -> None:
    with pytest.raises(DiptychError, match=r"parts\.connector: heads: 3 does not divide the width 16"):
        connector("mapping", tokens=5, width=16, heads=3)


# --- magma ---


def test_the_prefix_of_magma() -> None:
    own, x = connector("linear_norm"), seen()
    own.eval()
    np.testing.assert_allclose(f64(own(x)), np.stack([normed(own.norm, linear(own.layer, row[1:])) for row in f64(x)]), atol=1e-10)
    own.train()
    torch.manual_seed(0)
    dropped = own.norm(torch.nn.functional.dropout(own.layer(x[:, 1:]), 0.1))
    torch.manual_seed(0)
    torch.testing.assert_close(own(x), dropped)


@pytest.mark.parametrize(
    ("kind", "options"), [("mapping", SMALL_MAP), ("linear_norm", {"dropout": 0.0}), ("linear", {"norm": False})]
)
def test_gradients_of_connectors_are_true(kind: str, options: dict[str, Any]) -> None:
    own = connector(kind, **options)
    with torch.no_grad():
        for p in own.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(3)))
    x = seen().requires_grad_()
    loss = lambda: own(x).sin().sum()  # noqa: E731
    loss().backward()
    for p in [x, *own.parameters()]:
        assert p.grad is not None
        place = int(p.grad.abs().argmax())
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                p.view(-1)[place] += step
                values.append(float(loss()))
                p.view(-1)[place] -= step
        assert float(p.grad.view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-8)


def test_adapters_of_magma_begin_almost_as_nothing_and_only_behind_mlps() -> None:
    _, model, _ = built("magma", "parts.lm={kind: random, frozen: true, width: 32, depth: 2}")
    layers: Any = model.adapters["lm"].layers
    blocks = model.part("lm").lm.model.model.layers
    assert len(layers) == 2 and layers[0].down.weight.shape == (8, 32)
    values = torch.cat([p.detach().flatten() for p in layers.parameters()])
    assert float(values.abs().max()) <= 2e-3 and 0.7e-3 < float(values.std()) < 1e-3  # of a normal cut off at two deviations
    inside, outside = {}, {}
    for k, block in enumerate(blocks):
        own = block.mlp.forward

        def keep(h: torch.Tensor, k: int = k, own: Any = own) -> torch.Tensor:
            inside[k] = own(h)
            return inside[k]

        block.mlp.forward = keep
        block.mlp.register_forward_hook(lambda m, a, out, k=k: outside.update({k: out}))
    model.eval()
    model.encode(captioned(model))["text.logits"]
    for k in range(2):
        h, layer = f64(inside[k]), layers[k]
        for b in range(len(CAPTIONS)):
            want = h[b] + linear(layer.up, np.maximum(linear(layer.down, h[b]), 0))
            np.testing.assert_allclose(f64(outside[k])[b], want, atol=1e-6)


def test_magma_trains_adapters_prefix_and_tower_but_not_the_language_model() -> None:
    recipe, model, objectives = built("magma", "parts.vision.frozen=false", "parts.connector.dropout=0")
    losses, changed = learned(recipe, model, objectives, captioned(model))
    assert losses[-1] < losses[0] - 0.1
    assert parts_of(changed) == {"parts.vision", "parts.connector", "adapters.lm"}
    assert recipe.stages[0].rates == {"vision": 0.0025}  # 2e-6 of 8e-4, the paper's


@pytest.mark.parametrize("name", ["limber", "mapl", "magma"])
def test_in_miniature_the_same_parts_learn(name: str) -> None:
    plain, mini = load_recipe(name), load_recipe(f"{name}@mini")
    assert mini.stages == plain.stages and mini.adapters == plain.adapters and set(mini.backbones) == {"vision", "lm"}
    assert {n for n, p in mini.parts.items() if p.frozen} == {n for n, p in plain.parts.items() if p.frozen}
    assert TOWER > LM  # a square map could be transposed unseen
