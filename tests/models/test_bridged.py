"""muffin: learned words of a fused model lead into a language model. lg-qformer: queries that learn a language model's states."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychError
from frozen_fixture import CAPTIONS, built, captioned, learned, parts_of, requested
from plain_fixture import f64, gelu, linear, normed

MUFFIN = ["parts.vision={kind: vit, width: 16, depth: 1, heads: 2}", "parts.text={kind: med, width: 16, depth: 2, heads: 2}",
          "parts.connector.tokens=3", "adapters.lm.rank=2", "embed_dim=8"]  # fmt: skip
FORMER = ["parts.text={kind: q_former, queries: 3, width: 16, heads: 2, depth: 2}"]


def attention(layer: Any, x: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Each row looks at all of the context, head by head."""
    d = x.shape[1] // layer.heads
    q, kv = linear(layer.q, x), linear(layer.kv, context)
    out = np.zeros_like(q)
    for h in range(layer.heads):
        at = slice(h * d, (h + 1) * d)
        logits = q[:, at] @ kv[:, : x.shape[1]][:, at].T / math.sqrt(d)
        e = np.exp(logits - logits.max(1, keepdims=True))
        out[:, at] = e / e.sum(1, keepdims=True) @ kv[:, x.shape[1] :][:, at]
    result: np.ndarray = linear(layer.out, out)
    return result


def test_learned_words_look_at_the_image_in_every_block() -> None:
    _, model, _ = built("muffin", *MUFFIN)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "parts.lm" not in name:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    model.eval()
    p, text, own = model.encode(captioned(model)), model.part("text"), model.part("connector")
    tokens, found = f64(p["image.tokens"].tokens), f64(p["image.prefix"])
    for i in range(len(CAPTIONS)):
        x = normed(text.norm, f64(own.queries))
        for block in text.transformer.blocks:
            x = normed(block.norm1, x + attention(block.attention, x, x))
            x = normed(block.norm_cross, x + attention(block.cross, x, tokens[i]))
            x = normed(block.norm2, x + linear(block.mlp[2], gelu(linear(block.mlp[0], x))))
        np.testing.assert_allclose(found[i], linear(own.layer, x), atol=1e-5)


def test_muffin_trains_in_three_stages() -> None:
    recipe, model, objectives = built("muffin", *MUFFIN)
    both = captioned(model).with_(**requested(model, ["what is there?"] * len(CAPTIONS), CAPTIONS).fields)
    common = {"parts.vision", "parts.text"}
    for stage, more in enumerate([{"parts.space"}, {"parts.connector"}, {"parts.connector", "parts.lm"}]):
        losses, changed = learned(recipe, model, objectives, both, stage, steps=8)
        assert losses[-1] < losses[0] and parts_of(changed) == common | more, stage
        assert all("lora_" in name for name in changed if name.startswith("parts.lm"))


def test_the_bridge_needs_a_fused_model() -> None:
    with pytest.raises(DiptychError, match=r"parts\.connector: a mode of the text transformer; set parts\.text\.kind: med"):
        built("lg-qformer", *FORMER, "parts.connector={kind: bridge}")


def check_gradients(loss: Any, weights: list[Any]) -> None:
    for p, grad in zip(weights, torch.autograd.grad(loss(), weights), strict=True):
        place = int(grad.abs().argmax())
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                p.view(-1)[place] += step
                values.append(float(loss()))
                p.view(-1)[place] -= step
        assert float(grad.view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-7)


def test_gradients_of_the_bridge_are_true() -> None:
    _, model, _ = built("muffin", *MUFFIN)
    model.double().eval().requires_grad_(True)
    own, text, tokens = model.part("connector"), model.part("text"), model.encode(captioned(model))["image.tokens"]
    tokens = type(tokens)(tokens.tokens.detach(), tokens.pooled.detach())
    check_gradients(lambda: own(tokens).sin().sum(), [own.queries, own.layer.weight, text.transformer.blocks[0].cross.kv.weight])


def test_queries_learn_the_state_of_the_caption() -> None:
    _, model, objectives = built("lg-qformer", *FORMER)
    p = model.eval().encode(captioned(model))
    queries, states, space = f64(p["image.queries"].tokens), f64(p["text.state"]), model.part("space")
    projected = linear(space.image, queries.mean(1))
    target = (states - states.mean(1, keepdims=True)) / np.sqrt(states.var(1, keepdims=True) + 1e-5)
    assert float(objectives["state_regression"](p).detach()) == pytest.approx(((projected - target) ** 2).mean(), rel=1e-5)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (projected, states)]
    for name, want in zip(("image.embedding", "text.embedding"), unit, strict=True):
        np.testing.assert_allclose(f64(p[name]), want, atol=1e-5)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    given = {"image.projection": x, "text.state": torch.randn(3, 5, dtype=torch.float64)}
    objectives["state_regression"].forward(given).backward()
    goal = f64(torch.nn.functional.layer_norm(given["text.state"].float(), (5,)))
    np.testing.assert_allclose(f64(x.grad), 2 * (f64(x) - goal) / 15, atol=1e-6)


def test_the_grounded_q_former_trains_before_it_speaks() -> None:
    recipe, model, objectives = built("lg-qformer", *FORMER)
    losses, changed = learned(recipe, model, objectives, captioned(model), 0, steps=25)
    assert losses[-1] < losses[0] - 0.3 and parts_of(changed) == {"parts.text", "parts.space"}
    losses, changed = learned(recipe, model, objectives, captioned(model), 1, steps=12)
    assert losses[-1] < losses[0] and parts_of(changed) == {"parts.text", "parts.connector"}
