"""A Q-Former that reads the instruction (InstructBLIP): which words it reads, against NumPy, against the class of transformers, and
the same when the model is asked as in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_blip2 import reference

from batch_fixture import pass_of
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Turns
from diptych.core.sample import Turn
from diptych.data.conversations.rows import laid_out
from diptych.data.conversations.template import Chat
from diptych.data.conversations.turns import question
from diptych.data.fields.base import to_pixels
from diptych.inference.chat import Answering
from diptych.interop.base import linear as linear_entries
from diptych.interop.base import same, to_ours
from diptych.interop.families.blip import vision_entries
from diptych.interop.families.blip2 import qformer_entries
from diptych.models.connectors.instructed import instructions
from diptych.training.start.backbones import planned
from frozen_fixture import CAPTIONS, built, captioned, learned, parts_of, requested
from plain_fixture import f64, linear

FORMER = "parts.text={kind: q_former, queries: 3, width: 16, heads: 2, depth: 2, every: 2}"
ASKED = ["how many keys?", "what is red?", "which one is small?", "what is left of the heart?"]


def made(*more: str) -> Any:
    _, model, _ = built("instructblip", FORMER, "data.tokenizer.max_length=24", *more)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "parts.lm" not in name:
                p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    return model.eval()


def test_the_instruction_is_what_stands_between_an_image_and_its_answer() -> None:
    """Two conversations in the first row, the first with two turns; two images in the second row."""
    n = -1
    ids = torch.tensor([[1, n, n, 5, 6, 7, 8, 9, 1, n, n, 4], [1, n, n, 3, n, n, 8, 9, 0, 0, 0, 0]])
    learned = torch.zeros_like(ids, dtype=torch.bool)
    learned[0, 5] = learned[0, 7] = learned[1, 7] = True
    places = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3], list(range(12))])
    mask = torch.ones_like(learned)
    mask[1, 8:] = False
    assert instructions(Turns(ids, mask, learned, places), 2) == [[5, 6], [4], [3], [8]]
    behind = places.clone()
    behind[0, 11] = 0  # the next conversation begins right behind the image
    assert instructions(Turns(ids, mask, learned, behind), 2)[1] == []


def test_queries_see_image_and_instruction() -> None:
    model = made()
    text, own = model.part("text"), model.part("connector")
    batch = requested(model, ASKED, CAPTIONS)
    p = model.encode(batch)
    found, tokens = f64(p["turns.images.prefix"]), f64(p["turns.images.tokens"].tokens)
    chat = Chat(model.tokenizer, own.tokens)
    for i, asked in enumerate(ASKED):
        document = chat.document([question(asked)], ask=True)
        words = document.ids[document.ids.index(-1) + own.tokens :][: len(text.positions) - 2]
        ids = [model.tokenizer.bos, *words, model.tokenizer.eos]
        queries, _ = reference(text, np.array(ids), tokens[i], "bidirectional")
        np.testing.assert_allclose(found[i], linear(own.layer, queries), atol=1e-5)


def test_transformers_class_makes_the_same_of_image_and_instruction() -> None:
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

    tower = "parts.vision={kind: class, frozen: true, width: 24, heads: 4, depth: 2, patch: 16, hidden: 48, eps: 1.0e-6}"
    former = "parts.text={kind: q_former, queries: 3, width: 16, heads: 2, depth: 2, hidden: 48, norm: false}"
    model = made(tower, former)
    text, own = model.part("text"), model.part("connector")
    sizes = {"num_hidden_layers": 2, "intermediate_size": 48}
    config = InstructBlipConfig(
        vision_config={**sizes, "num_attention_heads": 4, "hidden_size": 24, "image_size": 48, "patch_size": 16},
        qformer_config={
            **sizes, "num_attention_heads": 2, "hidden_size": 16, "encoder_hidden_size": 24, "vocab_size": text.dec + 1,
            "max_position_embeddings": len(text.positions),
        },
        text_config={
            "model_type": "opt", "hidden_size": own.width, "num_hidden_layers": 1, "ffn_dim": 8, "num_attention_heads": 2,
            "vocab_size": 40, "word_embed_proj_dim": own.width,
        },
        num_query_tokens=3,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = InstructBlipForConditionalGeneration(config).eval()
    for weight in theirs.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    entries = [
        *vision_entries(model.part("vision")),
        *(e for e in qformer_entries(text, words=True) if "parts.text.norm." not in e.ours[0]),
        *linear_entries("parts.text.norm", "qformer.embeddings.layernorm"),
        same("parts.text.embedding.weight", "qformer.embeddings.word_embeddings.weight"),
        same("parts.text.positions", "qformer.embeddings.position_embeddings.weight"),
        *linear_entries("parts.connector.layer", "language_projection"),
    ]
    state = theirs.state_dict()
    used = {name for entry in entries for name in entry.theirs}
    assert all(name.startswith("language_model.") for name in set(state) - used)
    found = to_ours(state, entries, {k: v.shape for k, v in model.state_dict().items()})
    model.load_state_dict(found, strict=False)
    batch = captioned(model)
    ids, mask = own.words([model.tokenizer.pieces([asked])[0] for asked in ASKED], torch.device("cpu"))
    with torch.no_grad():
        want = theirs.get_image_features(batch["image"].pixels, ids, mask.long()).pooler_output
        torch.testing.assert_close(own(model.encode(batch)["image.tokens"], ids, mask), want, atol=1e-5, rtol=1e-5)


def test_its_linear_layer_can_start_from_blip2() -> None:
    """The recipe's backbones: Q-Former and linear layer of one run of blip2, whose weights have the same names and shapes."""
    found = planned(load_recipe("instructblip@mini"), Path("b"))
    assert len({each.path for each in found.values()}) == 1 and set(found) == {"vision", "lm", "text", "connector"}
    ours, (_, theirs, _) = made(), built("blip2", FORMER)
    for part in ("text", "connector"):
        a, b = (m.part(part).state_dict() for m in (ours, theirs))
        assert a.keys() == b.keys() and (part == "text" or all(a[k].shape == b[k].shape for k in a))


def test_a_long_instruction_is_cut_and_captions_have_one_of_their_own() -> None:
    model = made("parts.connector.longest=2")
    own = model.part("connector")
    ids, mask = own.words([[7, 8, 9], [6]], torch.device("cpu"))
    bos, eos, pad = own.bos, own.eos, own.pad
    assert ids.tolist() == [[bos, 7, 8, eos], [bos, 6, eos, pad]] and mask.tolist() == [[True] * 4, [True] * 3 + [False]]
    p = model.encode(captioned(model))
    plain = model.tokenizer.pieces(["describe the picture."])[0]
    want = own(p["image.tokens"], *own.words([plain] * len(CAPTIONS), torch.device("cpu")))
    torch.testing.assert_close(p["image.prefix"], want)


def test_the_model_is_asked_with_the_words_of_training() -> None:
    """Likelihoods of answers by what inference reads, against the whole conversations; the second turn of a conversation reads the
    image by its first question."""
    model = made()
    chat = Chat(model.tokenizer, model.part("connector").tokens, room=200)
    pictures = [np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8) for i in range(2)]
    answering = Answering(model, chat, lambda images: pass_of(model, list(images)), torch.no_grad)
    found = answering.loglikelihood(pictures, ["two", "a fox"], ASKED[:2], [(), ()])
    lm = model.part("lm")
    for k in range(2):
        lesson = chat.lesson([question(ASKED[k]), Turn("assistant", ["two", "a fox"][k])])
        ids, mask, learns, places = map(torch.from_numpy, laid_out([lesson], [[0]], model.tokenizer.pad))
        batch = turns_batch(ids, mask, learns, places, pictures[k])
        with torch.no_grad():
            logits = model.encode(batch)["turns.logits"]
        want = logits.log_softmax(-1).gather(1, ids[:, 1:][learns[:, 1:]][:, None]).sum()
        assert float(found[k]) == pytest.approx(float(want), rel=1e-4)
    turns = [question(ASKED[0]), Turn("assistant", "two"), Turn("user", ASKED[1])]
    prompt = answering._prompt(turns, 1)
    with torch.no_grad():
        once = answering._read([pictures[:1]], [answering._prompt(turns[:1], 1)])
        more = answering._read([pictures[:1]], [prompt])
    first = prompt.index(-1)
    n = first + model.part("connector").tokens
    torch.testing.assert_close(once.cache.own[0][0][:, :, :n], more.cache.own[0][0][:, :, :n])  # keys of the image's places
    assert lm.width == 32 and any(prompt.said)


def turns_batch(ids: Any, mask: Any, learns: Any, places: Any, picture: np.ndarray) -> Batch:
    """One conversation about one picture."""
    return Batch({"turns": Turns(ids, mask, learns, places, Images(to_pixels([picture])))}, 1)


def test_it_learns_and_gradients_are_true() -> None:
    recipe, model, objectives = built("instructblip", FORMER)
    batch = requested(model, ASKED, CAPTIONS)
    both = captioned(model).with_(**batch.fields)
    losses, changed = learned(recipe, model, objectives, both)
    assert losses[-1] < losses[0] - 0.1 and parts_of(changed) == {"parts.text", "parts.connector"}
    with torch.no_grad():  # other words, other queries
        p = model.eval().encode(batch)
        other = model.encode(requested(model, ASKED[::-1], CAPTIONS))
    assert not torch.allclose(p["turns.images.prefix"], other["turns.images.prefix"], atol=1e-3)
    model = made().double()
    model.requires_grad_(True)
    tokens = model.encode(captioned(model))["image.tokens"]
    shown = replace(tokens, tokens=tokens.tokens.detach().requires_grad_(), pooled=tokens.pooled.detach())
    own = model.part("connector")
    ids, mask = own.words([model.tokenizer.pieces([asked])[0] for asked in ASKED], torch.device("cpu"))
    weights = [shown.tokens, model.part("text").queries, model.part("text").embedding.weight, own.layer.weight]

    def loss() -> torch.Tensor:
        return own(shown, ids, mask).sin().sum()

    for p, grad in zip(weights, torch.autograd.grad(loss(), weights), strict=True):
        place = int(grad.abs().argmax())
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                p.view(-1)[place] += step
                values.append(float(loss()))
                p.view(-1)[place] -= step
        assert float(grad.view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-7)
