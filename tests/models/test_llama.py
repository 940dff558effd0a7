"""The part ``llama`` is transformers' LlamaForCausalLM; the next token of text alone against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Texts
from diptych.core.errors import DiptychError
from diptych.data.fields.text import tokenized
from diptych.data.text import Tokenizer
from diptych.models.vlm import VLM, build_model
from diptych.objectives import build_objectives
from diptych.objectives.generative import NextToken

TEXTS = ["a red fox : two green keys left of a fox", "two keys", "a green fox with a red key above them"]
SMALL = ["parts.lm.width=16", "parts.lm.depth=2", "parts.lm.heads=2", "parts.lm.hidden=24"]


def made(*more: str) -> VLM:
    torch.manual_seed(0)
    return build_model(load_recipe("lm", [*SMALL, *more]), Tokenizer.train(TEXTS * 3, 320, 24), 48).double().eval()


def test_logits_are_those_of_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = made()
    theirs = LlamaForCausalLM(LlamaConfig(**model.part("lm").lm.model.config.to_dict())).double().eval()
    theirs.load_state_dict(model.part("lm").lm.model.state_dict())
    ids, mask = map(torch.from_numpy, model.tokenizer.encode_batch(TEXTS))
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]
        ours = model.part("lm").text_logits(ids, mask)
    torch.testing.assert_close(ours[mask[:, 1:]], expected[mask[:, 1:]])
    assert model.part("lm").lm.model.lm_head.weight is model.part("lm").lm.model.get_input_embeddings().weight


def plain_loss(model: VLM, after: str = "") -> float:
    """−log P of each token after [BOS] (or behind the word ``after``, where a text has it), one text and one token at a time; the
    mean over all tokens of all texts.
    """
    losses = []
    for text in TEXTS:
        ids, mask = model.tokenizer.encode_batch([text])
        ids = ids[0, : mask.sum()]
        first = 1
        if after and f" {after} " in text:
            first = 1 + len(model.tokenizer.pieces([text[: text.index(f" {after} ")] + f" {after}"])[0])
        for t in range(first, len(ids)):
            prefix = torch.from_numpy(ids[None, :t])
            logits = model.part("lm").lm.model(input_ids=prefix).logits[0, -1].detach().numpy()
            losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[ids[t]])
    return float(np.mean(losses))


def loss_of(model: VLM, name: str) -> torch.Tensor:
    objective = build_objectives(load_recipe("lm", SMALL), model)[name]
    return objective(model.encode(Batch({"text": tokenized(model.tokenizer, TEXTS)}, len(TEXTS))))


@pytest.mark.parametrize(("name", "after"), [("next_token", ""), ("completed", ":")])
def test_the_loss_of_text_alone_and_its_gradient(name: str, after: str) -> None:
    model = made()
    weight = model.part("lm").lm.model.base_model.layers[0].mlp.up_proj.weight
    model.requires_grad_(True)
    loss = loss_of(model, name)
    assert float(loss.detach()) == pytest.approx(plain_loss(model, after), rel=1e-5)  # the loss itself is computed in float32
    assert after == "" or plain_loss(model, after) != pytest.approx(plain_loss(model), rel=1e-4)
    loss.backward()
    step = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = float((weight.grad * step).sum())
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * 1e-3 * step
            values.append(plain_loss(model, after))
            weight -= sign * 1e-3 * step
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("pieces", [2, 3])
def test_tokens_behind_a_mark_of_several_pieces(pieces: int) -> None:
    """Against a search in plain lists; the first occurrence counts, and a text without the mark counts as a whole."""
    model = made()
    objective = NextToken(model, image=False)
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 7, (40, 12))
    ids[:, 0] = model.tokenizer.bos
    lengths = rng.integers(3, 13, 40)
    mark = [4, 5, 4][:pieces]
    objective.mark = mark
    mask = np.arange(12) < lengths[:, None]
    ids = np.where(mask, ids, 0)
    learned = objective.learned(Texts(torch.from_numpy(ids), torch.from_numpy(mask)))
    seen = 0
    for row, n, found in zip(ids.tolist(), lengths, learned.tolist(), strict=True):
        at = next((k for k in range(1, n - pieces + 1) if row[k : k + pieces] == mark), None)
        seen += at is not None
        first = 1 if at is None else at + pieces
        assert [k + 1 for k, value in enumerate(found) if value] == list(range(first, n))
    assert 2 < seen < 38


def test_it_writes_on_and_prices_text_as_a_plain_loop_does() -> None:
    from contextlib import nullcontext

    from diptych.inference.generate import decoding_of
    from diptych.inference.texts.alone import TextAlone

    model = made()
    alone = TextAlone(model, nullcontext)
    prompts, texts = ["a red fox :", "two keys left"], ["two green keys", "of a fox"]
    nats, tokens = alone.loglikelihood(prompts, texts)
    written = alone.complete(prompts, decoding_of(max_tokens=5))
    lm = model.part("lm").lm.model
    for prompt, text, value, count, answer in zip(prompts, texts, nats, tokens, written, strict=True):
        ids = model.tokenizer.encode_batch([f"{prompt} {text}"])[0][0]
        ids = ids[: list(ids).index(model.tokenizer.eos) + 1]
        start = 1 + len(model.tokenizer.pieces([prompt])[0])
        logp = lm(input_ids=torch.from_numpy(ids[None])).logits[0].log_softmax(-1)
        assert count == len(ids) - start
        assert value == pytest.approx(sum(float(logp[t - 1, ids[t]]) for t in range(start, len(ids))), rel=1e-5)
        row = [int(i) for i in ids[:start]]
        for _ in range(5):
            row.append(int(lm(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
            if row[-1] == model.tokenizer.eos:
                break
        assert answer == model.tokenizer.decode(row[start:])


def test_a_language_model_alone_reads_text_only() -> None:
    from diptych.inference.able import capabilities_of
    from diptych.objectives.scores import score_of

    model = made()
    objectives = build_objectives(load_recipe("lm", SMALL), model).values()
    assert capabilities_of(model, objectives) == {"complete"}
    assert score_of("none", model, ()) is None
    towers = [f"parts.{p}={{kind: {k}, depth: 1, width: 16, heads: 2}}" for p, k in (("vision", "vit"), ("text", "transformer"))]
    beside = load_recipe("lm", [*SMALL, *towers, "stages.0.objectives.info_nce=1"])
    both = build_model(beside, model.tokenizer, 48)
    able = capabilities_of(both, build_objectives(beside, both).values())
    assert able == {"complete", "embed_image", "embed_text"}, "towers beside it still embed images"


def test_conversations_keep_their_special_tokens() -> None:
    """The chat template's [BOS] and [EOS] are single tokens of the run's own tokenizer."""
    from diptych.core.sample import Turn
    from diptych.data.conversations.template import Chat

    tokenizer = Tokenizer.train(TEXTS * 3, 320, 24)
    document = Chat(tokenizer, 1).document([Turn("user", "is there a fox?"), Turn("assistant", "yes")])
    assert document.ids[0] == tokenizer.bos and document.ids.count(tokenizer.eos) == 1
    learned = [i for i, learn in zip(document.ids, document.learned, strict=True) if learn]
    assert tokenizer.decode(learned) == "yes" and learned[-1] == tokenizer.eos


def test_mistakes_are_named() -> None:
    with pytest.raises(DiptychError, match="parts.lm: it has no words of its own; set data.tokenizer.kind: bpe"):
        build_model(load_recipe("lm"), None, 48)
    with pytest.raises(DiptychError, match="parts.lm: width: 18 is not a multiple"):
        made("parts.lm.width=18")


def test_prompts_and_texts_are_read_as_captions_are_in_training() -> None:
    """Capitals, spaces and a full stop make no difference to a tokenizer that never saw them, without an image and with
    examples."""
    from contextlib import nullcontext

    from diptych.core.capabilities import Example
    from diptych.inference.generate import decoding_of
    from diptych.inference.run import TrainedModel
    from diptych.inference.texts.alone import TextAlone

    model = made()
    alone, how = TextAlone(model, nullcontext), decoding_of(max_tokens=5)
    for plain, odd in ((["a red fox :"], ["A  Red FOX :"]), ([""], [""])):
        assert alone.complete(plain, how) == alone.complete(odd, how)
        pairs = [alone.loglikelihood(prompts, [text]) for prompts, text in ((plain, "two green keys"), (odd, "Two Green keys."))]
        assert pairs[0][0] == pairs[1][0] and pairs[0][1] == pairs[1][1] > 3
    assert NextToken(model, image=False, after=" Red").mark == NextToken(model, image=False, after=" red").mark != []
    small = ["parts.vision={kind: vit, depth: 1, width: 16, heads: 2}", "data.tokenizer.kind=bpe", "precision=fp32"]
    small.append("parts.lm={kind: llama, width: 16, depth: 1, heads: 2, hidden: 24}")
    recipe = load_recipe("llava", small)
    seeing = build_model(recipe, Tokenizer.train(TEXTS * 3, 320, 24), 48)
    trained = TrainedModel("m", recipe, seeing, build_objectives(recipe, seeing), torch.device("cpu"))
    picture = np.zeros((48, 48, 3), dtype=np.uint8)
    found = [
        trained.loglikelihood([picture], ["two keys"], examples=[Example(picture, text)])[0]
        for text in ("a fox", "A Fox.", "a key")
    ]
    assert found[0] == found[1] != found[2]
