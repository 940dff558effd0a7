"""BLIP: one text transformer in three modes, what they share, its three losses, its weights in transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from batch_fixture import batch_of
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.data.text import Tokenizer
from diptych.inference.export import export
from diptych.inference.foreign import open_model
from diptych.inference.run import TrainedModel
from diptych.interop import families_of, family_for
from diptych.interop.base import state_of, to_ours
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.objectives.generative import caption_log_likelihood, next_token_loss
from diptych.training.distributed import Cluster, check_sharding
from diptych.training.loop import train
from diptych.training.start.teachers import add_teachers
from plain_fixture import f64, gelu, linear, normed

CAPTIONS = ["a red fox left of a blue heart", "two green keys", "there is a big yellow house above a small pink star", "a key"]
SMALL = [f"parts.{p}.{o}" for p in ("vision", "text") for o in ("width=32", "heads=4", "depth=2")] + ["precision=fp32"]


def make(*overrides):
    torch.manual_seed(0)
    recipe = load_recipe("blip", [*SMALL, *overrides])
    model = build_model(recipe, Tokenizer.train(CAPTIONS, 400, 32), 48).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # opinions: nothing uniform, every norm and bias at work
            p.add_(torch.randn_like(p) * (0.3 if "embedding" not in name else 0.0))
    add_teachers(recipe, model)
    return recipe, model, build_objectives(recipe, model).eval()


def batch_for(model, captions=CAPTIONS, pad_to=None):
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(captions))
    if pad_to:
        ids, mask = (torch.nn.functional.pad(x, (0, pad_to - x.shape[1])) for x in (ids, mask))
    pixels = torch.rand(len(captions), 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return batch_of(pixels=pixels, text=ids, text_mask=mask)


# --- the reference: BERT with cross-attention, written out for one caption without padding ---


def attention(layer, x, context, causal):
    width, d = x.shape[1], x.shape[1] // layer.heads
    q, kv = linear(layer.q, x), linear(layer.kv, context)
    out = np.zeros_like(q)
    for h in range(layer.heads):
        at = slice(h * d, (h + 1) * d)
        for i in range(len(x)):
            seen = i + 1 if causal else len(context)
            logits = kv[:seen, at] @ q[i, at] / math.sqrt(d)
            weights = np.exp(logits - logits.max())
            out[i, at] = weights / weights.sum() @ kv[:seen, width:][:, at]
    return linear(layer.out, out)


def reference(text, ids, image, causal, own=None):
    """One caption through the transformer. own: the blocks whose self-attention and norm after it are taken instead."""
    x = normed(text.norm, f64(text.embedding.weight)[ids] + f64(text.positions)[: len(ids)])
    for block, mine in zip(text.transformer.blocks, own or text.transformer.blocks, strict=True):
        x = normed(mine.norm1, x + attention(mine.attention, x, x, causal))
        if image is not None:
            x = normed(block.norm_cross, x + attention(block.cross, x, image, False))
        x = normed(block.norm2, x + linear(block.mlp[2], gelu(linear(block.mlp[0], x))))
    return x


def spoken(decoder, x):
    """Logits [T, V] of the output layer."""
    return normed(decoder.norm, gelu(linear(decoder.transform, x))) @ f64(decoder.reader.embedding.weight).T + f64(decoder.bias)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("marks", [True, False])
def test_each_mode_is_the_reference(share, marks):
    _, model, objectives = make(f"parts.decoder.share={share}".lower(), f"parts.text.marks={marks}".lower())
    p = model.encode(batch_for(model))
    text, decoder = model.part("text"), model.part("decoder")
    words = len(model.tokenizer)
    begin_decoder, begin_encoder = (words, words + 1) if marks else (model.tokenizer.bos,) * 2
    matching = objectives["matching"]
    for i in range(len(CAPTIONS)):
        length = int(p["text"].mask[i].sum())
        ids, image = p["text"].ids[i, :length].numpy(), f64(p["image.tokens"].tokens[i])
        alone = reference(text, ids, None, causal=False)
        np.testing.assert_allclose(f64(p["text.tokens"].pooled[i]), alone[0], atol=2e-5)
        fused = reference(text, [begin_encoder, *ids[1:]], image, causal=False)
        np.testing.assert_allclose(f64(p["text.fused"].tokens[i, :length]), fused, atol=2e-5)
        no, yes = linear(matching.head, fused[0])
        assert matching.logits(p)[i].item() == pytest.approx(yes - no, abs=2e-5)
        own = decoder.transformer.blocks if share else None
        written = reference(decoder.reader, [begin_decoder, *ids[1:]], image, causal=True, own=own)
        np.testing.assert_allclose(f64(p["text.logits"][i, : length - 1]), spoken(decoder, written)[:-1], atol=5e-5)


def test_the_caption_loss_is_the_smoothed_reference():
    _, model, objectives = make()
    p = model.encode(batch_for(model))
    logits, total, n = f64(p["text.logits"]), 0.0, 0
    for i in range(len(CAPTIONS)):
        for t in range(int(p["text"].mask[i].sum()) - 1):
            row = logits[i, t]
            log_p = row - row.max() - np.log(np.exp(row - row.max()).sum())
            total -= 0.9 * log_p[p["text"].ids[i, t + 1]] + 0.1 * log_p.mean()
            n += 1
    assert objectives["next_token"](p).item() == pytest.approx(total / n, rel=1e-5)


def test_the_matching_loss_is_that_of_the_pairs_it_mined(monkeypatch):
    """Each image beside its caption, beside a wrong one, and each caption beside a wrong image; all three of one share of the
    batch."""
    _, model, objectives = make()
    for q in model.teachers["ema"].parameters():
        q.data += 0.1 * torch.randn_like(q)
    p = model.encode(batch_for(model))
    wrong_text, wrong_image = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0, 0])
    asked = []

    def mined(similarity, meaning, sharpness, back, floor):
        asked.extend([similarity, sharpness, back, floor])
        return wrong_text, wrong_image

    monkeypatch.setattr("diptych.objectives.matching.mine_negatives", mined)
    ours = objectives["matching"](p).item()
    torch.testing.assert_close(asked[0], p["image.embedding"] @ p["ema:text.embedding"].T)
    torch.testing.assert_close(asked[2], p["text.embedding"] @ p["ema:image.embedding"].T)
    assert not torch.allclose(asked[0], p["image.embedding"] @ p["text.embedding"].T, atol=1e-3)
    assert asked[1].item() == pytest.approx(1 / 0.07, rel=1e-5) and not asked[1].requires_grad and asked[3] == 1e-4
    text, head, total = model.part("text"), objectives["matching"].head, 0.0
    pairs = [(i, i, 1) for i in range(4)]
    pairs += [(i, int(wrong_text[i]), 0) for i in range(4)] + [(int(wrong_image[i]), i, 0) for i in range(4)]
    for image, caption, right in pairs:
        ids = p["text"].ids[caption, : int(p["text"].mask[caption].sum())].tolist()
        answers = linear(head, reference(text, [text.enc, *ids[1:]], f64(p["image.tokens"].tokens[image]), False)[0])
        total -= answers[right] - np.log(np.exp(answers).sum())
    assert ours == pytest.approx(total / 12, abs=2e-5)


# --- what each mode sees ---


def test_a_later_word_changes_what_the_encoder_says_and_nothing_the_decoder_has_said():
    _, model, objectives = make()
    batch = batch_for(model)
    other = batch["text"].ids.clone()
    other[0, 5] = 77
    assert other[0, 5] != batch["text"].ids[0, 5] and batch["text"].mask[0, 5]
    plain, changed = (
        model.encode(batch_of(pixels=batch["image"].pixels, text=t, text_mask=batch["text"].mask))
        for t in (batch["text"].ids, other)
    )
    # Row t speaks of token t + 1 from the tokens up to t: rows 0 to 4 have not read token 5.
    assert torch.equal(plain["text.logits"][0, :5], changed["text.logits"][0, :5])
    assert (plain["text.logits"][0, 5] - changed["text.logits"][0, 5]).abs().max() > 1e-3
    matching = objectives["matching"]
    assert (matching.logits(plain)[0] - matching.logits(changed)[0]).abs() > 1e-4
    assert (plain["text.tokens"].tokens[0, 0] - changed["text.tokens"].tokens[0, 0]).abs().max() > 1e-4


def test_only_the_grounded_modes_look_at_the_image():
    _, model, objectives = make()
    batch = batch_for(model)
    p, q = (
        model.encode(batch_of(pixels=x, text=batch["text"].ids, text_mask=batch["text"].mask))
        for x in (batch["image"].pixels, -batch["image"].pixels)
    )
    assert torch.equal(p["text.tokens"].tokens, q["text.tokens"].tokens)
    assert (objectives["matching"].logits(p) - objectives["matching"].logits(q)).abs().max() > 1e-4
    assert (p["text.logits"] - q["text.logits"]).abs().max() > 1e-3


def test_padding_and_order_change_nothing():
    _, model, objectives = make()
    p, padded = (model.encode(batch_for(model, pad_to=n)) for n in (None, 28))
    order = torch.tensor([2, 0, 3, 1])
    mixed = p.pairs(image=order, text=order)
    for other, rows in ((padded, torch.arange(4)), (mixed, order)):
        torch.testing.assert_close(objectives["matching"].logits(other), objectives["matching"].logits(p)[rows], atol=1e-5, rtol=0)
        torch.testing.assert_close(caption_log_likelihood(other), caption_log_likelihood(p)[rows], atol=1e-4, rtol=0)
        torch.testing.assert_close(other["text.embedding"], p["text.embedding"][rows], atol=1e-5, rtol=0)


# --- what they share ---


def test_encoder_and_decoder_share_all_but_self_attention():
    _, model, _ = make()
    text, decoder = model.part("text"), model.part("decoder")
    for mine, theirs in zip(decoder.transformer.blocks, text.transformer.blocks, strict=True):
        assert all(getattr(mine, n) is getattr(theirs, n) for n in ("cross", "norm_cross", "norm2", "mlp"))
        assert mine.attention.q.weight.data_ptr() != theirs.attention.q.weight.data_ptr()
    assert decoder.reader is text and not list(model.part("fusion").parameters())
    assert not any("cross" in n or "mlp" in n or "embedding" in n for n, _ in decoder.named_parameters())
    whole = sum(p.numel() for p in make("parts.decoder.share=false")[1].parameters())
    assert whole > sum(p.numel() for p in model.parameters()) + text.embedding.weight.numel()


@pytest.mark.parametrize("share", [True, False])
def test_the_caption_loss_teaches_the_shared_weights_only_where_they_are_shared(share):
    _, model, objectives = make(f"parts.decoder.share={share}".lower())
    objectives["next_token"](model.encode(batch_for(model))).backward()
    block = model.part("text").transformer.blocks[0]
    assert block.attention.q.weight.grad is None
    assert (block.mlp[0].weight.grad is not None) == (block.cross.kv.weight.grad is not None) == share


def test_the_three_losses_have_the_gradient_of_finite_differences():
    _, model, objectives = make("stages.0.objectives.matching.batch_share=1")
    model.double()
    objectives.double()
    batch = batch_for(model)
    batch["image"].pixels = batch["image"].pixels.double()
    places = [
        (model.part("text").transformer.blocks[0].cross.kv.weight, (3, 5)),
        (model.part("text").transformer.blocks[1].mlp[0].weight, (7, 2)),
        (model.part("decoder").transformer.blocks[0].attention.q.weight, (2, 9)),
        (model.part("text").embedding.weight, (model.part("text").enc, 4)),
        (model.part("vision").stem.weight, (1, 2, 0, 3)),
    ]

    def losses():
        torch.manual_seed(3)  # the same negatives
        p = model.encode(batch)
        # In float64 throughout: the modules' own losses are taken in float32.
        text, image = torch.arange(4).roll(1), torch.arange(4).roll(2)
        every = torch.arange(4)
        triples = p.pairs(image=torch.cat([every, every, image]), text=torch.cat([every, text, every]))
        answers = objectives["matching"].head(triples["text.fused"].pooled)
        target = torch.cat([torch.ones(4), torch.zeros(8)]).long()
        match = torch.nn.functional.cross_entropy(answers, target)
        mask = p["text"].mask[:, 1:]
        words = torch.nn.functional.cross_entropy(p["text.logits"][mask], p["text"].ids[:, 1:][mask], label_smoothing=0.1)
        return match + words

    losses().backward()
    for parameter, index in places:
        values = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                parameter[index] += step
                values.append(losses().item())
            parameter[index] += 1e-6
        assert parameter.grad[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-8)


# --- as a recipe ---


def test_parts_that_use_each_others_weights_are_not_shared_out():
    _, model, _ = make("parts.decoder.share=false")
    with pytest.raises(DiptychError, match="fsdp cannot shard a model in which MedEncoder computes with another part's weights"):
        check_sharding([model.part("fusion")], [], Cluster())
    with pytest.raises(DiptychError, match="fsdp needs several processes"):
        check_sharding([model.part("decoder")], [], Cluster())
    with pytest.raises(DiptychError, match="in which MedDecoder computes"):
        check_sharding([make()[1].part("decoder")], [], Cluster())


def test_a_mode_without_its_text_transformer_is_refused():
    with pytest.raises(DiptychError, match=r"parts.decoder: a mode of the text transformer; set parts.text.kind: med"):
        make("parts.text={kind: bert, width: 32, heads: 4, depth: 2}", "parts.fusion={kind: cross}")


def test_it_scores_by_matching_or_likelihood_and_writes():
    images = [np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8) for i in range(3)]
    found = {}
    for how in ("matching", "likelihood", "similarity"):
        recipe, model, objectives = make(f"score={how}")
        trained = TrainedModel("blip", recipe, model, objectives, torch.device("cpu"))
        found[how] = trained.score(images, CAPTIONS)
        assert found[how].shape == (3, 4)
        alone = trained.score(images[1:2], CAPTIONS[2:3])[0, 0]
        assert found[how][1, 2] == pytest.approx(alone, abs=1e-4)
    assert {"generate", "loglikelihood", "embed_image", "embed_text"} <= trained.capabilities
    assert (found["likelihood"] < 0).all()
    written = trained.generate(images, max_tokens=6)
    assert len(written) == 3 and written == trained.generate(images, max_tokens=6)


# --- in and out of transformers ---


def theirs_of(kind, **text):
    """A model of transformers with random weights."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    words = {
        "vocab_size": 320,
        "max_position_embeddings": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sep_token_id": 2,
        "pad_token_id": 0,
    }
    config = transformers.BlipConfig(
        vision_config={**sizes, "hidden_size": 24, "image_size": 48, "patch_size": 16},
        text_config={**sizes, **words, **text},
        image_text_hidden_size=20,
    )
    model = getattr(transformers, kind)(config).eval()
    for p in model.parameters():  # norms and biases, too, are no ones and zeros
        p.data += 0.1 * torch.randn_like(p)
    return model


@pytest.mark.parametrize("kind", ["BlipForImageTextRetrieval", "BlipForConditionalGeneration"])
def test_random_weights_of_transformers_give_the_same_here(kind):
    theirs = theirs_of(kind, label_smoothing=0.1)
    family = next(f for f in families_of("transformers") if f.architecture == kind)
    tokenizer = Tokenizer.train(CAPTIONS * 50, 320, 32)
    theirs.resize_token_embeddings(len(tokenizer))
    theirs.config.text_config.vocab_size = len(tokenizer)
    if kind == "BlipForConditionalGeneration":
        theirs.text_decoder.config.vocab_size = len(tokenizer)
    recipe = load_recipe("blip", {**family.options(theirs.config), "precision": "fp32"})
    model = build_model(recipe, tokenizer, 48).eval()
    objectives = build_objectives(recipe, model, training=False).eval()
    state = state_of(model, objectives)
    weights = theirs.state_dict()
    found = to_ours(weights, family.entries(model, objectives), {k: v.shape for k, v in state.items()})
    used = {name for entry in family.entries(model, objectives) for name in entry.theirs}
    tied = {"text_decoder.cls.predictions.decoder.weight", "text_decoder.cls.predictions.decoder.bias"}
    assert set(weights) - used <= tied  # everything of theirs has a place here
    model.load_state_dict({k: v for k, v in found.items() if not k.startswith("objectives.")}, strict=False)
    objectives.load_state_dict(
        {k.removeprefix("objectives."): v for k, v in found.items() if k.startswith("objectives.")}, strict=False
    )
    batch = batch_for(model)
    p = model.encode(batch)
    given = {"pixel_values": batch["image"].pixels, "input_ids": batch["text"].ids, "attention_mask": batch["text"].mask.long()}
    with torch.no_grad():
        if kind == "BlipForImageTextRetrieval":
            answers = theirs(**given).itm_score
            torch.testing.assert_close(objectives["matching"].head(p["text.fused"].pooled), answers, atol=1e-5, rtol=1e-5)
            cosines = theirs(**given, use_itm_head=False).itm_score
            torch.testing.assert_close(p["image.embedding"] @ p["text.embedding"].T, cosines, atol=1e-5, rtol=0)
        else:
            out = theirs(**given, labels=batch["text"].ids.masked_fill(~batch["text"].mask, -100))
            torch.testing.assert_close(p["text.logits"], out.logits[:, :-1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(objectives["next_token"](p), out.loss, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "blip"
    train(
        load_recipe(
            "blip",
            [
                *SMALL,
                "score=matching",
                "budget=64 samples",
                "stages.0.batch_size=16",
                "data.tokenizer.vocab_size=320",
                "trackers=[]",
            ],
        ),
        out,
    )
    return out


TEXTS = ["a red fox", "two green keys to the left of a big yellow house", " a Red fox."]


def test_an_export_matches_as_the_run_does(run, tmp_path):
    ours = TrainedModel.load(run, "cpu")
    images = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(3)]
    made = export(run, out=tmp_path / "export")
    assert made.architecture == "BlipForImageTextRetrieval"
    np.testing.assert_allclose(open_model(f"hf:{made.path}").score(images, TEXTS), ours.score(images, TEXTS), atol=1e-5)
    cosines = open_model(f"hf:{made.path}?score=similarity").score(images, TEXTS)
    np.testing.assert_allclose(cosines, ours.embed_image(images) @ ours.embed_text(TEXTS).T, atol=1e-5)
    long = "a red fox " * 40  # cut to the places that there are
    np.testing.assert_allclose(open_model(f"hf:{made.path}").score(images, [long]), ours.score(images, [long]), atol=1e-5)
    assert "BlipForImageTextRetrieval" in (made.path / "README.md").read_text()


def test_an_export_writes_as_the_run_does(run, tmp_path):
    from transformers import AutoProcessor, BlipForConditionalGeneration

    ours = TrainedModel.load(run, "cpu")
    images = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(3)]
    made = export(run, out=tmp_path / "export", architecture="BlipForConditionalGeneration")
    model = BlipForConditionalGeneration.from_pretrained(made.path).eval()
    processor = AutoProcessor.from_pretrained(made.path)
    inputs = processor(images=[Image.fromarray(i) for i in images], text=TEXTS, padding=True, truncation=True, return_tensors="pt")
    ids, mask = (torch.from_numpy(x) for x in ours.model.tokenizer.encode_batch(TEXTS))
    with torch.no_grad():
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        out = model(**inputs, labels=labels)
        p = ours.model.encode(batch_of(pixels=inputs["pixel_values"], text=ids, text_mask=mask))
        T = out.logits.shape[1] - 1
        torch.testing.assert_close(p["text.logits"][:, :T], out.logits[:, :-1], atol=1e-5, rtol=1e-5)
        plain = next_token_loss(p["text.logits"], ids[:, 1:], mask[:, 1:])  # smoothing belongs to the training, and is not written
        torch.testing.assert_close(plain, out.loss, atol=1e-5, rtol=1e-5)
        assert set(inputs["input_ids"][:, 0].tolist()) == {ours.model.part("text").dec}
    foreign = open_model(f"hf:{made.path}")
    assert foreign.generate(images, max_tokens=5) == ours.generate(images, max_tokens=5)


def test_a_run_that_scores_by_likelihood_is_written_as_a_captioner():
    recipe, model, objectives = make("score=likelihood")
    assert family_for("transformers", recipe, model, objectives).architecture == "BlipForConditionalGeneration"
    recipe, model, objectives = make("parts.vision.kind=vit")
    with pytest.raises(DiptychError, match="BlipForImageTextRetrieval: parts.vision: .*--set parts.vision.kind=class"):
        family_for("transformers", recipe, model, objectives)
    with pytest.raises(DiptychError, match="did you mean 'BlipForImageTextRetrieval'"):
        family_for("transformers", recipe, model, objectives, "BlipForImageTextRetrival")
