"""Documents through a language model that reads images (flamingo@documents, sugar): which tokens are learned, the same likelihoods as
with few-shot examples, and an alignment kernel with all its paths listed."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from batch_fixture import pass_of
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Documents, Images
from diptych.core.capabilities import Example
from diptych.data.fields.base import to_pixels
from diptych.data.fields.text import tokenized
from diptych.inference.fewshot import FewShot
from diptych.objectives.language.alignment import fitted_similarity, kernel_similarity
from diptych.objectives.language.documents import laid_out, texts_behind
from frozen_fixture import CAPTIONS, built, learned, parts_of
from plain_fixture import f64

GATED = ["stages=[{objectives: {document_words: {weight: 1, next: 0}}}]", "parts.connector={kind: resampler, tokens: 3, depth: 1, heads: 2}",
         "parts.fusion={kind: gated, every: 1, hidden: 16, heads: 2}"]  # fmt: skip
PLAIN = ["stages=[{objectives: {document_words: {weight: 1, next: 0}}}]"]


def picture(i: int) -> np.ndarray:
    out: np.ndarray = np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    return out


def documents(model: Any, *each: list[Any]) -> Batch:
    """Documents of texts and of numbers of pictures."""
    parts = [(k, p) for k, document in enumerate(each) for p in document]
    owner, kind = torch.tensor([k for k, _ in parts]), torch.tensor([int(not isinstance(p, str)) for _, p in parts])
    texts, pictures = [p for _, p in parts if isinstance(p, str)], [picture(p) for _, p in parts if not isinstance(p, str)]
    made = Documents(
        kind,
        tokenized(model.tokenizer, texts, owner=owner[kind == 0]),
        Images(to_pixels(pictures), owner[kind == 1]) if pictures else None,
        owner,
    )
    return Batch({"document": made}, len(each))


def open_gates(model: Any) -> Any:
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith((".alpha", ".beta")):
                p.fill_(0.7)
    return model.eval()


def test_texts_follow_the_images_that_stood_behind_them() -> None:
    assert texts_behind([0, 1, 0, 1]) == [1, 0, 3, 2] and texts_behind([1, 0]) == [0, 1]
    assert texts_behind([0, 0, 1, 1, 0]) == [0, 2, 1, 3, 4] and texts_behind([]) == []


@pytest.mark.parametrize(("name", "options"), [("flamingo", GATED), ("llava", PLAIN)])
def test_rows_and_what_is_learned_of_them(name: str, options: list[str]) -> None:
    _, model, _ = built(name, *options)
    lm, tokenizer = model.part("lm"), model.tokenizer
    batch = documents(model, [0, CAPTIONS[0], 1, CAPTIONS[1]], [CAPTIONS[3], 2])
    n = model.part("connector").tokens
    rows = laid_out(batch["document"], 2, lm, n, [False, False])
    image, (a, b, c) = lm.place(n), tokenizer.pieces([CAPTIONS[0], CAPTIONS[1], CAPTIONS[3]])
    begin = [] if lm.gated else [tokenizer.bos]
    first = [*begin, *image, *a, *image, *b, tokenizer.eos]
    second = [tokenizer.bos, *c, *image, tokenizer.eos]
    assert rows.ids[0, : len(first)].tolist() == first and rows.ids[1, : len(second)].tolist() == second
    assert rows.last.tolist() == [len(first) - 1, len(second) - 1]
    said = rows.targets[0][rows.learned[0]].tolist()
    assert said == [*a, tokenizer.eos, *b, tokenizer.eos]  # each text ends, though only the last [EOS] is read
    assert rows.targets[1][rows.learned[1]].tolist() == [*c, tokenizer.eos]
    swapped = laid_out(batch["document"], 2, lm, n, [False, True])
    assert swapped.ids[1].tolist()[: len(begin) + len(image) + len(c)] == [*begin, *image, *c]
    assert swapped.targets[1][swapped.learned[1]].tolist() == [*c, tokenizer.eos]


@pytest.mark.parametrize(("name", "options"), [("flamingo", GATED), ("llava", PLAIN)])
def test_a_text_has_the_likelihood_that_it_has_behind_examples(name: str, options: list[str]) -> None:
    """Documents are read in training as few-shot examples are when the model is asked."""
    _, model, objectives = built(name, *options)
    open_gates(model)
    shots = FewShot(model, lambda images: pass_of(model, list(images)), torch.no_grad)
    pictures, texts = [picture(i) for i in range(3)], CAPTIONS[:3]
    total, count = 0.0, 0
    for k in range(3):
        before = [Example(pictures[i], texts[i], "") for i in range(k)]
        total += float(shots.loglikelihood([pictures[k]], [texts[k]], [""], [before])[0])
        count += len(model.tokenizer.pieces([texts[k]])[0]) + 1
    batch = documents(model, [part for i in range(3) for part in (i, texts[i])])
    own = objectives["document_words"]
    p = model.encode(batch)
    assert float(own(p).detach()) == pytest.approx(-total / count, rel=1e-4) and own.terms(p) == count


def test_a_captioned_image_is_a_document_of_two_parts() -> None:
    """The loss of captions is the same by either objective."""
    _, model, objectives = built("llava", *PLAIN)
    model.eval()
    batch = documents(model, *[[i, text] for i, text in enumerate(CAPTIONS)])
    p = model.encode(batch)
    pixels = to_pixels([picture(i) for i in range(4)])
    text = model.encode(Batch({"image": Images(pixels), "text": tokenized(model.tokenizer, CAPTIONS)}, 4))
    logits, ids, mask = text["text.logits"], text["text"].ids[:, 1:], text["text"].mask[:, 1:]
    want = torch.nn.functional.cross_entropy(logits[mask], ids[mask])
    torch.testing.assert_close(objectives["document_words"](p), want, atol=1e-5, rtol=1e-5)


def test_the_share_of_documents_whose_texts_come_behind_is_drawn() -> None:
    _, model, objectives = built("llava", *PLAIN)
    own, batch = objectives["document_words"], documents(model, *[[CAPTIONS[0], 0]] * 40)
    begun = {}
    for share in (0.0, 0.5, 1.0):
        own.next = share
        torch.manual_seed(0)
        ids = own.rows(batch["document"], 40).ids
        begun[share] = int((ids[:, 1] < 0).sum())
    assert begun[0.0] == 0 and begun[1.0] == 40 and 10 < begun[0.5] < 30


def test_flamingo_learns_from_documents_alone_in_what_it_adds() -> None:
    recipe, model, objectives = built("flamingo", *GATED)
    batch = documents(model, [0, CAPTIONS[0], 1, CAPTIONS[1]], [2, CAPTIONS[2]], [CAPTIONS[3], 3], [CAPTIONS[3]])
    losses, changed = learned(recipe, model, objectives, batch, steps=12)
    assert losses[-1] < losses[0] - 0.05 and parts_of(changed) == {"parts.connector", "parts.fusion"}
    variant = load_recipe("flamingo@documents")
    assert set(variant.stages[0].objectives) == {"document_words"} and set(variant.backbones) == {"vision", "lm"}


# --- sugar ---


def paths(a: int, b: int) -> list[list[tuple[int, int]]]:
    """All ways from the first to the last parts of two sequences, a step forwards in one or both at a time."""
    if (a, b) == (0, 0):
        return [[(0, 0)]]
    before = [(a - 1, b), (a, b - 1), (a - 1, b - 1)]
    return [[*path, (a, b)] for i, j in before if i >= 0 and j >= 0 for path in paths(i, j)]


def sequences() -> tuple[torch.Tensor, list[int]]:
    torch.manual_seed(3)
    lengths = [3, 1, 4, 2]
    parts = torch.nn.functional.normalize(torch.randn(4, 5, 6, dtype=torch.float64), dim=2)
    for row, n in enumerate(lengths):
        parts[row, n:] = 0
    return parts, lengths


def test_the_kernel_adds_up_all_paths() -> None:
    parts, lengths = sequences()
    x, plain = f64(parts), np.zeros((4, 4))
    for i, j in itertools.product(range(4), repeat=2):
        ways = paths(lengths[i] - 1, lengths[j] - 1)
        plain[i, j] = sum(math.prod(math.exp((x[i, a] @ x[j, b] - 1) / 0.5) for a, b in way) for way in ways)
    want = plain / np.sqrt(np.outer(plain.diagonal(), plain.diagonal()))
    found = f64(kernel_similarity(parts, 0.5))
    np.testing.assert_allclose(found, want, rtol=1e-9)
    assert len(paths(2, 3)) == 25 and np.allclose(found.diagonal(), 1)  # a Delannoy number


def test_sequences_without_parts_are_like_themselves_alone() -> None:
    parts, _ = sequences()
    parts[1] = 0
    found = f64(kernel_similarity(parts, 0.5))
    assert found[1].tolist() == [0, 1, 0, 0] and np.isfinite(found).all()


@pytest.mark.parametrize("rows", [None, slice(1, 3)])
def test_states_are_fitted_to_the_similarities_of_others(rows: slice | None) -> None:
    torch.manual_seed(1)
    states = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    alike = torch.rand(4, 4, dtype=torch.float64)
    unit, terms = f64(states) / np.linalg.norm(f64(states), axis=1, keepdims=True), []
    for i in range(4) if rows is None else range(1, 3):
        others = [j for j in range(4) if j != i]
        q = np.exp(f64(alike)[i, others] / 0.3)
        z = unit[others] @ unit[i] / 0.2
        terms.append(-np.sum(q / q.sum() * (z - np.log(np.exp(z).sum()))))
    found = fitted_similarity(states, alike, 0.3, 0.2, rows)
    assert float(found.detach()) == pytest.approx(np.mean(terms), rel=1e-9)
    assert torch.autograd.gradcheck(lambda s: fitted_similarity(s, alike, 0.3, 0.2, rows), (states,))


def test_vectors_of_parts_and_states_of_documents() -> None:
    _, model, _ = built("sugar", "adapters.lm.rank=2")
    model.eval()
    batch = documents(model, [0, CAPTIONS[0], 1], [CAPTIONS[1]], [2, CAPTIONS[2]])
    p, lm = model.encode(batch), model.part("lm")
    vectors = f64(p["document.part_vectors"])
    width = model.part("vision").width
    pooled = f64(p["document.images.tokens"].pooled)
    for (row, at), k in {(0, 0): 0, (0, 2): 1, (2, 0): 2}.items():
        np.testing.assert_allclose(vectors[row, at], [*(pooled[k] / np.linalg.norm(pooled[k])), *[0] * lm.width], atol=1e-6)
    for (row, at), k in {(0, 1): 0, (1, 0): 1, (2, 1): 2}.items():
        words = f64(lm.lm.embed(torch.tensor(model.tokenizer.pieces([CAPTIONS[k]])[0]))).mean(0)
        np.testing.assert_allclose(vectors[row, at], [*[0] * width, *(words / np.linalg.norm(words))], atol=1e-6)
    assert not vectors[1, 1:].any() and not vectors[0, 3:].any()
    for k, each in enumerate(([0, CAPTIONS[0], 1], [CAPTIONS[1]], [2, CAPTIONS[2]])):  # alone, without padding
        alone = model.encode(documents(model, each))["document.state"][0]
        torch.testing.assert_close(p["document.state"][k], alone, atol=1e-5, rtol=1e-4)


def test_sugar_writes_and_tells_documents_apart() -> None:
    recipe, model, objectives = built("sugar", "adapters.lm.rank=2")
    batch = documents(model, [0, CAPTIONS[0], 1], [CAPTIONS[1], 3], [2, CAPTIONS[2]], [CAPTIONS[0], 0])
    with torch.no_grad():
        before = float(objectives["document_similarity"](model.eval().encode(batch)))
    losses, changed = learned(recipe, model, objectives, batch, stage=1, steps=15)
    with torch.no_grad():
        after = float(objectives["document_similarity"](model.eval().encode(batch)))
    assert losses[-1] < losses[0] and after < before
    assert all(n.startswith("parts.connector") or "lora_" in n for n in changed)
    assert recipe.stages[1].objectives["document_similarity"].weight == 0.2
