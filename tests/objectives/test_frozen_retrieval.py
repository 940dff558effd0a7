"""hacl and fromage: contrast in and behind the states of a frozen language model, against sequences written out and NumPy."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.batch import Batch, Texts
from diptych.data.fields.text import tokenized
from diptych.models.build import SIZES, Build
from diptych.models.language.retrieval import RetrievalToken
from diptych.models.pretrained import CausalLM
from frozen_fixture import CAPTIONS, built, captioned, learned, parts_of
from plain_fixture import f64, linear

WRONG = ["a red fox right of a blue heart", "three green keys", "a lock"]
OWNERS = [0, 1, 3]


def unit(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return result


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    result: np.ndarray = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return result


def with_wrong(model: Any) -> Batch:
    batch = captioned(model)
    wrong: Texts = tokenized(model.tokenizer, WRONG, owner=torch.tensor(OWNERS))
    return batch.with_(negatives=wrong)


def double(model: Any, objectives: Any) -> None:
    model.double().eval()
    objectives.double()


def check_gradients(loss: Any, weights: list[torch.nn.Parameter]) -> None:
    """Against differences of the loss, at the largest entry of each weight's gradient. The language model's norms compute in
    float32, so steps are wide."""
    value = loss()
    grads = torch.autograd.grad(value, weights)
    for p, grad in zip(weights, grads, strict=True):
        place = int(grad.abs().argmax())
        values = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                p.view(-1)[place] += step
                values.append(float(loss()))
                p.view(-1)[place] -= step
        assert float(grad.view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-3, rel=2e-3)


# --- hacl ---


def states(model: Any, embeds: list[torch.Tensor]) -> np.ndarray:
    """The last state of each sequence [T, D], one at a time."""
    lm = model.part("lm").lm
    with torch.no_grad():
        rows = [lm.hidden(x[None], torch.ones(1, len(x), dtype=torch.bool))[0, -1] for x in embeds]
    return f64(torch.stack(rows))


def test_hallucinated_captions_are_columns_of_the_images_side_alone() -> None:
    _, model, objectives = built("hacl", "embed_dim=12")
    double(model, objectives)
    batch, part, space = with_wrong(model), model.part("lm"), model.part("space")
    lm, tokenizer = part.lm, part.lm.tokenizer

    def words(text: str) -> torch.Tensor:
        out: torch.Tensor = lm.embed(torch.tensor([tokenizer.bos, *tokenizer.pieces([text])[0], tokenizer.eos]))
        return out

    p = model.encode(batch)
    prefix = p["image.prefix"].detach() * part.scale
    bos, eos = lm.embed(torch.tensor([tokenizer.bos])), lm.embed(torch.tensor([tokenizer.eos]))
    image = unit(linear(space.image, states(model, [torch.cat([bos, x.to(bos.dtype), eos]) for x in prefix])))
    text = unit(linear(space.text, states(model, [words(c) for c in CAPTIONS])))
    wrong = unit(linear(space.text, states(model, [words(c) for c in WRONG])))
    scale = 1 / 0.07
    to_text = log_softmax(scale * image @ np.concatenate([text, wrong]).T)
    to_image = log_softmax(scale * text @ image.T)
    want = -(np.trace(to_text[:, : len(text)]) + np.trace(to_image)) / (2 * len(text))
    contrast = objectives["info_nce"]
    found = contrast(p)
    assert float(found.detach()) == pytest.approx(want, rel=1e-5)  # embeddings are float32
    plain = built("hacl@plain", "embed_dim=12")[2]["info_nce"].double()
    assert float(plain(p).detach()) < float(found.detach())


def test_hacl_trains_projector_and_maps_and_wrong_captions_move_away() -> None:
    recipe, model, objectives = built("hacl", "embed_dim=12")
    batch = with_wrong(model)

    def margin() -> float:
        with torch.no_grad():
            p = model.eval().encode(batch)
            sims = (p["image.embedding"] * p["text.embedding"]).sum(1)[OWNERS]
            return float((sims - (p["image.embedding"][OWNERS] * p["negatives.embedding"]).sum(1)).mean())

    before = margin()
    losses, changed = learned(recipe, model, objectives, batch)
    assert losses[-1] < losses[0] - 0.5 and margin() > before + 0.02
    assert parts_of(changed) == {"parts.connector", "parts.space"}


def test_gradients_of_hacl_are_true() -> None:
    _, model, objectives = built("hacl", "embed_dim=6")
    double(model, objectives)
    model.train_only("all")
    batch = with_wrong(model)
    to_double = torch.nn.functional.normalize  # embeddings are float32 for the loss; here they stay float64
    space = model.part("space")
    space.image_embedding = lambda state: to_double(space.image(state), dim=-1)
    space.text_embedding = lambda state: to_double(space.text(state), dim=-1)
    weights = [space.image.weight, space.text.weight, objectives["info_nce"].logit_scale, model.part("connector").layers[0].weight]
    check_gradients(lambda: objectives["info_nce"](model.encode(batch)), weights)


# --- fromage ---


def alone(family: str) -> Any:
    """The token and its maps, beside a little language model."""
    torch.manual_seed(0)
    lm = CausalLM.random(family=family, texts=CAPTIONS * 3)  # type: ignore[arg-type]
    parts: Any = {"lm": SimpleNamespace(lm=lm, width=lm.width), "vision": SimpleNamespace(width=16)}
    return RetrievalToken(Build(SIZES["tiny"], 32, lm.tokenizer, parts=parts, embed_dim=6, where="parts.space")), lm


@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_the_token_is_a_further_row_of_the_vocabulary(family: str) -> None:
    """Against transformers' model with one more token, whose row is ours: states and logits."""
    space, lm = alone(family)
    tied = family == "gemma3"
    assert (space.column is None) == tied and (space.grow > 1) == tied  # Gemma scales words, and its output has their vectors
    theirs = copy.deepcopy(lm.model)
    size = lm.vocabulary
    theirs.resize_token_embeddings(size + 1, mean_resizing=False)
    with torch.no_grad():
        theirs.get_input_embeddings().weight[size] = space.token
        theirs.get_output_embeddings().weight[size] = space.token if tied else space.column
    text = tokenized(lm.tokenizer, CAPTIONS)
    hidden = space.hidden(text)
    logits = space.logits(hidden)
    embedding = space.text_embedding(text, hidden)
    for i, caption in enumerate(CAPTIONS):
        ids = torch.tensor([[lm.tokenizer.bos, *lm.tokenizer.pieces([caption])[0], size]])
        out = theirs(input_ids=ids, output_hidden_states=True)
        n = ids.shape[1]
        torch.testing.assert_close(logits[i, : n - 1], out.logits[0, :-1], atol=1e-5, rtol=1e-5)
        state = f64(out.hidden_states[-1][0, -1])
        np.testing.assert_allclose(f64(embedding[i]), unit(linear(space.text, state)), atol=1e-5)


@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_the_token_has_the_mean_length_of_words(family: str) -> None:
    space, lm = alone(family)
    mean = f64(lm.model.get_input_embeddings().weight)
    with torch.no_grad():
        space.token.mul_(7)
    space.rescale()
    assert float(space.token.detach().norm()) == pytest.approx(float(np.linalg.norm(mean, axis=1).mean()), rel=1e-5)


def test_words_and_then_the_token_are_to_be_written() -> None:
    _, model, objectives = built("fromage", "embed_dim=8")
    p = model.eval().encode(captioned(model))
    logits, tokenizer, terms = f64(p["text.retrieval_logits"]), model.tokenizer, []
    for i, caption in enumerate(CAPTIONS):
        targets = [*tokenizer.pieces([caption])[0], logits.shape[-1] - 1]
        terms += [-log_softmax(logits[i, t])[target] for t, target in enumerate(targets)]
    own = objectives["retrieval_words"]
    assert float(own(p).detach()) == pytest.approx(np.mean(terms), rel=1e-5) and own.terms(p) == len(terms)


def test_fromage_trains_the_token_and_linear_maps_alone() -> None:
    recipe, model, objectives = built("fromage", "embed_dim=8")
    batch = captioned(model)
    losses, changed = learned(recipe, model, objectives, batch)
    assert losses[-1] < losses[0] - 0.5
    names = {f"parts.{n}" for n in ("connector.layer", "space.image", "space.text")}
    assert changed == {"parts.space.token", *(f"{n}.{w}" for n in names for w in ("weight", "bias"))}
    own = objectives["retrieval_words"]
    own.after_step(lambda *v: list(v))
    words = model.part("lm").lm.model.get_input_embeddings().weight
    assert float(model.part("space").token.norm().detach()) == pytest.approx(float(words.norm(dim=1).mean()), rel=1e-4)
    with torch.no_grad():
        p = model.eval().encode(batch)
        sims = p["image.embedding"] @ p["text.embedding"].T
    assert float(sims.diagonal().mean() - sims.mean()) > 0.03 and recipe.score == "similarity"


def test_gradients_of_fromage_are_true() -> None:
    _, model, objectives = built("fromage", "embed_dim=6")
    double(model, objectives)
    model.train_only("all")
    batch, space = captioned(model), model.part("space")
    weights = [space.token]
    own = objectives["retrieval_words"]

    def loss() -> Any:
        """In float64: the objective itself computes in float32."""
        p = model.encode(batch)
        text, logits = p["text"], p["text.retrieval_logits"]
        last = torch.arange(text.ids.shape[1]) == text.mask.sum(1, keepdim=True) - 1
        targets = text.ids.masked_fill(last, logits.shape[-1] - 1)[:, 1:]
        real = text.mask[:, 1:]
        return torch.nn.functional.cross_entropy(logits[real], targets[real])

    assert float(own(model.encode(batch)).detach()) == pytest.approx(float(loss().detach()), rel=1e-6)
    check_gradients(loss, weights)
    grads = [torch.autograd.grad(f(), space.token)[0] for f in (loss, lambda: own(model.encode(batch)))]
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-4)
