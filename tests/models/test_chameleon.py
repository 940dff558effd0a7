"""One decoder over words and image codes: its sequences, its probabilities, its drawings; bayes-ar, which reads them backwards."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from batch_fixture import batch_of
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.data.text import Tokenizer
from diptych.inference.generate import Decoding, draw, generate
from diptych.inference.run import TrainedModel
from diptych.models.layers.rotary import EMPTY, RotaryTransformer, rotations, turn
from diptych.models.vision.quantizer import nearest_code
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.objectives.chameleon import orders
from diptych.objectives.vqvae import codebook_loss
from diptych.training.checkpoint import checkpoints
from diptych.training.loop import train
from engine_fixture import Little, tiny
from launch_fixture import launch

CAPTIONS = ["a red fox left of a blue heart", "two green keys", "there is a big yellow house above a small pink star", "a key"]
SMALL = [
    *("parts.quantizer.patch=16", "parts.quantizer.width=32", "parts.quantizer.vocabulary=40"),
    *("parts.decoder.width=32", "parts.decoder.depth=2", "parts.decoder.heads=4", "precision=fp32"),
]
# Of captioned images, without the penalty on log Z; documents have a file of their own.
PAIRS = ["stages.1.objectives.interleaved.kind=interleaved", "stages.1.objectives.interleaved.z_loss=0"]


def make(name="chameleon", *overrides):
    torch.manual_seed(0)
    recipe = load_recipe(name, [*SMALL, *PAIRS, *overrides])
    model = build_model(recipe, Tokenizer.train(CAPTIONS, 400, 24), 48).eval()
    torch.nn.init.normal_(model.part("decoder").head.weight, std=0.5)  # opinions, so that nothing is nearly uniform
    return recipe, model, build_objectives(recipe, model).eval()


def batch_for(model, captions=CAPTIONS, start=0):
    generator = torch.Generator().manual_seed(0)
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(captions))
    pixels = torch.rand(len(captions), 3, 48, 48, generator=generator) * 2 - 1
    return batch_of(pixels=pixels, text=ids, text_mask=mask, start=start)


# --- sequences ---


def test_sequences_are_those_written_out_by_hand():
    _, model, _ = make()
    d = model.part("decoder")
    batch = batch_for(model)
    codes = torch.arange(36).view(4, 9) + 2
    first, bare = torch.tensor([True, False, False, False]), torch.tensor([False, False, True, False])
    sequence, kind = d.arrange(codes, batch["text"].ids, batch["text"].mask, first, bare)
    for i in range(4):
        text = batch["text"].ids[i, : int(batch["text"].mask[i].sum())].tolist()
        image = [d.begin, *(int(c) + d.first_code for c in codes[i]), d.end]
        whole = [*text[:1], *image, *text[1:]] if first[i] else [*(text[:1] if bare[i] else text[:-1]), *image, d.eos]
        rest = sequence.shape[1] - len(whole)
        assert sequence[i].tolist() == whole + [d.pad] * rest
        kinds = [2 if d.first_code <= t else 1 for t in whole]
        assert kind[i].tolist() == kinds + [0] * rest


def test_orders_keep_to_their_shares_and_pieces_agree_with_the_whole():
    first, bare = orders(range(400), 0.5, 0.1)
    assert int(first.sum()) == 200 and int(bare.sum()) == 20 and not (first & bare).any()
    for share in (0.0, 1.0):
        assert int(orders(range(50), share, 0.3)[0].sum()) == 50 * share
    assert int(orders(range(40), 1.0, 0.5)[1].sum()) == 0
    pieces = [orders(range(k, k + 25), 0.5, 0.1) for k in range(0, 400, 25)]
    for whole, parts in zip((first, bare), zip(*pieces, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))


# --- the loss ---


def test_the_loss_is_the_weighted_mean_of_the_reference():
    _, model, objectives = make(
        "chameleon", "stages.1.objectives.interleaved.image_weight=0.5", "stages.1.objectives.interleaved.drop=0.5"
    )
    objective, d = objectives["interleaved"], model.part("decoder")
    p = model.encode(batch_for(model))
    first, bare = objective.orders(p)
    assert first.any() and bare.any() and (~first & ~bare).any()
    sequence, kind = d.arrange(p["image.codes"], p["text"].ids, p["text"].mask, first, bare)
    logits = d(sequence).detach().double().numpy()
    total = weight = 0.0
    for i, t in itertools.product(range(4), range(sequence.shape[1] - 1)):
        w = (0.0, 1.0, 0.5)[int(kind[i, t + 1])]
        row = logits[i, t]
        total += w * (np.log(np.exp(row - row.max()).sum()) + row.max() - row[sequence[i, t + 1]])
        weight += w
    assert objective.terms(p) == pytest.approx(weight)
    assert objective(p).item() == pytest.approx(total / weight, abs=1e-5)


def test_the_loss_has_the_gradient_of_finite_differences():
    _, model, objectives = make()
    d = model.part("decoder").double()
    p = model.encode(batch_for(model))
    loss = objectives["interleaved"]
    loss(p).backward()
    for parameter, index in [(d.transformer.blocks[0].attention.k.weight, (3, 5)), (d.embedding.weight, (d.begin, 2)), (d.head.weight, (7, 1)),
                             (d.transformer.blocks[1].attention.q_norm.weight, (1, 3))]:  # fmt: skip
        with torch.no_grad():
            values = []
            for step in (1e-6, -2e-6):
                parameter[index] += step
                # The loss is taken in float32 under training: here the same sum in float64.
                sequence, kind = d.arrange(p["image.codes"], p["text"].ids, p["text"].mask, *loss.orders(p))
                counted = kind[:, 1:] != 0
                values.append(F.cross_entropy(d.logits_at(sequence[:, :-1], counted), sequence[:, 1:][counted]).item())
            parameter[index] += 1e-6
        assert parameter.grad[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-3, abs=1e-7)


def test_permuting_the_batch_permutes_the_logits_and_padding_changes_nothing():
    _, model, _ = make()
    p = model.encode(batch_for(model))
    order = torch.tensor([2, 0, 3, 1])
    codes, ids, mask = p["image.codes"], p["text"].ids, p["text"].mask
    d = model.part("decoder")
    longer_ids, longer_mask = F.pad(ids, (0, 5), value=d.pad), F.pad(mask, (0, 5))
    with torch.no_grad():
        drawn = d.image_logits(codes, ids, mask)
        torch.testing.assert_close(d.image_logits(codes[order], ids[order], mask[order]), drawn[order])
        torch.testing.assert_close(d.image_logits(codes, longer_ids, longer_mask), drawn)
        said = d.caption_logits(codes, ids, mask)
        torch.testing.assert_close(d.caption_logits(codes, longer_ids, longer_mask)[:, : said.shape[1]], said)
        changed = ids.masked_fill(~mask, 7)
        torch.testing.assert_close(d.image_logits(codes, changed, mask), drawn)
        bare = d.image_logits(codes, ids, mask, bare=True)
        torch.testing.assert_close(d.image_logits(codes, ids.flip(0), mask.flip(0), bare=True), bare)
        assert not torch.allclose(bare, drawn)


@pytest.mark.parametrize("name", ["chameleon", "bayes-ar"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(name):
    little = Little(name, *SMALL, stage="main")
    whole = little.gradients(None)
    assert not any(n.startswith("0.parts.quantizer") for n in whole)
    for micro in (3, 6):
        pieces = little.gradients(micro)
        for n, g in whole.items():
            assert (pieces[n] - g).norm() <= 1e-5 * g.norm() + 1e-8, n


# --- reading on from what was read ---


def test_rotary_attention_sees_distances_only():
    q, k = torch.randn(2, 1, 1, 4, 8, dtype=torch.float64)
    products = []
    for start in (0, 5):
        cos, sin = (x.double() for x in rotations(start, 4, 8, 100.0, q.device))
        products.append(turn(q, cos, sin) @ turn(k, cos, sin).transpose(-1, -2))
    torch.testing.assert_close(*products, atol=1e-5, rtol=1e-5)
    # By hand: the pair (x0, x4) is turned by the place times theta^0.
    x = torch.zeros(1, 1, 1, 8)
    x[..., 0] = 1.0
    turned = turn(x, *rotations(3, 1, 8, 100.0, x.device))[0, 0, 0]
    assert turned[0].item() == pytest.approx(np.cos(3), abs=1e-6) and turned[4].item() == pytest.approx(np.sin(3), abs=1e-6)


def test_the_past_read_in_pieces_is_the_past():
    torch.manual_seed(0)
    t = RotaryTransformer(32, 3, 4)
    x = torch.randn(2, 9, 32)
    with torch.no_grad():
        whole, _ = t(x)
        out, past = [], EMPTY
        for piece in x.split([4, 1, 3, 1], 1):
            y, past = t(piece, past)
            out.append(y)
    assert past.length == 9
    torch.testing.assert_close(torch.cat(out, 1), whole, atol=1e-5, rtol=1e-5)
    late = x.clone()
    late[:, 6:] = 0
    with torch.no_grad():
        torch.testing.assert_close(t(late)[0][:, :6], whole[:, :6])


def test_captions_on_a_remembered_image_have_the_same_logits():
    _, model, _ = make()
    p = model.encode(batch_for(model))
    with torch.enable_grad():
        afresh = p["text.logits"]
    pairs = torch.tensor([0, 0, 1, 3, 3]), torch.tensor([1, 0, 2, 2, 3])
    with torch.no_grad():
        remembered = model.encode(batch_for(model))["text.logits"]
        torch.testing.assert_close(remembered, afresh.detach(), atol=1e-5, rtol=1e-5)
        some = model.encode(batch_for(model)).pairs(image=pairs[0], text=pairs[1])
        again = model.part("decoder").caption_logits(p["image.codes"][pairs[0]], p["text"].ids[pairs[1]], p["text"].mask[pairs[1]])
        torch.testing.assert_close(some["text.logits"], again[:, : some["text.logits"].shape[1]], atol=1e-5, rtol=1e-5)


# --- parity ---


@pytest.mark.parametrize("norm", ["before", "after"])
def test_logits_and_loss_are_those_of_transformers(norm):
    """ChameleonForConditionalGeneration with random weights: the text side (it hides the logits of image codes). Its two kinds of
    layers are those of the 7B and the 34B model.
    """
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    from diptych.interop.families.chameleon import decoder_weights

    _, model, _ = make("chameleon", "parts.decoder.hidden=48", f"parts.decoder.norm={norm}")
    d = model.part("decoder")
    images = {f"IMGIMG{''.join(chr(ord('A') + int(c)) for c in str(k))}Z": d.first_code + k for k in range(d.codes)}
    config = ChameleonConfig(
        **{"vocab_size": d.first_code + d.codes, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
        swin_norm=norm == "after",
        vocabulary_map={"<image>": d.begin, **images},
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "embed_dim": 8, "latent_channels": 32, "num_embeddings": d.codes},
    )  # fmt: skip
    torch.manual_seed(1)
    theirs = ChameleonForConditionalGeneration(config).eval()
    with torch.no_grad():
        for n, parameter in theirs.named_parameters():
            if n.startswith(("model.embed_tokens", "model.layers", "model.norm", "lm_head")):
                parameter.normal_(1.0 if "norm.weight" in n else 0.0, 0.2)
    d.load_state_dict(decoder_weights(theirs.state_dict()))
    p = model.encode(batch_for(model))
    sequence, kind = d.arrange(
        p["image.codes"], p["text"].ids, p["text"].mask, torch.tensor([True, False] * 2), torch.zeros(4, dtype=torch.bool)
    )
    with torch.no_grad():
        words = d(sequence)[..., : d.first_code]
        found = theirs(input_ids=sequence, labels=torch.where(kind == 1, sequence, -100))
    torch.testing.assert_close(words, found.logits[..., : d.first_code], atol=1e-5, rtol=1e-5)
    spoken = kind[:, 1:] == 1
    ours = F.cross_entropy(words[:, :-1][spoken], sequence[:, 1:][spoken])
    assert ours.item() == pytest.approx(found.loss.item(), abs=1e-5)
    # The quantizer's rounding, for features and codes of unit length.
    features = F.normalize(torch.randn(2, 8, 3, 3), dim=1)
    lookup = theirs.model.vqmodel.quantize
    with torch.no_grad():
        lookup.embedding.weight.copy_(F.normalize(lookup.embedding.weight, dim=1))
        rounded, loss, ids = lookup(features)
    flat = features.flatten(2).transpose(1, 2)
    mine = nearest_code(flat, lookup.embedding.weight)
    assert torch.equal(mine.flatten(), ids)
    chosen = lookup.embedding.weight[mine]
    torch.testing.assert_close(chosen, rounded.flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-5)
    assert codebook_loss(flat, chosen, 0.25).item() == pytest.approx(loss.item(), abs=1e-6)


# --- probabilities ---


def reference_log_p(logits, targets):
    rows = logits.double().numpy()
    rows = rows - rows.max(-1, keepdims=True)
    log_p = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    return np.take_along_axis(log_p, targets.numpy()[..., None], -1)[..., 0].sum(-1)


def test_image_likelihood_equals_a_sum_in_float64_and_the_score_corrects_by_the_prior():
    recipe, model, objectives = make("bayes-ar")
    d = model.part("decoder")
    trained = TrainedModel("bayes", recipe, model, objectives, torch.device("cpu"))
    assert trained.capabilities == {"score", "draw", "reconstruct"}
    images = [np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8) for i in range(3)]
    scores = trained.score(images, CAPTIONS)
    codes = trained._images(images)["image.codes"]
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(CAPTIONS))
    head = d.head.weight[d.first_code :]
    expected = np.zeros((3, 4))
    with torch.no_grad():
        for i, j in itertools.product(range(3), range(4)):
            words = ids[j, : int(mask[j].sum()) - 1]
            found = []
            for opening in (words, words[:1]):
                sequence = torch.cat([opening, torch.tensor([d.begin]), codes[i] + d.first_code])[None]
                x, _ = d.hidden(sequence)
                found.append(reference_log_p(x[0, len(opening) : -1] @ head.T, codes[i]))
            expected[i, j] = found[0] - found[1]
    np.testing.assert_allclose(scores, expected, atol=2e-4)
    plain = TrainedModel("bayes", recipe.model_copy(update={"score": "image_likelihood"}), model, objectives, torch.device("cpu"))
    uncorrected = plain.score(images, CAPTIONS)
    np.testing.assert_allclose(uncorrected - scores, (uncorrected - scores)[:, :1].repeat(4, 1), atol=1e-3)
    pairs = np.array([[2, 1], [0, 3]])
    np.testing.assert_allclose(trained.score(images, CAPTIONS, pairs), scores[pairs[:, 0], pairs[:, 1]], atol=1e-4)


@pytest.mark.parametrize("bare", [False, True])
def test_probabilities_of_all_images_sum_to_one(bare):
    _, model, _ = make("bayes-ar", "parts.quantizer.vocabulary=5", "parts.quantizer.patch=16", "data.image_size=32")
    d = model.part("decoder")
    codes = torch.tensor(list(itertools.product(range(5), repeat=4)))
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(["two green keys"]))
    with torch.no_grad():
        logits = d.image_logits(codes, ids.expand(len(codes), -1), mask.expand(len(codes), -1), bare=bare)
    assert len(codes) == 625
    assert np.exp(reference_log_p(logits, codes)).sum() == pytest.approx(1.0, abs=1e-5)


def test_a_score_of_images_needs_a_decoder_of_codes():
    recipe = load_recipe("coca", ["score=image_likelihood", "parts.vision.depth=1", "parts.text.depth=1", "precision=fp32"])
    model = build_model(recipe, Tokenizer.train(CAPTIONS, 400, 24), 48)
    with pytest.raises(DiptychError, match="image_likelihood cannot be computed: nothing provides 'image.code_logits'"):
        TrainedModel("coca", recipe, model, build_objectives(recipe, model), torch.device("cpu"))


def test_what_can_be_done_follows_from_what_was_trained():
    writes = {"generate", "decoding", "loglikelihood"}
    for image_first, able in ((0, {"draw"}), (1, writes), (0.5, {"draw", *writes})):
        recipe, model, objectives = make("chameleon", f"stages.1.objectives.interleaved.image_first={image_first}")
        trained = TrainedModel("m", recipe, model, objectives, torch.device("cpu"))
        assert trained.capabilities == {"score", "reconstruct"} | able


def test_captions_are_the_likeliest_words_without_a_cache_too():
    recipe, model, objectives = make()
    trained = TrainedModel("m", recipe, model, objectives, torch.device("cpu"))
    images = [np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8) for i in range(3)]
    said = trained.generate(images, max_tokens=6)
    d, codes = model.part("decoder"), trained._images(images)["image.codes"]
    ids = d.opening(codes)
    with torch.no_grad():
        for _ in range(6):
            following = d(ids)[:, -1, : d.words].argmax(-1)
            ids = torch.cat([ids, following[:, None]], 1)
    assert said == [model.tokenizer.decode(row) for row in ids[:, -6:].tolist()]
    assert trained.loglikelihood(images, CAPTIONS[:3]).shape == (3,)


# --- drawing ---


def draw_again(d, ids, guidance):
    """The likeliest codes one by one, everything read afresh each time."""
    opening = torch.cat([ids, torch.full((len(ids), 1), d.begin)], 1)
    bare = torch.cat([ids[:, :1], torch.full((len(ids), 1), d.begin)], 1)
    drawn = torch.zeros(len(ids), 0, dtype=torch.long)
    seen = []
    for _ in range(d.tokens):
        with_caption, without = (d(torch.cat([x, drawn + d.first_code], 1))[:, -1, d.first_code :] for x in (opening, bare))
        logits = (1 - guidance) * without + guidance * with_caption
        seen.append(logits)
        drawn = torch.cat([drawn, logits.argmax(-1, keepdim=True)], 1)
    return drawn, torch.stack(seen, 1)


@pytest.mark.parametrize("guidance", [1.0, 3.0, 0.0])
def test_drawing_with_a_cache_is_drawing_without(guidance):
    _, model, _ = make()
    d = model.part("decoder")
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(["two green keys", "two red keys"]))
    ids = ids[:, : int(mask.sum(1)[0]) - 1]
    seen = []

    def step(drawn, state):
        logits, state = d.step_image(drawn, state)
        seen.append(logits)
        return logits, state

    with torch.no_grad():
        codes = draw(model, ids, Decoding(), guidance)
        begun = d.start_image(ids, guidance)
        assert torch.equal(generate(step, begun, Decoding(max_tokens=d.tokens)), codes)
        plain, expected = draw_again(d, ids, guidance)
        some = begun[1][torch.tensor([1, 0, 1])]
        again, _ = d.step_image(codes[[1, 0, 1], 0], some)
    assert torch.equal(codes, plain)
    torch.testing.assert_close(torch.stack([begun[0], *seen], 1), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, seen[0][[1, 0, 1]], atol=1e-5, rtol=1e-5)
    if not guidance:  # the caption is not followed at all
        assert torch.equal(codes[0], codes[1])


def test_pictures_come_in_order_and_are_fixed_by_the_seed():
    recipe, model, objectives = make()
    trained = TrainedModel("m", recipe, model, objectives, torch.device("cpu"))
    first, again, other = (trained.draw(CAPTIONS, seed=seed) for seed in (3, 3, 4))
    assert all(p.shape == (48, 48, 3) and p.dtype == np.uint8 for p in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    likeliest = trained.draw(CAPTIONS, temperature=0)
    reversed_ = trained.draw(CAPTIONS[::-1], temperature=0)
    assert np.array_equal(trained.draw(CAPTIONS[:1], seed=3)[0], first[0]), "whatever else is drawn"
    one_of_one = trained.draw(CAPTIONS, top_k=1, temperature=2.0)
    for a, b, c in zip(likeliest, reversed_[::-1], one_of_one, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)
    assert trained.draw([]) == []


def test_pictures_of_any_size_are_reconstructed_at_the_models():
    recipe, model, objectives = make()
    trained = TrainedModel("m", recipe, model, objectives, torch.device("cpu"))
    image = np.random.default_rng(0).integers(0, 256, (60, 52, 3), dtype=np.uint8)
    (once,) = trained.reconstruct([image])
    assert once.shape == (48, 48, 3) and once.dtype == np.uint8


def test_a_model_that_cannot_draw_says_what_it_can():
    recipe, model, objectives = make("chameleon", "stages.1.objectives.interleaved.image_first=1")
    trained = TrainedModel("m", recipe, model, objectives, torch.device("cpu"))
    with pytest.raises(DiptychError, match="cannot draw; it can: decoding, generate, loglikelihood, reconstruct, score"):
        trained.draw(["a key"])


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_do_what_one_does_in_both_stages(tmp_path, sharding):
    """The codebook and what is revived of it included: 20 steps, dead codes after three."""
    given = [
        *(o for o in SMALL if not o.startswith("precision")),
        *("parts.quantizer.patience=3", "stages.0.batch_size=16", "stages.1.batch_size=16", "stages.1.optimizer=adamw"),
        *("stages.1.lr=3e-4", "budget=320 samples"),
    ]
    launch([["chameleon", str(tmp_path / "two"), [*given, f"sharding={sharding}"]]])
    train(load_recipe("chameleon", [*tiny("chameleon"), *given]), tmp_path / "one")
    two, one = (load_file(checkpoints(tmp_path / d / "checkpoints")[-1] / "model.safetensors") for d in ("two", "one"))
    assert two.keys() == one.keys()
    for name in one:
        assert (two[name].double() - one[name].double()).norm() <= 1e-3 * one[name].double().norm() + 1e-6, name


@pytest.mark.parametrize("name", ["chameleon", "bayes-ar"])
def test_an_export_is_refused_because_the_class_has_another_quantizer(name):
    from diptych.interop import family_for

    little = Little(name)
    with pytest.raises(DiptychError, match="ChameleonForConditionalGeneration: parts.quantizer is not a ChameleonVQVAE"):
        family_for("transformers", little.recipe, little.model, little.objectives)
    with pytest.raises(DiptychError, match="it has no decoder over words and image codes"):
        clip = Little("clip")
        family_for("transformers", clip.recipe, clip.model, clip.objectives, "ChameleonForConditionalGeneration")
