"""Several texts of an image (GroupViT, DreamLIP): against plain loops in float64, gradients, pieces of a batch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from diptych.core.sample import Captions, Sample
from diptych.data.fields import Draw
from diptych.data.fields.captions import NounsField
from diptych.data.text import Tokenizer
from diptych.objectives.several import each_slot, multi_label, slots, sub_caption_groups
from engine_fixture import Little
from regions_fixture import PHRASES

OWNER = [0, 0, 1, 3, 3, 3]  # the third image has no text
MEANING = [5, 6, 5, 7, 8, 6]


def given(E: int = 4):
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(4, E)), rng.normal(size=(6, E))
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))


def multi_label_by_loops(image, text, meaning, scale):
    to_text, to_image = [], []
    for i in (0, 1, 3):
        own = [k for k in range(6) if OWNER[k] == i]
        kept = [k for k in range(6) if k in own or meaning is None or meaning[k] not in [meaning[j] for j in own]]
        e = {k: math.exp(scale * image[i] @ text[k]) for k in kept}
        to_text.append(-math.log(sum(e[k] for k in own) / sum(e.values())))
    for k in range(6):
        kept = [
            i
            for i in range(4)
            if i == OWNER[k] or meaning is None or meaning[k] not in [meaning[j] for j in range(6) if OWNER[j] == i]
        ]
        e = {i: math.exp(scale * image[i] @ text[k]) for i in kept}
        to_image.append(-math.log(e[OWNER[k]] / sum(e.values())))
    return np.mean(to_text) + np.mean(to_image)


def each_by_loops(image, text, meaning, scale):
    losses = []
    for s in range(3):
        rows = [k for k in range(6) if OWNER[:k].count(OWNER[k]) == s]
        for k in rows:
            kept = [j for j in rows if j == k or meaning is None or meaning[j] != meaning[k]]
            own = scale * image[OWNER[k]] @ text[k]
            columns = sum(math.exp(scale * image[OWNER[k]] @ text[j]) for j in kept)
            back = sum(math.exp(scale * image[OWNER[j]] @ text[k]) for j in kept)
            losses.append((math.log(columns) + math.log(back)) / 2 - own)
    return np.mean(losses)


@pytest.mark.parametrize("meaning", [None, MEANING])
def test_the_losses_equal_the_loops(meaning) -> None:
    image, text = given()
    a, b, owner = torch.tensor(image), torch.tensor(text), torch.tensor(OWNER)
    same = None if meaning is None else torch.tensor(meaning)
    assert float(multi_label(a, b, owner, 5.0, same)) == pytest.approx(multi_label_by_loops(image, text, meaning, 5.0), abs=1e-12)
    assert float(each_slot(a, b, owner, 5.0, same)) == pytest.approx(each_by_loops(image, text, meaning, 5.0), abs=1e-12)
    assert slots(owner).tolist() == [0, 1, 0, 0, 1, 2]


@pytest.mark.parametrize("loss", [multi_label, each_slot])
def test_shares_of_processes_add_up_and_have_gradients(loss) -> None:
    image, text = (torch.tensor(x, requires_grad=True) for x in given())
    owner, same = torch.tensor(OWNER), torch.tensor(MEANING)
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, owner, 3.0, same), (image, text))
    assert torch.isfinite(torch.autograd.grad(loss(image, text, owner, 3.0, same), image)[0]).all()
    first, last = (loss(image, text, owner, 3.0, same, slice(*r)) for r in ((0, 2), (2, 4)))
    if loss is each_slot:  # three texts each
        torch.testing.assert_close((first * 3 + last * 3) / 6, loss(image, text, owner, 3.0, same))
    nothing = torch.zeros(0, 4, dtype=torch.float64)
    assert float(loss(image.detach(), nothing, owner[:0], 3.0)) == 0


def test_patches_of_a_sub_caption_equal_the_loops() -> None:
    rng = np.random.default_rng(1)
    patches, text = rng.normal(size=(4, 5, 3)), rng.normal(size=(6, 3))
    ours = sub_caption_groups(torch.tensor(patches), torch.tensor(text), torch.tensor(OWNER)).numpy()
    for k, owner in enumerate(OWNER):
        s = np.array([patches[owner, n] @ text[k] for n in range(5)])
        s = (s - s.min()) / (s.max() - s.min())
        s = np.where(s < 1 / 5, 0, s)
        vector = (s / s.sum()) @ patches[owner]
        np.testing.assert_allclose(ours[k], vector / np.linalg.norm(vector), atol=1e-12)


def test_nouns_of_the_caption_that_is_read() -> None:
    field = NounsField("nouns", Tokenizer.train(PHRASES, 400, 16), most=2, prompts=("a photo of a {}",))
    sample = Sample("a", text=Captions(["a red fox, two keys and an owl"]))
    rows = [Draw(0, i, sample, {}) for i in range(20)] + [Draw(0, 99, Sample("b", text=Captions(["of the"])), {})]
    texts = field.collate(rows)
    assert texts.owner.tolist() == [i for i in range(20) for _ in range(2)]
    assert set(texts.strings) == {"a photo of a fox", "a photo of a keys", "a photo of an owl"}
    same = {s: int(m) for s, m in zip(texts.strings, texts.meaning, strict=True)}
    assert len(set(same.values())) == 3 and len({texts.strings[2 * i : 2 * i + 2] for i in range(20)}) > 1
    assert field.collate(rows[-1:]) is None


@pytest.mark.parametrize("name", ["dreamlip", "clippy", "groupvit"])
def test_the_recipes_give_gradients(name: str) -> None:
    little = Little(name, batch_size=6)
    whole = little.gradients(None)
    assert all(torch.isfinite(g).all() for g in whole.values()) and max(g.norm() for g in whole.values()) < 1e4
    assert whole["0.parts.vision.stem.conv1.weight" if name != "groupvit" else "0.parts.vision.stem.weight"].norm() > 0
    if name != "groupvit":  # whose patches are assigned at random, by piece
        pieces = little.gradients(2)
        for n, gradient in whole.items():
            assert (pieces[n] - gradient).norm() <= 2e-4 * gradient.norm() + 1e-6, n
    assert list(itertools.islice(little.weights, 1))
