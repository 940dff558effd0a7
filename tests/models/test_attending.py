"""Connectors of learned queries: placed ones (Qwen-VL) against torch's class, a perceiver (Idefics2) against transformers' class,
both against NumPy and by differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychError
from diptych.models.connectors.attending import scaled_places
from diptych.models.vision.towers import sincos_2d
from frozen_fixture import CAPTIONS, LM, TOWER, built, captioned, connector, learned, parts_of, requested, seen
from plain_fixture import f64, linear, normed

PERCEIVER: dict[str, Any] = {"tokens": 3, "depth": 2, "heads": 4, "key_heads": 2, "head_width": 6, "hidden": 28}
PLACED: dict[str, Any] = {"tokens": 9, "heads": 2}


def shaken(own: Any) -> Any:
    """No weight is a one or a zero."""
    with torch.no_grad():
        for p in own.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(3)))
    return own


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    result: np.ndarray = e / e.sum()
    return result


def wave(place: tuple[int, int], width: int) -> np.ndarray:
    """Sines and cosines of y, then of x."""
    out = []
    for axis in place:
        angles = [axis * 10_000 ** (-k / (width // 4)) for k in range(width // 4)]
        out += [*map(math.sin, angles), *map(math.cos, angles)]
    return np.array(out)


def test_a_query_attends_by_its_place() -> None:
    own, x = shaken(connector("placed_queries", tokens=16, heads=2)), seen()
    a, d = own.attention, LM // 2
    weight, bias = f64(a.kv.weight), f64(a.kv.bias)
    found = f64(own(x))
    places = [wave((n // 4, n % 4), LM) for n in range(16)]
    for b in range(2):
        patches = normed(own.norm, f64(x)[b, 1:] @ f64(own.enter.weight).T)
        for n in (0, 7, 15):
            query = linear(a.q, normed(own.norm_queries, f64(own.queries)[n]) + places[n])
            out = np.zeros(LM)
            for h in range(2):
                at = slice(h * d, (h + 1) * d)
                keys = [(weight[:LM] @ (v + w) + bias[:LM])[at] for v, w in zip(patches, places, strict=True)]
                values = [(weight[LM:] @ v + bias[LM:])[at] for v in patches]
                shares = softmax(np.array([k @ query[at] for k in keys]) / math.sqrt(d))
                out[at] = sum(s * v for s, v in zip(shares, values, strict=True))
            want = f64(own.layer.weight) @ normed(own.norm_out, linear(a.out, out))
            np.testing.assert_allclose(found[b, n], want, atol=1e-5)  # waves are float32


def test_placed_queries_are_torchs_attention() -> None:
    own, x = shaken(connector("placed_queries", **PLACED)), seen()
    theirs = torch.nn.MultiheadAttention(LM, 2, batch_first=True).double()
    a = own.attention
    theirs.in_proj_weight.data = torch.cat([a.q.weight, a.kv.weight])
    theirs.in_proj_bias.data = torch.cat([a.q.bias, a.kv.bias])
    theirs.out_proj.load_state_dict(a.out.state_dict())
    patches = own.norm(own.enter(x[:, 1:]))
    queries = (own.norm_queries(own.queries) + own.places).expand(2, -1, -1)
    want = own.layer(own.norm_out(theirs(queries, patches + own.patch_places, patches)[0]))
    torch.testing.assert_close(own(x), want, atol=1e-10, rtol=1e-10)


def test_places_of_the_patches_are_the_queries_grid_scaled() -> None:
    same = sincos_2d(4, 4, LM)
    assert torch.equal(scaled_places(same, 4), same)
    found = f64(scaled_places(same, 6)).reshape(6, 6, LM)

    def kernel(t: float) -> float:
        """Keys' cubic convolution with a = −3/4."""
        t = abs(t)
        return 1.25 * t**3 - 2.25 * t**2 + 1 if t <= 1 else -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    grid, at = f64(same).reshape(4, 4, LM), [(i + 0.5) * 4 / 6 - 0.5 for i in range(6)]
    for i, j in ((0, 0), (2, 5), (3, 1)):
        total = np.zeros(LM)
        for y in range(-3, 8):
            for x in range(-3, 8):  # beyond the edge, the edge again
                total += kernel(at[i] - y) * kernel(at[j] - x) * grid[min(max(y, 0), 3), min(max(x, 0), 3)]
        np.testing.assert_allclose(found[i, j], total, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("placed_queries", {"tokens": 5}, "5 is no square"),
        ("placed_queries", {"tokens": 4, "heads": 3}, "heads: 3 does not divide the language model's width 20"),
        ("perceiver", {"heads": 6, "key_heads": 4}, "key_heads: 4 does not divide the 6 heads"),
    ],
)
def test_what_does_not_fit_is_refused(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DiptychError, match=rf"parts\.connector: .*{words}"):
        connector(kind, **options)


def rms(layer: Any, x: np.ndarray) -> np.ndarray:
    result: np.ndarray = x / np.sqrt((x**2).mean(-1, keepdims=True) + layer.eps) * f64(layer.weight)
    return result


def gated(gate: Any, up: Any, down: Any, x: np.ndarray) -> np.ndarray:
    g = x @ f64(gate.weight).T
    result: np.ndarray = (g / (1 + np.exp(-g)) * (x @ f64(up.weight).T)) @ f64(down.weight).T
    return result


def test_latents_read_patches_and_each_other() -> None:
    own, x = shaken(connector("perceiver", **PERCEIVER)), seen()
    found = f64(own(x))
    for b in range(2):
        context, latents = gated(own.gate, own.up, own.down, f64(x)[b, 1:]), f64(own.latents)
        for layer in own.layers:
            a, mine = layer.attention, rms(layer.norm_latents, latents)
            both = np.concatenate([rms(layer.norm_context, context), mine])
            q, k, v = mine @ f64(a.q.weight).T, both @ f64(a.k.weight).T, both @ f64(a.v.weight).T
            out = np.zeros_like(q)
            for h in range(4):
                at, shared = slice(6 * h, 6 * h + 6), slice(6 * (h // 2), 6 * (h // 2) + 6)
                for i in range(3):
                    out[i, at] = softmax(k[:, shared] @ q[i, at] / math.sqrt(6)) @ v[:, shared]
            latents = latents + out @ f64(a.out.weight).T
            latents = latents + gated(layer.mlp.gate, layer.mlp.up, layer.mlp.down, rms(layer.norm, latents))
        np.testing.assert_allclose(found[b], rms(own.norm, latents), atol=1e-9)


def test_the_perceiver_is_that_of_transformers() -> None:
    from transformers import Idefics2Config
    from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector

    text = {"model_type": "llama", "hidden_size": LM, "intermediate_size": 28, "num_attention_heads": 2, "hidden_act": "silu"}
    perceiver = {
        "resampler_n_latents": 3, "resampler_depth": 2, "resampler_n_heads": 4, "resampler_head_dim": 6, "num_key_value_heads": 2,
        "hidden_size": LM,
    }  # fmt: skip
    config = Idefics2Config(vision_config={"hidden_size": TOWER}, text_config=text, perceiver_config=perceiver)
    config._attn_implementation = config.perceiver_config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = shaken(Idefics2Connector(config).eval())
    own = connector("perceiver", **PERCEIVER).float()
    resampler, mlp = theirs.perceiver_resampler, theirs.modality_projection
    pairs = [(own.gate, mlp.gate_proj), (own.up, mlp.up_proj), (own.down, mlp.down_proj), (own.norm, resampler.norm)]
    for mine, other in zip(own.layers, resampler.layers, strict=True):
        a, b = mine.attention, other.self_attn
        pairs += [(a.q, b.q_proj), (a.k, b.k_proj), (a.v, b.v_proj), (a.out, b.o_proj)]
        pairs += [(mine.norm_latents, other.input_latents_norm), (mine.norm_context, other.input_context_norm)]
        pairs += [(mine.norm, other.post_attention_layernorm)]
        pairs += [(getattr(mine.mlp, n), getattr(other.mlp, f"{n}_proj")) for n in ("gate", "up", "down")]
    for mine, other in pairs:
        mine.weight.data.copy_(other.weight)
    own.latents.data.copy_(resampler.latents)
    x = seen().float()
    with torch.no_grad():
        want = theirs(x[:, 1:], torch.ones(2, 16, dtype=torch.long))
    torch.testing.assert_close(own(x), want, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in own.parameters())


@pytest.mark.parametrize(("kind", "options"), [("placed_queries", PLACED), ("perceiver", PERCEIVER)])
def test_gradients_are_true(kind: str, options: dict[str, Any]) -> None:
    own = shaken(connector(kind, **options))
    x = seen().requires_grad_()

    def loss() -> torch.Tensor:
        return own(x).sin().sum()

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
        assert float(p.grad.view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-7)


def test_qwen_vl_trains_other_parts_in_each_stage() -> None:
    free = ["parts.vision.frozen=false", "parts.lm.frozen=false", "parts.connector={kind: placed_queries, tokens: 4}"]
    recipe, model, objectives = built("qwen-vl", *free)
    captions = captioned(model)
    asked = requested(model, ["what is there?"] * len(CAPTIONS), CAPTIONS)
    both = captions.with_(**asked.fields)
    wanted = [{"parts.vision", "parts.connector"}, {"parts.vision", "parts.connector", "parts.lm"}, {"parts.connector", "parts.lm"}]
    for stage, (batch, parts) in enumerate(zip([captions, both, asked], wanted, strict=True)):
        losses, changed = learned(recipe, model, objectives, batch, stage, steps=8)
        assert losses[-1] < losses[0] and parts_of(changed) == parts, stage


def test_idefics2_trains_connector_and_adapters() -> None:
    small = "parts.connector={kind: perceiver, tokens: 4, depth: 1, heads: 2, key_heads: 1, head_width: 8, hidden: 16}"
    recipe, model, objectives = built("idefics2", small)
    losses, changed = learned(recipe, model, objectives, captioned(model), steps=12)
    assert losses[-1] < losses[0] - 0.05
    assert all(n.startswith("parts.connector") or "lora" in n for n in changed) and any("lora" in n for n in changed)
