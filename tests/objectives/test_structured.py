"""CE-CLIP and Structure-CLIP: losses and the encoder of facts against plain loops in float64, wrong captions and facts by rule."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from diptych.core.batch import Batch, Images
from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Sample
from diptych.data.fields import Draw
from diptych.data.fields.text import tokenized
from diptych.data.fields.wrong import WrongField, WrongTexts
from diptych.data.regions.changes import KINDS, Vocabulary, changed, triples, vocabulary_of
from diptych.data.text import Tokenizer
from diptych.objectives.regions.structured import WrongCaptions, hinge, within_text
from engine_fixture import Little
from plain_fixture import f64
from regions_fixture import PHRASES, model_of

CAPTIONS = ["a red fox left of a key", "two green keys", "a blue heart"]
WRONG, OWNER, KIND = (
    ["a red key left of a fox", "a blue fox left of a key", "two red keys", "a red heart"],
    [0, 0, 1, 2],
    [0, 2, 2, 2],
)


def batch_of(model, wrong: bool = True) -> Batch:
    pixels = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    fields = {"image": Images(pixels), "text": tokenized(model.tokenizer, CAPTIONS)}
    if wrong:
        texts = tokenized(model.tokenizer, WRONG)
        fields["wrong"] = WrongTexts(texts.ids, texts.mask, texts.strings, None, torch.tensor(OWNER), torch.tensor(KIND))
    return Batch(fields, 3)


def test_ce_clip_equals_the_loops() -> None:
    model = model_of("ce-clip")
    p = model.encode(batch_of(model))
    objective = WrongCaptions(model)
    objective.margins.copy_(torch.tensor([0.5, 0.0, 1.5, 9.0]))
    image, text, wrong = (f64(p[name]) for name in objective.couples)
    s, both, inside, rank = 1 / 0.07, [], [], []
    for i in range(3):
        right = s * image[i] @ text[i]
        both.append(math.log(sum(math.exp(s * image[i] @ t) for t in [*text, *wrong])) - right)
        both.append(math.log(sum(math.exp(s * image[j] @ text[i]) for j in range(3))) - right)
        own = [k for k in range(4) if OWNER[k] == i]
        inside.append(math.log(sum(math.exp(s * text[i] @ wrong[k]) for k in own)) - right)
        rank += [max(0.0, s * image[i] @ wrong[k] - right + (0.5, 0.0, 1.5, 9.0)[KIND[k]]) for k in own]
    expected = np.mean(both) + 0.2 * np.mean(inside) + 0.4 * np.mean(rank)
    assert float(objective(p).detach()) == pytest.approx(expected, abs=1e-3)
    objective.after_step(lambda *values: list(values))
    for k in range(4):
        apart = [s * image[i] @ (text[i] - wrong[j]) for j, i in enumerate(OWNER) if KIND[j] == k]
        mean = min(max(np.mean(apart), 0), 10) if apart else (0.5, 0.0, 1.5, 9.0)[k]
        assert float(objective.margins[k]) == pytest.approx(mean, abs=1e-3), "a kind that was not there keeps its margin"
    plain = model.encode(batch_of(model, wrong=False))
    assert float(objective(plain).detach()) == pytest.approx(
        np.mean([np.log(np.exp(m).sum(1)) - m.diagonal() for m in (s * image @ text.T, s * text @ image.T)]), abs=1e-3
    )


def test_gradients_equal_finite_differences() -> None:
    torch.manual_seed(0)
    right, wrong = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (3, 4))
    owner = torch.tensor(OWNER)
    assert torch.autograd.gradcheck(lambda a, b: within_text(a, b, owner), (right, wrong))
    image, text = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: hinge(a, b, 0.2), (image, text))


@pytest.mark.parametrize("meaning", [None, [1, 2, 1, 3]])
def test_the_hinge_equals_the_loops(meaning) -> None:
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    terms = []
    for i in range(4):
        for j in range(4):
            if i != j and (meaning is None or meaning[i] != meaning[j]):
                terms.append(max(0.0, 0.2 + image[i] @ text[j] - image[i] @ text[i]))
                terms.append(max(0.0, 0.2 + image[j] @ text[i] - image[i] @ text[i]))
    same = None if meaning is None else torch.tensor(meaning)
    assert float(hinge(torch.tensor(image), torch.tensor(text), 0.2, same)) == pytest.approx(np.mean(terms), abs=1e-12)


def test_the_knowledge_of_a_text_equals_the_loops() -> None:
    model = model_of("structure-clip", "parts.text.weight=0.5")
    tower = model.part("text")
    texts = tokenized(model.tokenizer, [*CAPTIONS, "of the"])
    made = tower(texts.ids, texts.mask, texts.strings)
    plain = super(type(tower), tower).forward(texts.ids, texts.mask, texts.strings)
    words = f64(tower.embedding.weight)
    for k, caption in enumerate(texts.strings):
        facts = triples(caption)
        if not facts:
            torch.testing.assert_close(made.pooled[k], plain.pooled[k])
            continue
        vectors = [sum(np.mean(words[model.tokenizer.caption_pieces([part])[0]], 0) for part in fact) for fact in facts]
        x = torch.tensor(np.stack(vectors))[None].float()
        expected = plain.pooled[k] + 0.5 * tower.knowledge(x)[0].mean(0)
        torch.testing.assert_close(made.pooled[k], expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="read from captions"):
        tower(texts.ids, texts.mask)


def test_facts_of_captions() -> None:
    assert triples("a big red fox left of two keys") == [("fox", "left of", "keys"), ("fox", "is", "big"), ("fox", "is", "red")]
    assert triples("a fox") == [] and triples("") == []


WORDS = Vocabulary(("fox", "key", "heart"), ("red", "blue"), ("running", "sitting"))


@pytest.mark.parametrize(
    ("kind", "caption", "allowed"),
    [
        ("relation", "a fox left of", {"a fox right of"}),
        ("relation", "a red fox above a key", {"a red key above a fox"}),
        ("noun", "a red fox", {"a red key", "a red heart"}),
        ("attribute", "a red fox", {"a blue fox"}),
        ("verb", "a fox running", {"a fox sitting"}),
        ("verb", "a fox", {None}),
        ("relation", "a fox", {None}),
        ("attribute", "a fox", {None}),
    ],
)
def test_wrong_versions_by_kind(kind: str, caption: str, allowed: set[str | None]) -> None:
    assert {changed(caption, kind, WORDS, random.Random(i)) for i in range(20)} == allowed


def test_the_field_gives_each_kind_once() -> None:
    source = [Sample(str(i), text=Captions(["a red fox above a blue key", "a green heart"])) for i in range(4)]
    words = vocabulary_of(source)
    assert set(words.nouns) == {"fox", "key", "heart"} and set(words.attributes) == {"red", "blue", "green"} and not words.verbs
    field = WrongField("wrong", Tokenizer.train(PHRASES, 400, 16), words)
    rows = [Draw(0, i, s, {"wrong": None}) for i, s in enumerate(source)]
    made = field.collate(rows)
    for row, caption in enumerate(s.captions[r.caption] for r, s in zip(rows, source, strict=True)):
        own = [k for k in range(len(made)) if int(made.owner[k]) == row]
        assert [KINDS[int(made.kinds[k])] for k in own] == sorted({KINDS[int(made.kinds[k])] for k in own}, key=KINDS.index)
        assert own and all(made.strings[k] != caption for k in own)
    assert field.collate([Draw(0, 0, Sample("x", text=Captions(["of"])), {})]) is None
    picked = made[torch.tensor([1, 0])]
    assert picked.kinds.tolist() == made.kinds[:2].flip(0).tolist()
    with pytest.raises(DiptychError, match="no kind 'nouns'"):
        WrongField("wrong", None, words, kinds=["nouns"])


@pytest.mark.parametrize("name", ["ce-clip", "structure-clip"])
def test_in_pieces_the_gradient_is_the_same_and_the_loss_falls(name: str) -> None:
    little = Little(name, batch_size=6)
    whole, pieces = little.gradients(None), little.gradients(3)
    for n, gradient in whole.items():
        assert (pieces[n] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, n
    assert any("knowledge" in n and g.norm() > 0 for n, g in whole.items()) == (name == "structure-clip")
    optimizer = torch.optim.AdamW(little.parameters().values(), lr=2e-3)
    losses = []
    for _ in range(15):
        losses.append(sum(float(v) for v in little.step(None).losses.values()))
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0] and isinstance(little.objectives, nn.ModuleDict)
