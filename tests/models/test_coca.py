"""CoCa as published (Yu et al. 2022, §3.2): two poolers in a row, and a learned token after the text; open_clip's form is in
test_coca_parity.py."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from batch_fixture import batch_of
from diptych.config.recipe import load_recipe
from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError
from diptych.data.text import Tokenizer
from diptych.models.layers.attention import CascadePool
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from plain_fixture import f64, linear, normed

CAPTIONS = ["a red fox", "two green keys to the left of a big yellow house and above it one more", "", "a blue heart"]
SMALL = [f"parts.{p}.{k}" for p in ("vision", "text", "decoder") for k in ("depth=2", "heads=2")]
SMALL += ["parts.vision.width=32", "parts.text.width=32", "embed_dim=24", "precision=fp32", "data.tokenizer.vocab_size=320"]


def build(*overrides: str, name: str = "coca", double: bool = False) -> Any:
    recipe = load_recipe(name, [*SMALL, *overrides])
    torch.manual_seed(0)
    model = build_model(recipe, Tokenizer.train(CAPTIONS, 320, 32), 48).eval()
    for p in model.parameters():  # norms and biases, too, are no ones and zeros
        p.data += 0.05 * torch.randn_like(p)
    return model.double() if double else model


def read(model: Any, captions: list[str] = CAPTIONS, pad_to: int = 24) -> Pass:
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(captions))
    ids, mask = (torch.nn.functional.pad(x, (0, pad_to - x.shape[1])) for x in (ids, mask))
    dtype = next(model.parameters()).dtype
    pixels = torch.rand(len(captions), 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return model.encode(batch_of(pixels.to(dtype), ids, mask))


# --- plain references in float64 ---


def attended(layer: Any, x: np.ndarray, context: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Row by row and head by head, over the keys that a row may see; seen [L, S] bool."""
    width, d = x.shape[1], x.shape[1] // layer.heads
    q, kv = linear(layer.q, x), linear(layer.kv, context)
    out = np.zeros_like(q)
    for h in range(layer.heads):
        at = slice(h * d, (h + 1) * d)
        for i in range(len(x)):
            logits = kv[seen[i], :width][:, at] @ q[i, at] / math.sqrt(d)
            weights = np.exp(logits - logits.max())
            out[i, at] = weights / weights.sum() @ kv[seen[i], width:][:, at]
    return linear(layer.out, out)


def pooled_by(pool: Any, x: np.ndarray) -> np.ndarray:
    queries, keys = normed(pool.norm_queries, f64(pool.queries)), normed(pool.norm, x)
    return normed(pool.norm_out, attended(pool.attention, queries, keys, np.ones((len(queries), len(x)), dtype=bool)))


def relu_mlp(layers: Any, x: np.ndarray) -> np.ndarray:
    return linear(layers[2], np.maximum(linear(layers[0], x), 0))


@torch.no_grad()
def test_the_cascade_and_the_class_token_equal_the_reference() -> None:
    """The text one caption at a time and without padding; the class token is one more position, whose row of the mask is full."""
    model = build("parts.vision.queries=5", "parts.vision.activation=relu", "parts.text.activation=relu", double=True)
    p = read(model)
    vision, text = model.part("vision"), model.part("text")
    patches = vision.stem(p["image"].floats.double()).flatten(2).transpose(1, 2)
    patches = vision.transformer(vision.norm(patches) + vision.positions)
    for i in range(len(CAPTIONS)):
        tokens = pooled_by(vision.pool.tokens, f64(patches[i]))
        np.testing.assert_allclose(f64(p["image.tokens"].tokens[i]), tokens, atol=1e-10)
        np.testing.assert_allclose(f64(p["image.tokens"].pooled[i]), pooled_by(vision.pool.pooled, tokens)[0], atol=1e-10)
        n = int(p["text"].mask[i].sum())
        words = f64(text.embedding(p["text"].ids[i, :n])) + f64(text.positions[:n])
        x = np.concatenate([words, f64(text.class_token)[None]])
        seen = np.array([[column <= row for column in range(n + 1)] for row in range(n + 1)])
        for block in text.transformer.blocks:
            h = normed(block.norm1, x)
            x = x + attended(block.attention, h, h, seen)
            x = x + relu_mlp(block.mlp, normed(block.norm2, x))
        x = normed(text.transformer.norm, x)
        np.testing.assert_allclose(f64(p["text.tokens"].tokens[i, :n]), x[:n], atol=1e-10)
        np.testing.assert_allclose(f64(p["text.tokens"].pooled[i]), x[n], atol=1e-10)


def test_the_gradient_of_a_cascade_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    pool = CascadePool(8, 2, 3).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pool, (x,))
    pool(x)[1][:, 0].sum().backward()  # of one entry: the sum of a normalised vector is constant
    assert pool.tokens.queries.grad is not None and pool.tokens.queries.grad.abs().max() > 1e-6, "contrast reads the first pooler"


# --- what must hold ---


@torch.no_grad()
def test_the_image_is_read_through_the_first_poolers_output_alone() -> None:
    """As many queries as patches unless another number is given; the decoder and the contrast see only their output."""
    model = build()
    assert len(model.part("vision").pool.tokens.queries) == model.part("vision").tokens == 36
    model = build("parts.vision.queries=5")
    p = read(model)
    assert p["image.tokens"].tokens.shape == (4, 5, 32)
    before = p["text.logits"], p["image.embedding"]
    pool = model.part("vision").pool
    pool.tokens.forward = lambda x, mask=None, bias=None: torch.ones(len(x), 5, 32)  # tokens that say nothing about the image
    blind = read(model)
    assert torch.allclose(blind["image.embedding"], blind["image.embedding"][:1].expand(4, -1), atol=1e-6)
    assert not torch.allclose(before[1], before[1][:1].expand(4, -1), atol=1e-3)
    assert not torch.allclose(blind["text.logits"], before[0], atol=1e-3)


@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing() -> None:
    model = build()
    p = read(model)
    text = p["text"]
    ids = torch.where(text.mask, text.ids, 77)
    assert not torch.equal(ids, text.ids)
    other = p.view(text=replace(text, ids=ids))
    torch.testing.assert_close(other["text.embedding"], p["text.embedding"], atol=1e-6, rtol=0)
    for length in (19, 32):
        padded = read(model, pad_to=length)
        torch.testing.assert_close(padded["text.embedding"], p["text.embedding"], atol=1e-6, rtol=0)


@torch.no_grad()
def test_no_word_depends_on_the_class_token_and_it_depends_on_every_word() -> None:
    model = build()
    p = read(model)
    text = p["text"]
    for place in range(24):
        ids = text.ids.clone()
        ids[:, place] = 77
        other = p.view(text=replace(text, ids=ids))
        moved = (other["text.embedding"] - p["text.embedding"]).abs().amax(1) > 1e-5
        differs = text.mask[:, place] & (text.ids[:, place] != 77)
        assert torch.equal(moved, differs), place
    model.part("text").class_token += 1.0 * torch.randn(32)
    after = read(model)
    assert torch.equal(after["text.tokens"].tokens, p["text.tokens"].tokens)
    assert torch.equal(after["text.logits"], p["text.logits"])
    assert ((after["text.embedding"] - p["text.embedding"]).abs().amax(1) > 1e-2).all()


def test_both_losses_reach_both_halves() -> None:
    """λ of contrast and captioning is 1 : 2 as in the paper; the first pooler and the words learn from both."""
    recipe = load_recipe("coca", SMALL)
    assert {name: spec.weight for name, spec in recipe.stages[0].objectives.items()} == {"info_nce": 1, "next_token": 2}
    model = build()
    objectives = build_objectives(recipe, model)
    reached = {}
    for name, objective in objectives.items():
        model.zero_grad()
        objective(read(model)).backward()
        reached[name] = {n for n, q in model.named_parameters() if q.grad is not None and q.grad.abs().max() > 0}
    both = {"parts.vision.pool.tokens.queries", "parts.text.embedding.weight"}
    alone = {"info_nce": "parts.vision.pool.pooled.queries", "next_token": "parts.decoder.bias"}
    assert all(both <= found for found in reached.values())
    assert all((alone[name] in found) == (name == other) for other, found in reached.items() for name in alone)
    assert "parts.text.class_token" in reached["info_nce"] - reached["next_token"]


@torch.no_grad()
def test_the_plain_variant_is_the_earlier_form() -> None:
    model = build(name="coca@plain")
    p = read(model)
    assert p["image.tokens"].tokens.shape[1] == 36 and model.part("text").class_token is None
    last = p["text"].mask.sum(1) - 1
    assert torch.equal(p["text.tokens"].pooled, p["text.tokens"].tokens[torch.arange(4), last])


def test_what_does_not_fit_is_named() -> None:
    for override, said in (
        ("parts.vision={kind: vit, queries: 4}", "queries: 4 are those of a cascade; set pool: cascade"),
        ("parts.vision.class_tokens=1", "pool: cascade returns no patches"),
        ("parts.text.causal=false", "pool: class is for causal texts"),
        ("parts.text.whole=true", "pool: class is for causal texts"),
    ):
        with pytest.raises(DiptychError, match=said):
            build(override)
