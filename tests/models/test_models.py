"""Parts and passes: each encoding once, padding and order without effect, views that share, frozen parts without gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import diptych.training.flops  # noqa: F401 - teaches torch's counter what it passes over
from batch_fixture import batch_of
from diptych.config.recipe import load_recipe
from diptych.core.batch import Images, Texts
from diptych.core.errors import DiptychError
from diptych.data.fields.base import to_pixels
from diptych.data.text import Tokenizer
from diptych.inference.generate import Decoding, write
from diptych.models.build import SIZES, Build
from diptych.models.layers.attention import Attention, attend, attend_plainly, attention_bias
from diptych.models.text.towers import TEXT
from diptych.models.vision.drawn import random_keep
from diptych.models.vision.towers import VISION, sincos_2d
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.objectives.generative import caption_log_likelihood
from diptych.training.start.teachers import add_teachers

CAPTIONS = ["a red fox left of a blue heart", "two green keys", "there is a big yellow house above a small pink star and no tree"]


def make(name, *overrides):
    torch.manual_seed(0)
    recipe = load_recipe(name, list(overrides))
    model = build_model(recipe, Tokenizer.train(CAPTIONS, 400, 32), 48).eval()
    add_teachers(recipe, model)
    return model, build_objectives(recipe, model).eval()


def batch_for(model, captions=CAPTIONS, pad_to=None):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (48, 48, 3), dtype=np.uint8) for _ in captions]
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(captions))
    if pad_to:
        extra = pad_to - ids.shape[1]
        ids, mask = (
            torch.nn.functional.pad(ids, (0, extra), value=model.tokenizer.pad),
            torch.nn.functional.pad(mask, (0, extra), value=False),
        )
    return batch_of(to_pixels(images), ids, mask, captions=tuple(captions))


def test_attention_equals_a_plain_reference():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 7, 7))
    mask = torch.rand(2, 7) > 0.3
    mask[:, 0] = True
    ours = attend(q, k, v, attention_bias(mask, 5, False, q).double()).numpy()
    for b in range(2):
        for h in range(3):
            logits = q[b, h].numpy() @ k[b, h].numpy().T / 2.0
            logits[:, ~mask[b].numpy()] = -np.inf
            weights = np.exp(logits - logits.max(1, keepdims=True))
            np.testing.assert_allclose(ours[b, h], weights / weights.sum(1, keepdims=True) @ v[b, h].numpy(), atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_chosen_attention_equals_the_plain_one(dtype: torch.dtype, tolerance: float):
    torch.manual_seed(0)
    qkv = torch.randn(3, 2, 3, 6, 4)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 4:] = False
    bias = attention_bias(mask, 6, True, qkv)
    outputs = []
    for form, kind in ((attend_plainly, torch.float64), (attend, dtype)):
        x = qkv.to(kind).requires_grad_()
        y = form(*x, bias)
        y.pow(2).sum().backward()
        outputs.append((y.detach().float(), x.grad.float()))
    for plain, chosen in zip(*outputs, strict=True):
        torch.testing.assert_close(chosen, plain, atol=tolerance, rtol=tolerance)


def test_both_forms_of_attention_count_as_many_operations():
    counts = []
    for form in (attend, attend_plainly):
        q, k, v = (torch.randn(2, 3, n, 4, requires_grad=True) for n in (6, 5, 5))
        with FlopCounterMode(display=False) as counter:
            form(q, k, v, None).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts == [3 * 2 * 2 * (2 * 3 * 6 * 5 * 4)] * 2  # three passes' worth, two products, two operations each


def test_cross_attention_reads_its_context():
    torch.manual_seed(0)
    attention, x, context = Attention(8, 2, 6), torch.randn(1, 3, 8), torch.randn(1, 5, 6)
    assert not torch.equal(attention(x, context), attention(x, context + 1))


def test_positions_tell_patches_apart():
    positions = sincos_2d(6, 6, 128)
    assert positions.shape == (36, 128)
    assert torch.cdist(positions, positions).fill_diagonal_(9).min() > 0.5


@pytest.mark.parametrize("name", ["clip", "coca", "maskvlm"])
def test_padding_changes_nothing(name):
    model, objectives = make(name)
    short, long = model.encode(batch_for(model)), model.encode(batch_for(model, pad_to=32))
    torch.testing.assert_close(short["text.embedding"], long["text.embedding"], atol=1e-5, rtol=1e-5)
    every = torch.arange(3)
    if name == "coca":
        torch.testing.assert_close(caption_log_likelihood(short), caption_log_likelihood(long), atol=1e-4, rtol=1e-5)
    if name == "maskvlm":
        for score in (
            lambda p: objectives["matching"].logits(p),
            lambda p: objectives["masked_words"].pair_scores(p, every, every),
        ):
            torch.testing.assert_close(score(short), score(long), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["coca", "maskvlm"])
def test_scores_of_pairs_do_not_depend_on_their_company(name):
    model, objectives = make(name)
    p = model.encode(batch_for(model))
    images, texts = torch.tensor([0, 0, 2, 1]), torch.tensor([1, 0, 2, 0])
    if name == "coca":
        score = lambda i, t: caption_log_likelihood(p.pairs(image=i, text=t))  # noqa: E731
    else:
        score = lambda i, t: objectives["masked_words"].pair_scores(p, i, t)  # noqa: E731
    together = score(images, texts)
    for k in range(4):
        torch.testing.assert_close(score(images[k : k + 1], texts[k : k + 1]), together[k : k + 1], atol=1e-4, rtol=1e-4)


def test_every_encoding_is_computed_at_most_once():
    model, objectives = make("maskvlm")
    calls = {"vision": 0, "text": 0}
    for name in calls:
        model.parts[name].register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    p = model.encode(batch_for(model))
    for name in ("info_nce", "matching", "masked_words"):
        objectives[name](p)
    assert calls == {"vision": 1, "text": 2}, "images once; texts once whole and once masked"
    calls.update(vision=0, text=0)
    p = model.encode(batch_for(model))
    p.view(text=replace(p["text"], mask=p["text"].mask))["image.tokens"]  # the first to ask is a view
    p["image.embedding"]
    assert calls["vision"] == 1, "a view shares what it has in common, whoever asks first"


def test_a_decoder_sees_no_later_word():
    model, _ = make("coca")
    p = model.encode(batch_for(model))
    logits = p["text.logits"]
    changed = p["text"].ids.clone()
    changed[:, 6:] = 9
    after = p.view(text=replace(p["text"], ids=changed))["text.logits"]
    torch.testing.assert_close(after[:, :6], logits[:, :6], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[0, 6:], logits[0, 6:], atol=1e-3)


def test_hidden_patches_are_not_looked_at():
    model, _ = make("clip")
    images = batch_for(model)["image"]
    keep, hidden = random_keep(3, 36, 0.6, torch.device("cpu"))
    assert keep.shape == (3, 14) and hidden.sum() == 3 * 22 and not hidden.gather(1, keep).any()
    seen = model.parts["vision"](images.pixels, keep).tokens
    grid = hidden.view(3, 1, 6, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)
    altered = torch.where(grid, torch.rand_like(images.pixels), images.pixels)
    torch.testing.assert_close(model.parts["vision"](altered, keep).tokens, seen)


def test_patches_cut_out_before_the_stem_equal_those_chosen_after_it():
    model, _ = make("clip", "parts.vision.stem=patch", "parts.vision.patch=8")
    tower = model.parts["vision"]
    pixels = batch_for(model)["image"].pixels.requires_grad_()
    keep, _ = random_keep(3, 36, 0.5, torch.device("cpu"))
    chosen = tower.stem(pixels).flatten(2).transpose(1, 2).gather(1, keep[..., None].expand(-1, -1, tower.width))
    cut = tower._stem_at(pixels, keep)
    torch.testing.assert_close(cut, chosen, atol=1e-5, rtol=1e-5)
    inputs = (pixels, tower.stem.weight)
    for ours, plain in zip(
        torch.autograd.grad(cut.pow(2).sum(), inputs), torch.autograd.grad(chosen.pow(2).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    everything = torch.arange(36).expand(3, -1)
    torch.testing.assert_close(tower(pixels, everything).tokens, tower(pixels).tokens, atol=1e-5, rtol=1e-5)


def test_greedy_text_is_the_likeliest_word_each_time():
    model, _ = make("coca")
    p = model.encode(batch_for(model))
    ids = write(model, p, Decoding(max_tokens=6))
    full = torch.cat([torch.full((3, 1), model.tokenizer.bos), ids], 1)
    logits = p.view(text=Texts(full, torch.ones_like(full, dtype=torch.bool)))["text.logits"]
    for row in range(3):
        for t in range(ids.shape[1]):
            assert ids[row, t] == logits[row, t].argmax()
            if ids[row, t] == model.tokenizer.eos:
                break


def test_frozen_parts_keep_no_gradient_and_stay_in_evaluation_mode():
    model, objectives = make("clip")
    model.train()
    model.freeze({"vision"})
    objectives["info_nce"](model.encode(batch_for(model))).backward()
    assert all(p.grad is None and not p.requires_grad for p in model.parts["vision"].parameters())
    assert all(p.grad is not None for p in model.parts["text"].parameters())
    assert not model.parts["vision"].training and model.parts["text"].training
    model.train()
    assert not model.parts["vision"].training


def test_what_a_recipe_lacks_is_named():
    model, _ = make("clip")
    with pytest.raises(DiptychError, match="nothing provides 'text.fused'"):
        model.encode(batch_for(model))["text.fused"]


def test_tokenizer_round_trip_limits_and_unknown_text():
    tokenizer = Tokenizer.train(CAPTIONS, 400, 16)
    ids, mask = tokenizer.encode_batch(["A red  fox.", "naïve 日本 🦊", "word " * 10_000])
    assert tokenizer.decode(ids[0]) == "a red fox" and tokenizer.decode(ids[1]) != ""
    assert ids.shape == (3, 16) and (ids[:, 0] == 1).all()
    assert all(row[m.sum() - 1] == 2 for row, m in zip(ids, mask, strict=True)), "each ends in [EOS], the cut one too"


def llava():
    torch.manual_seed(0)
    recipe = load_recipe("llava", ["parts.lm.kind=random", "parts.vision.resolution=64"])
    model = build_model(recipe, None, 48, CAPTIONS).eval()
    return model, build_objectives(recipe, model).eval()


def test_captions_tried_on_a_remembered_image_score_as_when_read_whole():
    model, _ = llava()
    images, texts = torch.tensor([0, 2, 2, 1]), torch.tensor([2, 0, 1, 1])
    whole = caption_log_likelihood(
        model.encode(batch_for(model)).pairs(image=images, text=texts)
    )  # gradients on: the image is read each time
    with torch.no_grad():
        remembered = caption_log_likelihood(model.encode(batch_for(model)).pairs(image=images, text=texts))
    torch.testing.assert_close(remembered, whole.detach(), atol=1e-4, rtol=1e-5)


def test_a_frozen_language_model_passes_gradients_on_to_the_connector_alone():
    model, objectives = llava()
    model.train()
    objectives["next_token"](model.encode(batch_for(model))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parts["connector"].parameters())
    assert all(p.grad is None for part in ("vision", "lm") for p in model.parts[part].parameters())
    assert not any(k.startswith(("parts.lm", "parts.vision")) for k in model.saved_state()), (
        "frozen packaged weights are not saved again"
    )
    assert any(k.startswith("parts.connector") for k in model.saved_state())


def test_the_next_word_depends_on_the_image_and_on_no_later_word():
    model, _ = llava()
    p = model.encode(batch_for(model))
    logits, texts = p["text.logits"], p["text"]
    assert logits.shape == (3, texts.ids.shape[1] - 1, len(model.tokenizer))
    changed = texts.ids.clone()
    changed[:, 5:-1] = changed[:, 5:-1].flip(1)
    after = p.view(text=replace(texts, ids=changed))["text.logits"]
    torch.testing.assert_close(after[:, :5], logits[:, :5], atol=1e-4, rtol=1e-4)
    other = p.view(image=Images(p["image"].pixels.flip(0)))
    assert not torch.allclose(other["text.logits"][0], logits[0], atol=1e-4)
    assert write(model, p, Decoding(max_tokens=5)).shape[0] == 3


def test_frozen_towers_meet_in_a_learned_space():
    model, objectives = make("lit", "parts.vision.resolution=64")
    loss = objectives["info_nce"](model.encode(batch_for(model)))
    loss.backward()
    learned = {n for n, p in model.named_parameters() if p.grad is not None}
    assert learned == {"parts.space.image.weight", "parts.space.text.weight"}


@pytest.mark.parametrize("kind", ["clip", "class", "siglip"])
def test_patches_dropped_from_a_tower_with_class_tokens(kind: str) -> None:
    """Seeing all patches by name is seeing them all; a class token is no patch and is never dropped."""
    torch.manual_seed(0)
    build = Build(SIZES["tiny"], 32, None)
    tower = VISION[kind](build, depth=2, patch=8).eval()
    pixels = torch.randn(2, 3, 32, 32)
    every = torch.arange(tower.tokens).expand(2, -1)
    whole, named = tower(pixels), tower(pixels, every)
    assert whole.tokens.shape[1] == tower.extra + tower.tokens
    torch.testing.assert_close(whole.pooled, named.pooled)
    few = tower(pixels, every[:, ::2])
    assert few.tokens.shape[1] == tower.extra + tower.tokens // 2
    blanked = pixels.clone()
    blanked[:, :, :8, 8:16] = 9.0  # patch 1, which is not among the few
    torch.testing.assert_close(tower(blanked, every[:, ::2]).pooled, few.pooled)


def test_a_text_read_whole_does_not_depend_on_how_far_the_batch_was_padded() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a red cat", "two dogs"] * 5, 300, 12)
    tower = TEXT["siglip"](Build(SIZES["tiny"], 32, tokenizer), depth=2).eval()
    ids, mask = (torch.from_numpy(x) for x in tokenizer.encode_batch(["a red cat", "two dogs"]))
    alone_ids, alone_mask = (torch.from_numpy(x) for x in tokenizer.encode_batch(["two dogs"]))
    torch.testing.assert_close(tower(ids, mask).pooled[1:], tower(alone_ids, alone_mask).pooled)


@pytest.mark.parametrize("name", ["clip", "siglip", "negclip", "filip", "sparc", "llip", "coca", "blip", "maskvlm"])
def test_losses_in_float32_leave_the_towers_their_bf16(name: str) -> None:
    """An encoding is computed when first asked for: if that were inside a loss that switches autocast off, a tower would run in
    float32, at twice the time."""
    model, objectives = make(name)
    types: dict[str, set[torch.dtype]] = {}
    for where, module in model.parts.named_modules():
        if isinstance(module, torch.nn.Linear) and ".mlp." in where:
            module.register_forward_hook(lambda m, i, out, where=where: types.setdefault(where, set()).add(out.dtype))
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(CAPTIONS))
    batch = batch_of(torch.randn(3, 3, 48, 48), ids, mask, meaning=torch.arange(3))
    batch = batch.with_(negatives=Texts(ids, mask, owner=torch.arange(3)))
    for objective in objectives.values():
        with torch.autocast("cpu", torch.bfloat16):
            objective(model.encode(batch))
    assert {where.split(".")[0] for where in types} >= {"vision", "text"}
    assert set.union(*types.values()) == {torch.bfloat16}
