"""BLIP-2: who sees whom in the Q-Former, its three losses, the language model behind it, its weights in transformers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from batch_fixture import batch_of
from diptych.config.recipe import load_recipe
from diptych.core.batch import Images
from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError
from diptych.core.graph import Graph
from diptych.inference.export import export
from diptych.inference.foreign import open_model
from diptych.inference.generate import Decoding, write
from diptych.inference.run import TrainedModel
from diptych.interop import family_for
from diptych.interop.base import State, linear, same, state_of, to_ours
from diptych.interop.families.blip import vision_entries
from diptych.interop.families.blip2 import qformer_entries
from diptych.models.pretrained.tokenizer import tiny_tokenizer
from diptych.models.vlm import VLM, build_model
from diptych.objectives import build_objectives
from diptych.objectives.generative import caption_log_likelihood
from diptych.training.distributed import Cluster, check_sharding
from diptych.training.loop import train
from plain_fixture import f64, gelu, normed
from plain_fixture import linear as plain

CAPTIONS = ["a red fox left of a blue heart", "two green keys", "there is a big yellow house above a small pink star", "a key"]
SMALL = [
    "parts.vision={kind: class, frozen: true, width: 24, heads: 4, depth: 2, patch: 16}",
    "parts.lm={kind: random, frozen: true}",
    "parts.text={kind: q_former, queries: 3, width: 32, heads: 4, depth: 4, hidden: 48}",
    "embed_dim=20",
    "precision=fp32",
]

TOWER = "parts.vision={kind: class, frozen: true, width: 24, heads: 4, depth: 2, patch: 16, hidden: 48, eps: 1.0e-6}"
EXPORTABLE = [TOWER, "parts.text.norm=false", "parts.text.places=false", "parts.text.queries=3"]


def make(*overrides):
    torch.manual_seed(0)
    recipe = load_recipe("blip2", [*SMALL, *overrides])
    model = build_model(recipe, None, 48, CAPTIONS).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # opinions: nothing uniform, every norm and bias at work
            p.add_(torch.randn_like(p) * (0.3 if "embedding" not in name and "parts.lm" not in name else 0.0))
    return recipe, model, build_objectives(recipe, model).eval()


def batch_for(model, captions=CAPTIONS, pad_to=None):
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(captions))
    if pad_to:
        ids, mask = (torch.nn.functional.pad(x, (0, pad_to - x.shape[1])) for x in (ids, mask))
    pixels = torch.rand(len(captions), 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return batch_of(pixels=pixels, text=ids, text_mask=mask)


# --- the reference: queries and text in one sequence under one mask, written out for one sample without padding ---


def allowed(regime, Q, T):
    """[Q + T, Q + T], True where the row may look at the column (figure 2 of the paper)."""
    see = np.zeros((Q + T, Q + T), dtype=bool)
    see[:Q, :Q] = True
    if regime == "unimodal":
        see[Q:, Q:] = True
    elif regime == "bidirectional":
        see[:] = True
    else:
        see[Q:, :Q] = True
        see[Q:, Q:] = np.tril(np.ones((T, T), dtype=bool))
    return see


def attention(layer, x, context, see):
    d = x.shape[1] // layer.heads
    q, kv = plain(layer.q, x), plain(layer.kv, context)
    k, v = kv[:, : x.shape[1]], kv[:, x.shape[1] :]
    out = np.zeros_like(q)
    for h in range(layer.heads):
        at = slice(h * d, (h + 1) * d)
        for i in range(len(x)):
            logits = k[see[i]][:, at] @ q[i, at] / math.sqrt(d)
            weights = np.exp(logits - logits.max())
            out[i, at] = weights / weights.sum() @ v[see[i]][:, at]
    return plain(layer.out, out)


def reference(text, ids, image, regime):
    """Queries [Q, D] and text [T, D]."""
    Q, T = len(text.queries), len(ids)
    words = f64(text.embedding.weight)[ids] + f64(text.positions)[:T]
    x = normed(text.norm, np.concatenate([f64(text.queries), words]))
    image = normed(text.norm_image, image)
    everywhere = np.ones((Q, len(image)), dtype=bool)
    for i, block in enumerate(text.transformer.blocks):
        x = normed(block.norm1, x + attention(block.attention, x, x, allowed(regime, Q, T)))
        seen, said = x[:Q], x[Q:]
        if i % text.every == 0:
            seen = normed(block.norm_cross, seen + attention(block.cross, seen, image, everywhere))
        seen = normed(block.norm2, seen + plain(block.mlp[2], gelu(plain(block.mlp[0], seen))))
        said = normed(block.norm_text, said + plain(block.mlp_text[2], gelu(plain(block.mlp_text[0], said))))
        x = np.concatenate([seen, said])
    return x[:Q], x[Q:]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_each_mode_is_the_reference():
    _, model, objectives = make()
    p = model.encode(batch_for(model))
    text, decoder, head = model.part("text"), model.part("decoder"), objectives["matching"].head
    for i in range(len(CAPTIONS)):
        n = int(p["text"].mask[i].sum())
        ids, image = p["text"].ids[i, :n].numpy(), f64(p["image.tokens"].tokens[i])
        queries, words = reference(text, ids, image, "unimodal")
        np.testing.assert_allclose(f64(p["image.queries"].tokens[i]), queries, atol=2e-5)
        np.testing.assert_allclose(f64(p["text.tokens"].tokens[i, :n]), words, atol=2e-5)
        queries, words = reference(text, ids, image, "bidirectional")
        np.testing.assert_allclose(f64(p["text.fused"].tokens[i, :n]), words, atol=2e-5)
        no, yes = plain(head, queries).mean(0)  # every query is asked
        assert objectives["matching"].logits(p)[i].item() == pytest.approx(yes - no, abs=2e-5)
        _, words = reference(text, [text.dec, *ids[1:]], image, "causal")
        said = normed(decoder.norm, gelu(plain(decoder.transform, words)))
        logits = said @ f64(text.embedding.weight)[:-1].T + f64(decoder.bias)
        np.testing.assert_allclose(f64(p["text.logits@decoder"][i, : n - 1]), logits[:-1], atol=5e-5)


def test_the_contrast_takes_the_nearest_query():
    _, model, objectives = make()
    p = model.encode(batch_for(model))
    queries = unit(plain(model.part("space").image, f64(p["image.queries"].tokens)))
    words = unit(plain(model.part("space").text, f64(p["text.tokens"].tokens[:, 0])))
    similarity = np.array([[max(query @ word for query in image) for word in words] for image in queries])
    every = objectives["query_contrast"].all_scores(p)
    np.testing.assert_allclose(f64(every), similarity, atol=1e-6)
    torch.testing.assert_close(objectives["matching"].similarity(p), every)
    logits = similarity / 0.07

    def cross_entropy(x):
        return -np.mean(np.diag(x) - np.log(np.exp(x).sum(1)))

    expected = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
    assert objectives["query_contrast"](p).item() == pytest.approx(expected, rel=1e-5)
    scores = objectives["query_contrast"].pair_scores(p, torch.tensor([0, 1, 3]), torch.tensor([2, 1, 0]))
    np.testing.assert_allclose(f64(scores), similarity[[0, 1, 3], [2, 1, 0]], atol=1e-6)
    alike = p.view(text=replace(p["text"], meaning=torch.tensor([0, 1, 1, 2])))  # no negatives of each other
    for i, j in ((1, 2), (2, 1)):
        logits[i, j] = -np.inf
    expected = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
    assert objectives["query_contrast"](alike).item() == pytest.approx(expected, rel=1e-5)


def test_negatives_are_drawn_by_the_nearest_query(monkeypatch):
    _, model, objectives = make("stages.0.objectives.matching.batch_share=1")
    p = model.encode(batch_for(model))
    asked = []

    def mined(similarity, *_):
        asked.append(similarity)
        return torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0, 0])

    monkeypatch.setattr("diptych.objectives.matching.mine_negatives", mined)
    loss = objectives["matching"](p).item()
    torch.testing.assert_close(asked[0], objectives["query_contrast"].all_scores(p))
    pairs = [(i, i, 1) for i in range(4)] + list(zip(range(4), [2, 0, 3, 1], [0] * 4, strict=True))
    pairs += list(zip([1, 2, 0, 0], range(4), [0] * 4, strict=True))
    odds = [objectives["matching"].pair_scores(p, torch.tensor([i]), torch.tensor([t])).item() for i, t, _ in pairs]
    terms = [math.log1p(math.exp(-z if right else z)) for z, (_, _, right) in zip(odds, pairs, strict=True)]
    assert loss == pytest.approx(np.mean(terms), abs=1e-5)


# --- who sees whom ---


def test_queries_see_the_text_in_the_bidirectional_mode_alone():
    _, model, objectives = make()
    batch = batch_for(model)
    other = batch["text"].ids.clone()
    other[0, 3] = 77
    assert other[0, 3] != batch["text"].ids[0, 3] and batch["text"].mask[0, 3]
    plain, changed = (model.encode(batch.with_(text=replace(batch["text"], ids=t))) for t in (batch["text"].ids, other))
    text = model.part("text")
    for p in (plain, changed):  # what the causal mode goes on from is what the queries are alone
        assert torch.equal(p["image.queries"].tokens, plain["image.queries"].tokens)
    queries = [text.both(p["text"].ids, p["text"].mask, p["image.tokens"])[0] for p in (plain, changed)]
    assert (queries[0][0] - queries[1][0]).abs().max() > 1e-4 and torch.equal(queries[0][1:], queries[1][1:])
    # Row t speaks of token t + 1 from the tokens up to t: rows 0 to 2 have not read token 3.
    for logits in ("text.logits@decoder", "text.logits"):
        a, b = plain[logits][0], changed[logits][0]
        assert torch.equal(a[:3], b[:3]) and (a[3] - b[3]).abs().max() > 1e-4, logits
    assert (plain["text.tokens"].tokens[0, 0] - changed["text.tokens"].tokens[0, 0]).abs().max() > 1e-4
    assert (objectives["matching"].logits(plain)[0] - objectives["matching"].logits(changed)[0]).abs() > 1e-5


def test_words_see_the_image_through_the_queries_alone():
    _, model, _ = make()
    batch = batch_for(model)
    p, q = (model.encode(batch.with_(image=Images(x))) for x in (batch["image"].pixels, -batch["image"].pixels))
    assert torch.equal(p["text.tokens"].tokens, q["text.tokens"].tokens)
    q_with_queries = Pass(
        model, q.batch, {"image.queries": p["image.queries"]}
    )  # the same queries over another image: the same words
    for logits in ("text.logits@decoder", "text.logits"):
        assert (p[logits] - q[logits]).abs().max() > 1e-3
        assert torch.equal(q_with_queries[logits], p[logits])


def test_padding_and_order_change_nothing():
    _, model, objectives = make()
    p, padded = (model.encode(batch_for(model, pad_to=n)) for n in (None, 28))
    order = torch.tensor([2, 0, 3, 1])
    mixed = p.pairs(image=order, text=order)
    real = p["text"].mask[:, 1:]
    for other, rows in ((padded, torch.arange(4)), (mixed, order)):
        torch.testing.assert_close(objectives["matching"].logits(other), objectives["matching"].logits(p)[rows], atol=1e-5, rtol=0)
        torch.testing.assert_close(caption_log_likelihood(other), caption_log_likelihood(p)[rows], atol=1e-4, rtol=0)
        torch.testing.assert_close(other["text.embedding"], p["text.embedding"][rows], atol=1e-5, rtol=0)
        torch.testing.assert_close(other["image.query_embedding"], p["image.query_embedding"][rows], atol=1e-5, rtol=0)
        said = other["text.logits@decoder"][:, : real.shape[1]][real[rows]]
        torch.testing.assert_close(said, p["text.logits@decoder"][rows][real[rows]], atol=2e-5, rtol=0)


@pytest.mark.parametrize("stage", ["represent", "speak"])
def test_the_losses_have_the_gradient_of_finite_differences(stage):
    _, model, objectives = make()
    model.double()
    objectives.double()
    batch = batch_for(model)
    batch["image"].pixels = batch["image"].pixels.double()
    text = model.part("text")
    places = [
        (text.queries, (1, 5)),
        (text.transformer.blocks[0].cross.kv.weight, (3, 5)),
        (text.transformer.blocks[1].attention.q.weight, (2, 9)),
        (text.transformer.blocks[2].mlp[0].weight, (7, 2)),
        (text.transformer.blocks[0].mlp_text[2].weight, (7, 2)),
        (text.embedding.weight, (text.dec, 4)),
        (text.norm_image.weight, (5,)),
        (model.part("space").image.weight, (3, 4)),
    ]
    h, close = 1e-6, 1e-4
    if stage == "speak":  # the language model's norms compute in float32
        places, h, close = [*places[:4], (model.part("connector").layer.weight, (3, 4))], 1e-3, 1e-2

    def losses():
        # In float64 throughout: the modules' own losses are taken in float32.
        p = model.encode(batch)
        mask = p["text"].mask[:, 1:]
        logits = p["text.logits"] if stage == "speak" else p["text.logits@decoder"]
        spoken = torch.nn.functional.cross_entropy(logits[mask], p["text"].ids[:, 1:][mask])
        if stage == "speak":
            return spoken
        every = torch.arange(4)
        images = torch.nn.functional.normalize(model.part("space").image(p["image.queries"].tokens), dim=-1)
        words = torch.nn.functional.normalize(model.part("space").text(p["text.tokens"].pooled), dim=-1)
        contrast = torch.nn.functional.cross_entropy(torch.einsum("mqe,ke->mkq", images, words).amax(-1) * 5, every)
        triples = p.pairs(image=torch.cat([every, every, every.roll(2)]), text=torch.cat([every, every.roll(1), every]))
        target = torch.cat([torch.ones(4), torch.zeros(8)]).long()
        match = torch.nn.functional.cross_entropy(objectives["matching"].head(triples["text.fused"].pooled), target)
        return contrast + match + spoken

    losses().backward()
    for parameter, index in places:
        values = []
        with torch.no_grad():
            for step in (h, -2 * h):
                parameter[index] += step
                values.append(losses().item())
            parameter[index] += h
        assert parameter.grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=close, abs=h * close)


def test_shares_of_a_batch_average_to_the_whole():
    _, model, objectives = make()
    p = model.encode(batch_for(model))
    p = p.view(text=replace(p["text"], meaning=torch.tensor([0, 1, 0, 2])))
    whole = objectives["query_contrast"](p).item()
    parts = []
    for p.rows in (slice(0, 2), slice(2, 4)):
        parts.append(objectives["query_contrast"](p).item())
    assert sum(parts) / 2 == pytest.approx(whole, rel=1e-6) and parts[0] != pytest.approx(parts[1])


def test_recomputed_blocks_have_the_same_gradient():
    found = []
    for again in (False, True):
        _, model, objectives = make()
        model.set_training(0.0, again)
        p = model.encode(batch_for(model))
        torch.manual_seed(0)
        sum(objective(p) for objective in objectives.values()).backward()
        found.append({n: x.grad for n, x in model.named_parameters() if x.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5)


# --- as a recipe ---


def test_another_connector_reads_the_tower_itself():
    _, model, _ = make("parts.connector={kind: mlp}")
    p = model.encode(batch_for(model))
    assert p["image.prefix"].shape == (4, 9, model.part("lm").width)
    assert not [name for name, _ in p.memo if "queries" in name]


def test_a_mode_without_its_q_former_is_refused():
    for part in ("fusion", "decoder", "connector"):
        with pytest.raises(DiptychError, match=rf"parts.{part}: a mode of the Q-Former; set parts.text.kind: q_former"):
            make("parts.text={kind: bert, width: 32, heads: 4, depth: 2}", *_without(part))
    with pytest.raises(DiptychError, match=r"query_contrast needs 'image.query_embedding': .*add a part text of the kind q_former"):
        recipe = load_recipe("clip", ["stages.0.objectives={query_contrast: 1}"])
        build_objectives(recipe, build_model(recipe, make()[1].tokenizer, 48))
    _, model, _ = make()
    with pytest.raises(DiptychError, match="nothing provides 'image.embedding'; did you mean 'image.query_embedding'"):
        _ = model.encode(batch_for(model))["image.embedding"]
    with pytest.raises(DiptychError, match="in which QFormerDecoder computes with another part's weights"):
        check_sharding([model.part("decoder")], [], Cluster())


def _without(part):
    """Other parts that are built before this one, of kinds that need no Q-Former."""
    plain_parts = {"connector": "parts.connector={kind: linear}", "fusion": "parts.fusion={kind: cross}"}
    return [v for k, v in plain_parts.items() if k != part]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "blip2"
    few = [x for i in (0, 1) for x in (f"stages.{i}.batch_size=16", f"stages.{i}.warmup=2")]
    train(load_recipe("blip2", [*SMALL, *EXPORTABLE, *few, "budget=128 samples", "trackers=[]"]), out)
    return out


def test_two_stages_then_it_scores_in_three_ways_and_writes(run):
    trained = TrainedModel.load(run, "cpu")
    images = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(3)]
    assert not {"embed_image", "embed_text"} & trained.capabilities and "generate" in trained.capabilities
    found = {}
    for how in ("likelihood", "matching", "late_interaction"):
        recipe = trained.recipe.model_copy(update={"score": how})
        trained = TrainedModel("blip2", recipe, trained.model, trained.objectives, torch.device("cpu"))
        found[how] = trained.score(images, CAPTIONS)
        alone = trained.score(images[1:2], CAPTIONS[2:3])[0, 0]
        assert found[how].shape == (3, 4) and found[how][1, 2] == pytest.approx(alone, abs=1e-4)
    assert (found["likelihood"] < 0).all() and (abs(found["late_interaction"]) <= 1).all()
    written = trained.generate(images, max_tokens=6)
    assert len(written) == 3 and written == trained.generate(images, max_tokens=6)


def test_without_a_language_model_the_decoder_writes():
    _, model, _ = make()
    del model.parts["lm"], model.parts["connector"]
    model.graph = Graph(model.graph.fields)
    for name, part in model.parts.items():
        model.graph.add(name, part)
    trained_images = torch.rand(2, 3, 48, 48) * 2 - 1
    p = model.encode(batch_for(model, CAPTIONS[:2]).with_(image=Images(trained_images)))
    decoder = model.part("decoder")
    logits, state = decoder.start(p[decoder.begins_with])
    for t in range(p["text"].ids.shape[1] - 1):  # step by step what the whole caption gives at once
        real = p["text"].mask[:, t]  # behind its end a caption has nothing to say
        torch.testing.assert_close(logits[real], p["text.logits"][:, t][real], atol=2e-5, rtol=1e-5)
        logits, state = decoder.step(p["text"].ids[:, t + 1], state[torch.arange(2)])


# --- in and out of transformers ---


def load(theirs: State, entries, model: VLM, objectives) -> set[str]:
    """Put weights of transformers into ours; the names that found a place."""
    state = state_of(model, objectives)
    found = to_ours(theirs, entries, {k: v.shape for k, v in state.items()})
    model.load_state_dict({k: v for k, v in found.items() if not k.startswith("objectives.")}, strict=False)
    heads = {k.removeprefix("objectives."): v for k, v in found.items() if k.startswith("objectives.")}
    objectives.load_state_dict(heads, strict=False)
    return {name for entry in entries for name in entry.theirs}


def config_of(**text):
    from transformers import Blip2Config

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    vision = {**sizes, "hidden_size": 24, "image_size": 48, "patch_size": 16}
    former = {**sizes, "num_hidden_layers": 4, "hidden_size": 32, "max_position_embeddings": 32}
    return Blip2Config(vision_config=vision, qformer_config={**former, **text}, num_query_tokens=3, image_text_hidden_size=20)


def shaken(model):
    for p in model.parameters():  # norms, biases and queries, too, are no ones and zeros
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


def test_retrieval_of_transformers_is_ours():
    from transformers import Blip2ForImageTextRetrieval

    _, model, objectives = make(TOWER, "parts.text.norm=false")
    torch.manual_seed(0)
    text = model.part("text")
    theirs = shaken(Blip2ForImageTextRetrieval(config_of(use_qformer_text_input=True, vocab_size=text.dec + 1)))
    entries = [
        *vision_entries(model.part("vision")),
        *qformer_entries(text, words=True),
        same("parts.text.embedding.weight", "embeddings.word_embeddings.weight"),
        same("parts.text.positions", "embeddings.position_embeddings.weight"),
        *linear("parts.space.image", "vision_projection"),
        *linear("parts.space.text", "text_projection"),
        *linear("objectives.matching.head", "itm_head"),
    ]
    assert load(theirs.state_dict(), entries, model, objectives) == set(theirs.state_dict())
    batch = batch_for(model)
    p = model.encode(batch)
    given = {"pixel_values": batch["image"].pixels, "input_ids": batch["text"].ids, "attention_mask": batch["text"].mask.long()}
    with torch.no_grad():
        answers = theirs(**given, use_image_text_matching_head=True).logits_per_image
        torch.testing.assert_close(objectives["matching"].head(p["text.fused"].pooled), answers, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(objectives["query_contrast"].all_scores(p), theirs(**given).logits_per_image, atol=1e-5, rtol=0)
        image = theirs.vision_model(batch["image"].pixels).last_hidden_state
        query = theirs.qformer(theirs.query_tokens.expand(4, -1, -1), encoder_hidden_states=image).last_hidden_state
        torch.testing.assert_close(p["image.queries"].tokens, query, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    """A small random OPT on disk, with a tokenizer."""
    from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

    tokenizer = tiny_tokenizer(CAPTIONS * 3)
    ends = {"pad_token_id": tokenizer.pad, "bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = OPTConfig(vocab_size=len(tokenizer) + 1, max_position_embeddings=64, **sizes, **ends)  # one word more, for images
    path = tmp_path_factory.mktemp("opt")
    shaken(OPTForCausalLM(config)).save_pretrained(path)
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, **names).save_pretrained(path)
    return path


def test_generation_of_transformers_is_ours(opt):
    from transformers import AutoModelForCausalLM, Blip2ForConditionalGeneration

    lm = f"parts.lm={{kind: hf, from: 'hf:{opt}', trim: false}}"
    _, model, objectives = make(TOWER, lm, "parts.text.norm=false")
    config, image = config_of(), len(model.tokenizer)
    config.text_config, config.image_token_index = model.part("lm").lm.model.config, image
    torch.manual_seed(0)
    theirs = shaken(Blip2ForConditionalGeneration(config))
    theirs.language_model.load_state_dict(AutoModelForCausalLM.from_pretrained(opt).state_dict())
    entries = [
        *vision_entries(model.part("vision")),
        *qformer_entries(model.part("text")),
        *linear("parts.connector.layer", "language_projection"),
    ]
    used = load(theirs.state_dict(), entries, model, objectives)
    assert all(name.startswith("language_model.") for name in set(theirs.state_dict()) - used)
    for p in model.part("connector").parameters():  # ours brings what goes in to the size of word vectors
        p.data /= model.part("lm").scale
    batch = batch_for(model)
    p = model.encode(batch)
    shown = torch.full((4, 3), image)
    ids = torch.cat([batch["text"].ids[:, :1], shown, batch["text"].ids[:, 1:]], 1)
    mask = torch.cat([torch.ones(4, 4, dtype=torch.bool), batch["text"].mask[:, 1:]], 1)
    with torch.no_grad():
        labels = ids.masked_fill(~mask, -100).index_fill(1, torch.arange(4), -100)
        out = theirs(pixel_values=batch["image"].pixels, input_ids=ids, attention_mask=mask.long(), labels=labels)
        real = batch["text"].mask[:, 1:]
        torch.testing.assert_close(p["text.logits"][real], out.logits[:, 3:-1][real], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(objectives["next_token"](p), out.loss, atol=1e-5, rtol=1e-5)
        image_states = theirs.get_image_features(batch["image"].pixels).pooler_output
        torch.testing.assert_close(p["image.prefix"] * model.part("lm").scale, image_states, atol=1e-5, rtol=1e-5)


def exported(tmp_path, *overrides):
    """A model of ours and what transformers loads of it."""
    from transformers import AutoProcessor, Blip2ForConditionalGeneration

    recipe, model, objectives = make(*EXPORTABLE, *overrides)
    out = tmp_path / "export"
    out.mkdir()
    family_for("transformers", recipe, model, objectives).write(out, model, objectives)
    there = Blip2ForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(out)
    assert type(processor).__name__ == "Blip2Processor"
    return model.float(), there, processor


def pictures(n):
    return [np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8) for i in range(n)]


@pytest.mark.parametrize(
    "lm", ["{kind: hf, from: 'hf:OPT', trim: true}", "{kind: hf, from: 'hf:OPT', trim: false}", "{kind: random}"]
)
def test_an_export_says_what_the_run_says(lm, opt, tmp_path):
    model, there, processor = exported(tmp_path, f"parts.lm={lm.replace('OPT', str(opt))}")
    images = pictures(len(CAPTIONS))
    inputs = processor(images=[Image.fromarray(i) for i in images], text=CAPTIONS, padding=True, return_tensors="pt")
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(inputs["pixel_values"], pixels, atol=1e-6, rtol=0)
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(CAPTIONS))
    p = model.encode(batch_of(pixels=pixels, text=ids, text_mask=mask))
    kept = torch.tensor(model.tokenizer.original(list(range(len(model.tokenizer)))))
    words = slice(len(kept))  # without rows that are no words
    with torch.no_grad():
        logits = there(**inputs).logits
    for i in range(len(CAPTIONS)):  # theirs is padded on the left
        n = int(mask[i].sum()) - 1  # without [EOS], which theirs does not read
        theirs = inputs["input_ids"][i, inputs["attention_mask"][i] == 1].tolist()
        bos, *said = model.tokenizer.original(ids[i, :n].tolist())
        assert theirs == [bos, *[there.config.image_token_id] * 3, *said]
        torch.testing.assert_close(logits[i, -n:][:, kept], p["text.logits"][i, :n, words], atol=1e-5, rtol=1e-5)
    asked = processor(images=[Image.fromarray(i) for i in images], text=[""] * 4, return_tensors="pt")
    written = there.generate(**asked, generation_config=there.generation_config, max_new_tokens=5)
    ours = write(model, p, Decoding(max_tokens=5))
    said = [model.tokenizer.decode(row) for row in ours.tolist()]
    assert processor.batch_decode(written[:, asked["input_ids"].shape[1] :], skip_special_tokens=True) == said


def test_a_pretrained_tower_goes_along(opt, tmp_path):
    import foreign_fixture

    path = foreign_fixture.blip2(tmp_path / "blip2", "opt")  # its tower: 16 wide, pictures of 32
    more = [f"parts.vision={{kind: hf, from: 'hf:{path}', frozen: true}}", "data.image_size=32", "parts.lm.frozen=false"]
    torch.manual_seed(0)
    recipe = load_recipe("blip2", [*SMALL, *EXPORTABLE[1:], *more])
    model = build_model(recipe, None, 32, CAPTIONS).eval()
    objectives = build_objectives(recipe, model)
    family = family_for("transformers", recipe, model, objectives)
    (tmp_path / "export").mkdir()
    family.write(tmp_path / "export", model, objectives)
    from transformers import AutoProcessor, Blip2ForConditionalGeneration

    there = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "export").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "export")
    images = [Image.fromarray(i[:32, :32]) for i in pictures(2)]
    inputs = processor(images=images, text=["", ""], return_tensors="pt")
    pixels = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 127.5 - 1
    p = model.encode(batch_for(model, CAPTIONS[:2]).with_(image=Images(pixels)))
    with torch.no_grad():
        torch.testing.assert_close(there(**inputs).logits[:, -1, :-1], p["text.logits"][:, 0], atol=1e-5, rtol=1e-5)


def test_what_the_class_does_not_do_is_refused():
    recipe, model, objectives = make("parts.vision={kind: vit, frozen: true}", "parts.text.places=true")
    with pytest.raises(DiptychError) as told:
        family_for("transformers", recipe, model, objectives, "Blip2ForConditionalGeneration")
    for set_ in ("parts.vision.kind=class", "parts.text.norm=false", "parts.text.places=false"):
        assert f"--set {set_}" in str(told.value)
    for architecture in ("LlavaForConditionalGeneration", "CLIPModel", "BlipForConditionalGeneration"):
        with pytest.raises(DiptychError, match=f"{architecture}: "):
            family_for("transformers", recipe, model, objectives, architecture)
    with pytest.raises(DiptychError, match="Blip2ForConditionalGeneration: it scores by matching"):
        family_for("transformers", *make(*EXPORTABLE, "score=matching"))


def test_an_exported_run_is_judged_as_the_run_is(run, tmp_path):
    ours = TrainedModel.load(run, "cpu")
    made = export(run, out=tmp_path / "export")
    assert made.architecture == "Blip2ForConditionalGeneration"
    card = (made.path / "README.md").read_text()
    assert "generation_config=model.generation_config" in card and "after [BOS]" in card and "Li et al. 2023, BLIP-2" in card
    theirs = open_model(f"hf:{made.path}")
    images = pictures(3)
    assert theirs.generate(images, max_tokens=5) == ours.generate(images, max_tokens=5)
    ids, mask = (torch.from_numpy(x) for x in ours.model.tokenizer.encode_batch(CAPTIONS[:3]))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    logits = ours.model.encode(batch_of(pixels=pixels, text=ids, text_mask=mask))["text.logits"]
    logits = torch.cat([logits, logits.mean(-1, keepdim=True)], -1)  # theirs has a row for <image>, the mean of all words'
    log_p = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:]
    n = mask.sum(1) - 2  # theirs is of the words alone, without [EOS]
    expected = [log_p[i, : n[i]].sum().item() for i in range(3)]
    np.testing.assert_allclose(theirs.loglikelihood(images, CAPTIONS[:3]), expected, rtol=1e-5, atol=1e-5)
