"""Flamingo with gates that are partly open at the start: what they add, and what learns in the first step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from batch_fixture import batch_of
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch
from diptych.core.errors import DiptychError
from diptych.models.vlm import build_model

CAPTIONS = ["a red fox left of a blue heart", "two green keys", "there is a big yellow house"]
SMALL = ["parts.lm.kind=random", "parts.vision={kind: vit, depth: 1}"]


def built(fusion: str) -> Any:
    torch.manual_seed(0)
    return build_model(load_recipe("flamingo", [*SMALL, f"parts.fusion={fusion}"]), None, 32, CAPTIONS)


def batch_for(model: Any) -> Batch:
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(CAPTIONS))
    return batch_of(pixels=torch.rand(3, 3, 32, 32) * 2 - 1, text=ids, text_mask=mask, captions=tuple(CAPTIONS))


def largest_gradient(model: Any, part: str) -> float:
    batch = batch_for(model)
    model.encode(batch)["text.logits"][batch["text"].mask[:, 1:]].square().mean().backward()
    return max((float(p.grad.abs().max()) for p in model.part(part).parameters() if p.grad is not None), default=0.0)


def test_the_resampler_learns_from_the_first_step_only_through_open_gates() -> None:
    closed, opened = (built(f"{{kind: {kind}, every: 1, hidden: 64}}") for kind in ("gated", "opened"))
    assert largest_gradient(closed, "connector") == 0 < largest_gradient(opened, "connector")
    gates = [gate for layer in opened.part("fusion").layers for gate in (layer.alpha, layer.beta)]
    assert [float(gate.detach().tanh()) for gate in gates] == pytest.approx([0.5] * len(gates))


def test_a_layer_adds_its_attention_times_the_start() -> None:
    layer = built("{kind: opened, every: 1, hidden: 64, start: 0.3}").part("fusion").layers[0].double()
    width = layer.norm1.weight.shape[0]
    x, image = torch.randn(2, 3, width, dtype=torch.float64), torch.randn(2, 4, width, dtype=torch.float64)
    after = x + 0.3 * layer.attention(layer.norm1(x), image)
    torch.testing.assert_close(layer(x, image), after + 0.3 * layer.mlp(layer.norm2(after)))
    small, gates = x[:1].clone().requires_grad_(), (layer.alpha, layer.beta)
    assert torch.autograd.gradcheck(lambda v: layer(v, image[:1]), (small,))
    assert [float(gate.detach()) for gate in gates] == pytest.approx([math.atanh(0.3)] * 2, abs=1e-6)


def test_gates_that_are_fully_open_are_refused() -> None:
    with pytest.raises(DiptychError, match="start"):
        built("{kind: opened, start: 1.0}")
