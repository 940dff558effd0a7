"""Wrong phrases of regions, phrases against each other, concepts of a teacher, long captions: against plain loops in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Region, Sample
from diptych.data.fields import Context, Draw, build_fields
from diptych.data.fields.text import tokenized
from diptych.data.regions.chunks import chunks
from diptych.data.text import Tokenizer
from diptych.models.text.stretched import stretched
from diptych.objectives.regions.concepts import concept_losses
from diptych.objectives.regions.wrong import PhraseContrast, RegionNegatives, margin_ranking, nearest_phrases, own_cross_entropy
from engine_fixture import Little
from plain_fixture import f64
from regions_fixture import PHRASES, batch_for, model_of

WRONG = ["a blue fox", "a red owl", "two red keys", "a green heart", "a blue key"]
OWNER = [0, 0, 1, 2, 2]


@pytest.fixture(scope="module")
def model():
    return model_of("x-vlm")


def with_wrong(model, wrong=WRONG, owner=OWNER):
    batch = batch_for(model)
    texts = tokenized(model.tokenizer, wrong, owner=torch.tensor(owner))
    return model.encode(batch.with_(regions=replace(batch["regions"], negatives=texts)))


def test_the_three_losses_equal_the_loops(model) -> None:
    p = with_wrong(model)
    image, text = f64(p["regions.embedding"]), f64(p["regions.phrases.embedding"])
    wrong, scale, margin = f64(p["regions.negatives.embedding"]), 1 / 0.07, 0.3
    own, columns, hinge = [], [], []
    for i in range(3):
        right = scale * image[i] @ text[i]
        hard = [scale * image[i] @ wrong[k] for k in range(5) if OWNER[k] == i]
        own.append(math.log(sum(math.exp(v) for v in [right, *hard])) - right)
        hinge += [max(0.0, v - right + margin) for v in hard]
        every = [scale * image[i] @ v for v in [*text, *wrong]]
        columns.append(math.log(sum(math.exp(v) for v in every)) - right)
        columns.append(math.log(sum(math.exp(scale * text[i] @ v) for v in image)) - right)
    for options, expected in (
        ({}, np.mean(own)),
        ({"own": 0.0, "columns": 1.0}, np.mean(columns)),
        ({"own": 0.0, "rank": 1.0}, np.mean(hinge)),
        ({"own": 3.0, "columns": 0.6, "rank": 0.4}, 3 * np.mean(own) + 0.6 * np.mean(columns) + 0.4 * np.mean(hinge)),
    ):
        objective = RegionNegatives(model, **options)
        objective.margin.fill_(margin)
        assert float(objective(p).detach()) == pytest.approx(expected, abs=2e-4), options


def test_the_margin_is_the_mean_difference_of_the_step_before(model) -> None:
    p = with_wrong(model)
    objective = RegionNegatives(model, rank=1.0)
    objective(p)
    image, text, wrong = (f64(p[name]) for name in objective.couples)
    expected = np.mean([(image[i] @ text[i] - image[i] @ wrong[k]) / 0.07 for k, i in enumerate(OWNER)])
    assert float(objective.margin) == 0
    objective.after_step(lambda *values: list(values))
    assert float(objective.margin) == pytest.approx(min(max(expected, 0), 10), abs=1e-4)
    with torch.no_grad():
        objective(p)
    assert objective._next is None, "validation does not move it"


def test_a_region_without_wrong_phrases_does_not_count(model) -> None:
    right, wrong = torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    owner = torch.tensor([2, 2])
    losses = own_cross_entropy(right, wrong, owner)
    assert losses.shape == (1,)
    assert float(losses) == pytest.approx(math.log(sum(map(math.exp, [right[2], *wrong]))) - float(right[2]))
    p = model.encode(batch_for(model))  # none has any
    assert float(RegionNegatives(model)(p).detach()) == 0


def test_gradients_equal_finite_differences() -> None:
    torch.manual_seed(0)
    right, wrong = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (3, 5))
    owner = torch.tensor(OWNER)
    assert torch.autograd.gradcheck(lambda a, b: own_cross_entropy(a, b, owner), (right, wrong))
    assert torch.autograd.gradcheck(lambda a, b: margin_ranking(a, b, owner, 0.5), (right, wrong))
    text = torch.nn.functional.normalize(torch.randn(5, 3, dtype=torch.float64), dim=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: nearest_phrases(x, 2, 0.95), (text,))
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    taught = torch.randn(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: sum(concept_losses(x, taught, 0.5, 0.7)), (student,))


@pytest.mark.parametrize("most", [1, 2, 10])
def test_phrases_against_their_nearest_ones(most: int) -> None:
    rng = np.random.default_rng(0)
    text = rng.normal(size=(6, 4))
    text[5] = text[0] + 1e-3  # the same, nearly
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    expected = []
    for i in range(6):
        cosines = sorted((text[i] @ text[j] for j in range(6) if j != i and text[i] @ text[j] <= 0.95), reverse=True)[:most]
        expected.append(math.log(sum(math.exp(c) for c in cosines)))
    np.testing.assert_allclose(nearest_phrases(torch.tensor(text), most, 0.95).numpy(), expected, atol=1e-12)
    assert nearest_phrases(torch.ones(2, 1), 10, 0.95).tolist() == [0, 0]


def test_phrase_contrast_is_their_mean(model) -> None:
    p = model.encode(batch_for(model))
    text = f64(p["regions.phrases.embedding"])
    expected = [math.log(sum(math.exp(text[i] @ text[j]) for j in range(3) if j != i)) for i in range(3)]
    assert float(PhraseContrast(model, same=1.0)(p).detach()) == pytest.approx(np.mean(expected), abs=1e-5)


# --- RegionCLIP ---


def test_concepts_of_a_teacher_equal_the_loops() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.uniform(-1, 1, (4, 5)), rng.uniform(-1, 1, (4, 5))
    label = teacher.argmax(1)
    for i, (contrast, divergence) in enumerate(
        zip(*concept_losses(torch.tensor(student), torch.tensor(teacher), 0.2, 0.3), strict=True)
    ):
        logits = {c: student[i, c] / 0.2 for c in set(label)}
        assert float(contrast) == pytest.approx(math.log(sum(map(math.exp, logits.values()))) - logits[label[i]])
        a, b = (np.exp(x[i] / 0.3) / np.exp(x[i] / 0.3).sum() for x in (teacher, student))
        assert float(divergence) == pytest.approx(float((a * np.log(a / b)).sum()))


def test_region_clip_learns_from_its_copy() -> None:
    little = Little("region-clip", batch_size=6, stage="regions")
    little.model.update_teachers(0.0)
    losses = little.step(None).losses
    assert float(losses["region_concepts"]) >= 0 and math.isfinite(float(losses["region_concepts"]))
    whole, pieces = little.gradients(None), little.gradients(2)
    for name, gradient in whole.items():
        assert (pieces[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize(("name", "stage"), [("fg-clip", "regions"), ("fg-clip2", "regions"), ("umg-clip", "main")])
def test_the_recipes_give_gradients_whole_and_in_pieces(name: str, stage: str) -> None:
    little = Little(name, batch_size=6, stage=stage)
    whole, pieces = little.gradients(None), little.gradients(2)
    for n, gradient in whole.items():
        assert (pieces[n] - gradient).norm() <= 2e-4 * gradient.norm() + 1e-6, n
    assert whole["0.parts.vision.stem.conv1.weight"].norm() > 0 and whole["0.parts.text.embedding.weight"].norm() > 0


# --- texts ---


def test_positions_are_stretched_as_the_authors_do() -> None:
    rng = np.random.default_rng(0)
    short = rng.normal(size=(9, 3))
    keep, expected = 3, []
    expected += list(short[:keep])
    for i in range(keep, 8):
        expected += [((4 - k) * short[i] + k * short[i + 1]) / 4 for k in range(4)]
    expected += [short[8] + k * (short[8] - short[7]) / 4 for k in range(4)]
    np.testing.assert_allclose(stretched(torch.tensor(short), keep).numpy(), np.stack(expected), atol=1e-12)
    with pytest.raises(DiptychError, match=r"data\.tokenizer\.max_length is 16"):
        model_of("fg-clip", "parts.text.keep=9")


def test_noun_chunks_by_rule() -> None:
    found = chunks("A photo of a big red fox left of two keys, sleeping beside the Blue hearts.")
    assert [(c.text, c.head) for c in found] == [("a big red fox", "fox"), ("two keys", "keys"), ("the Blue hearts", "hearts")]
    text = "there is a fox"
    assert [text[c.start : c.end] for c in chunks(text)] == ["a fox"] and chunks("of the") == []


def field_of(name: str, **options):
    tokenizer = Tokenizer.train(PHRASES, 400, 16)
    source = [Sample(str(i), text=Captions(["two keys and a fox", "a fox"])) for i in range(3)]
    return build_fields([name], Context(tokenizer=tokenizer, options=options, source=source))[name], tokenizer  # type: ignore[arg-type]


def rows_of(field, samples):
    return [Draw(0, i, s, {field.name: field.fit(s, None)}) for i, s in enumerate(samples)]


def test_several_captions_of_a_sample() -> None:
    from diptych.data.fields.captions import CaptionsField, ConceptsField

    tokenizer = Tokenizer.train(PHRASES, 400, 32)
    samples = [
        Sample("a", text=Captions(["a fox", "a red fox. two keys", "a fox"])),
        Sample("b", text=Captions(["a heart"]), regions=[Region((0, 0, 1, 1), "a blue heart")]),
    ]
    every = CaptionsField("captions", tokenizer)
    texts = every.collate(rows_of(every, samples))
    assert texts.strings == ("a fox", "a red fox. two keys", "a heart") and texts.owner.tolist() == [0, 0, 1]
    longest = CaptionsField("captions", tokenizer, take="longest", most=1)
    assert longest.collate(rows_of(longest, samples)).strings == ("a red fox. two keys", "a heart")
    parts = CaptionsField("captions", tokenizer, sentences=True)
    assert parts.collate(rows_of(parts, samples)).strings == ("a fox", "a red fox.", "two keys", "a heart")
    phrases = CaptionsField("captions", tokenizer, of="regions")
    assert phrases.fit(samples[1], None) == ["a blue heart"]
    one = CaptionsField("captions", tokenizer, most=1)
    assert len({one.collate([Draw(0, k, samples[0], {"captions": one.fit(samples[0], None)})]).strings for k in range(30)}) == 2
    concepts = ConceptsField("concepts", tokenizer, ["fox", "owl"], most=2)
    made = concepts.collate(rows_of(concepts, samples))
    assert made.classes.strings == ("a photo of a fox", "a photo of an owl") and len(made) == 2


def test_concepts_are_counted_in_captions() -> None:
    from diptych.data.fields.captions import counted_concepts

    source = [Sample(str(i), text=Captions(["two keys and a fox", "a fox"])) for i in range(3)]
    assert counted_concepts(source) == ["fox", "keys"]
