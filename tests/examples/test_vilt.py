"""examples/vilt: the stream against transformers, transport against plain float64 references, a run that is scored by its matching
head."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import diptych as dp
from diptych.core.batch import Batch, Images, Texts
from diptych.data.fields import Context
from diptych.data.sources import open_source
from diptych.data.text import BOS, EOS, MASK, PAD
from examples_fixture import alone_and_in_two, little, same_in_pieces, use

RECIPE = use("vilt")
import vilt  # noqa: E402

TINY = ["parts.fusion.depth=1", "data.tokenizer.vocab_size=400"]


# --- the stream ---


def copied(theirs, ours):
    """The weights of a ``ViltModel`` in the three parts."""
    vision, text, fusion = (ours.part(name) for name in ("vision", "text", "fusion"))
    e = theirs.embeddings
    pairs = [
        (vision.stem.weight, e.patch_embeddings.projection.weight),
        (vision.stem.bias, e.patch_embeddings.projection.bias),
        (vision.class_token, e.cls_token[0, 0]),
        (vision.positions, e.position_embeddings[0]),
        (vision.modality, e.token_type_embeddings.weight[1]),
        (text.embedding.weight, e.text_embeddings.word_embeddings.weight),
        (text.positions, e.text_embeddings.position_embeddings.weight + e.text_embeddings.token_type_embeddings.weight[0]),
        (text.norm.weight, e.text_embeddings.LayerNorm.weight),
        (text.norm.bias, e.text_embeddings.LayerNorm.bias),
        (text.modality, e.token_type_embeddings.weight[0]),
        (fusion.transformer.norm.weight, theirs.layernorm.weight),
        (fusion.transformer.norm.bias, theirs.layernorm.bias),
        (fusion.pooler.weight, theirs.pooler.dense.weight),
        (fusion.pooler.bias, theirs.pooler.dense.bias),
    ]
    for block, layer in zip(fusion.transformer.blocks, theirs.encoder.layer, strict=True):
        seen = layer.attention.attention
        for kind in ("weight", "bias"):
            pairs += [
                (getattr(block.norm1, kind), getattr(layer.layernorm_before, kind)),
                (getattr(block.attention.q, kind), getattr(seen.query, kind)),
                (getattr(block.attention.kv, kind), torch.cat([getattr(seen.key, kind), getattr(seen.value, kind)])),
                (getattr(block.attention.out, kind), getattr(layer.attention.output.dense, kind)),
                (getattr(block.norm2, kind), getattr(layer.layernorm_after, kind)),
                (getattr(block.mlp[0], kind), getattr(layer.intermediate.dense, kind)),
                (getattr(block.mlp[2], kind), getattr(layer.output.dense, kind)),
            ]
    with torch.no_grad():
        for mine, other in pairs:
            mine.copy_(other)
    assert {id(mine) for mine, _ in pairs} == {id(p) for part in (vision, text, fusion) for p in part.parameters()}


def test_the_stream_equals_vilt_of_transformers(monkeypatch):
    from transformers import ViltConfig, ViltModel

    options = ["parts.fusion.depth=2", "parts.fusion.activation=gelu", "data.image_size=32", "data.tokenizer.vocab_size=400"]
    ours = little(RECIPE, *options).model.eval()
    config = ViltConfig(
        vocab_size=len(ours.tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=32,
        image_size=32,
        patch_size=8,
        max_image_length=-1,
        layer_norm_eps=1e-12,
        initializer_range=0.1,
    )
    torch.manual_seed(1)
    theirs = ViltModel(config).eval()
    copied(theirs, ours)
    monkeypatch.setattr(torch, "multinomial", lambda weights, n, **_: torch.arange(int(n)))  # it shuffles the patches
    pixels = torch.rand(3, 3, 32, 32) * 2 - 1
    ids = torch.randint(4, 300, (3, 9))
    ids[:, 0], ids[1, 6], ids[1, 7:] = BOS, EOS, PAD
    with torch.no_grad():
        told = theirs(input_ids=ids, attention_mask=(ids != PAD).long(), pixel_values=pixels)
        p = ours.encode(Batch({"image": Images(pixels), "text": Texts(ids, ids != PAD)}, 3))
        text, image = p["text.fused"], p["image.fused"]
    real = (ids != PAD)[..., None]
    torch.testing.assert_close(text.tokens * real, told.last_hidden_state[:, :9] * real, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(image.tokens, told.last_hidden_state[:, 9:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text.pooled, told.pooler_output, atol=1e-5, rtol=1e-5)


def test_kept_patches_are_those_of_the_whole_image():
    tower = little(RECIPE, *TINY).model.part("vision")
    pixels, keep = torch.rand(2, 3, 32, 32), torch.tensor([[3, 0], [5, 6]])
    whole, some = tower(pixels).tokens, tower(pixels, keep).tokens
    torch.testing.assert_close(some[:, 0], whole[:, 0])
    torch.testing.assert_close(some[0, 1:], whole[0, 1 + keep[0]])
    torch.testing.assert_close(some[1, 1:], whole[1, 1 + keep[1]])


# --- word-patch alignment ---


def ipot(cost, beta=0.5, steps=50):
    """IPOT (Xie et al. 2020, algorithm 1) of one pair, number by number, in float64. cost [T, N], all words real."""
    T, N = cost.shape
    plan, sigma = np.ones((T, N)), np.full(T, 1 / T)
    for _ in range(steps):
        q = np.array([[np.exp(-cost[t, n] / beta) * plan[t, n] for n in range(N)] for t in range(T)])
        delta = [1 / (N * sum(q[t, n] * sigma[t] for t in range(T))) for n in range(N)]
        sigma = [1 / (T * sum(q[t, n] * delta[n] for n in range(N))) for t in range(T)]
        plan = np.array([[sigma[t] * q[t, n] * delta[n] for n in range(N)] for t in range(T)])
    return plan


def cosine_cost(text, image):
    text, image = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (text, image))
    return 1 - text @ image.T


def tokens(seed=0, lengths=(5, 3, 1), patches=7, width=6):
    torch.manual_seed(seed)
    text, image = torch.randn(len(lengths), 5, width).double(), torch.randn(len(lengths), patches, width).double()
    return text, torch.arange(5) < torch.tensor(lengths)[:, None], image


def test_transport_equals_its_reference():
    text, words, image = tokens()
    got = vilt.transport_distance(text, words, image)
    single = vilt.transport_distance(text.float(), words, image.float())
    for b in range(len(text)):
        cost = cosine_cost(text[b][words[b]].numpy(), image[b].numpy())
        plan = ipot(cost)
        np.testing.assert_allclose(got[b], (plan * cost).sum(), rtol=1e-10)
        np.testing.assert_allclose(single[b], (plan * cost).sum(), rtol=1e-4)


def test_transport_nears_the_optimum():
    from scipy.optimize import linprog

    text, words, image = tokens()
    got = vilt.transport_distance(text, words, image, steps=2000)
    for b in range(len(text)):
        cost = cosine_cost(text[b][words[b]].numpy(), image[b].numpy())
        T, N = cost.shape
        rows = [np.kron(np.eye(T), np.ones(N)), np.kron(np.ones(T), np.eye(N))]
        best = linprog(cost.ravel(), A_eq=np.concatenate(rows), b_eq=[1 / T] * T + [1 / N] * N)
        np.testing.assert_allclose(got[b], best.fun, rtol=1e-3)


def test_the_gradient_of_transport():
    """That of the cost under the plan; at the optimum, where the plan does not move, that of the distance itself."""
    text, words, image = tokens()
    text.requires_grad_(), image.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t, i: vilt.transport_distance(t, words, i, beta=0.05, steps=3000), (text, image), atol=1e-4, fast_mode=True
    )


def test_the_objective_equals_its_reference():
    setup = little(RECIPE, *TINY)
    loader = vilt_batch(setup)
    p = setup.model.eval().encode(loader)
    with torch.no_grad():
        loss = setup.objectives["alignment"](p)
        text, image, own = p["text.matched"].tokens, p["shown.matched"].tokens[:, 1:], p["shown"].own
    total = 0.0
    for b in range(p.size):
        words = [t for t, i in enumerate(p["text"].ids[b].tolist()) if i not in (PAD, BOS, EOS)]
        cost = cosine_cost(text[b, words].double().numpy(), image[b].double().numpy())
        total += (1 if own[b] else -1) * (ipot(cost) * cost).sum() / p.size
    assert 0 < own.sum() < p.size and abs(loss.item() - total) < 1e-5


def vilt_batch(setup):
    from diptych.training.start.setup import training_loader

    return training_loader(setup, setup.recipe.stages[0], setup.source).batch(0)


# --- images shown, words hidden ---


def test_half_of_the_images_are_others():
    source = open_source("scenes:small?size=32&length=300").split("train")
    field = vilt.ShownField.build("shown", Context(image_size=32, source=source))
    own = 0
    for i in range(200):
        image, is_own = field.fit(source[i], lambda i=i: random.Random(i))
        assert np.array_equal(image, source[i].image) == is_own
        own += is_own
    assert 70 < own < 130 and field.drawn


def test_words_are_hidden_whole():
    setup = little(RECIPE, "parts.fusion.depth=1", "data.tokenizer.vocab_size=300")  # words of many tokens
    tokenizer, starts = setup.model.tokenizer, setup.objectives["masked_words"].starts
    texts = ["a big red balloon is left of two umbrellas", "one cat", "three wheels"]
    ids = torch.from_numpy(tokenizer.encode_batch(texts)[0])
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        masked, hidden = vilt.hide_words(ids, starts, 0.15)
        assert bool((masked[hidden] == MASK).all()) and bool((masked == ids)[~hidden].all())
        for row, places, text in zip(ids, hidden, texts, strict=True):
            words, told = text.split(), tokenizer.decode(row[places])
            assert told in words, told  # 15 % of up to nine words: one, and all of it
            seen.add(told)
    assert {"balloon", "umbrellas", "cat"} <= seen


# --- training ---


def test_micro_batches_change_nothing(monkeypatch):
    def first_word(ids, starts, share):  # words hidden at random are others in other micro-batches
        hidden = torch.zeros_like(ids, dtype=torch.bool)
        hidden[:, 1] = True
        return ids.masked_fill(hidden, MASK), hidden

    monkeypatch.setattr(vilt, "hide_words", first_word)
    same_in_pieces(little(RECIPE, *TINY), 2)


def test_a_run_goes_on_and_is_judged_by_its_matching_head(tmp_path):
    out, set_ = tmp_path / "run", {"stages.0.batch_size": 8, "parts.fusion.depth": 1}
    dp.train(RECIPE, budget="16 samples", out=out, set=set_)
    run = dp.train(RECIPE, budget="48 samples", out=out, set=set_, resume=True)
    assert run.spent["steps"] == 6
    summary = dp.evaluate(out, "scenes:small?size=32&concepts=24", ["retrieval?n=8"])
    assert {r.metric for r in summary.results} >= {"image-to-text/recall@1"}
    assert dp.load(out).capabilities == {"score"}


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    """Without masked words: each process draws which words of its own texts it hides."""
    both = '{matching: {kind: "vilt:ViltMatching", weight: 1}, alignment: {kind: "vilt:WordPatchAlignment", weight: 0.1}}'
    alone_and_in_two("vilt", tmp_path, f"stages.0.objectives={both}")
