"""The measurement of conse on one's own pictures: recall, parts, and no held-out picture in any choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bench import conse as bench
from diptych.models.pretrained.conse import ClassSpace, imagenet_classes


def outputs(n: int = 30, seed: int = 0) -> bench.Outputs:
    """Pictures of one class each with two captions near the class's vector, as towers would give them."""
    rng = np.random.default_rng(seed)
    vectors = torch.nn.functional.normalize(torch.tensor(rng.standard_normal((1000, 384)), dtype=torch.float32), dim=1)
    classes = rng.permutation(1000)[:n]
    logits = torch.tensor(rng.standard_normal((n, 1000)), dtype=torch.float32)
    logits[np.arange(n), classes] += 6
    owner = np.repeat(np.arange(n), 2)
    sentences = vectors[classes[owner]] + 0.07 * torch.tensor(rng.standard_normal((2 * n, 384)), dtype=torch.float32)
    pooled = torch.relu(torch.tensor(rng.standard_normal((n, 1280)), dtype=torch.float32))
    towers = {("lite0", side): (pooled, logits) for side in (224, 256)}
    crops = (pooled.repeat_interleave(bench.VIEWS, 0), logits.repeat_interleave(bench.VIEWS, 0))
    templates = dict.fromkeys(bench.GRID["template"], vectors)
    return bench.Outputs(sentences, owner, towers, crops, None, templates)


def test_recall_equals_a_plain_count() -> None:
    rng = np.random.default_rng(0)
    image, text = (torch.tensor(rng.standard_normal((n, 4)).round(1), dtype=torch.float32) for n in (9, 14))
    text[3] = 0  # all pictures are as similar: none is found
    owner, asked, gallery = rng.integers(0, 9, 14), np.array([1, 4, 6]), np.array([0, 1, 4, 6, 8])
    expected = []
    for j, i in enumerate(owner):
        if i in asked:
            own = float(text[j] @ image[i])
            better = sum(float(text[j] @ image[k]) >= own for k in gallery if k != i)
            expected.append([better < 1, better < 5])
    assert len(expected) >= 3
    np.testing.assert_array_equal(bench.hits(image, text, owner, asked, gallery), np.array(expected, dtype=float))


def test_parts_are_disjoint_and_whole() -> None:
    parts = bench.parts_of(np.arange(23), 5, seed=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(23)) and {len(p) for p in parts} == {4, 5}


def test_the_two_centres() -> None:
    o, train = outputs(), np.arange(20)
    image, text = bench.conse(o, bench.Setting(), train)
    space = ClassSpace(o.vectors[bench.TEMPLATE])
    torch.testing.assert_close(image, space.image(o.towers["lite0", 256][1]))
    torch.testing.assert_close(text, space.text(o.sentences))
    image, text = (x.numpy().astype(np.float64) for x in bench.conse(o, bench.Setting(centre="training"), train))
    mean = space.mean(o.towers["lite0", 256][1]).numpy().astype(np.float64)
    expected = mean - mean[train].mean(0)
    np.testing.assert_allclose(image, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    sentences = o.sentences.numpy().astype(np.float64)
    sentences /= np.linalg.norm(sentences, axis=1, keepdims=True)
    expected = sentences - sentences[np.isin(o.owner, train)].mean(0)
    np.testing.assert_allclose(text, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("name", ["lit", "lit@conse"])
def test_what_is_chosen_and_learned_does_not_depend_on_the_held_out_pictures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STEPS", (3, 8))
    train, part = np.arange(24), np.arange(24, 30)
    o, other = outputs(), outputs()
    held_out = np.isin(other.owner, part)
    other.sentences[held_out] = other.sentences[held_out].flip(0) * -1
    for pooled, logits in [*other.towers.values(), other.crops]:
        each = len(pooled) // o.pictures
        pooled[24 * each :] = 0.5
        logits[24 * each :] = 0.0
    candidates = [s for s in bench.settings(o) if s.classes in (5, 1000) and s.temperature == 2.0]
    assert bench.chosen_within(o, candidates, train) == bench.chosen_within(other, candidates, train)
    (first, steps), (second, again) = (bench.stopped_early(x, name, True, train, 0) for x in (o, other))
    assert steps == again
    torch.testing.assert_close(first[0][train], second[0][train])
    assert not torch.allclose(first[0][part], second[0][part])


def test_maps_begin_as_conse_and_learn() -> None:
    o, train = outputs(), np.arange(24)
    plain = bench.conse(o, bench.Setting(), train)
    for before, after in zip(plain, bench.learned(o, "lit@conse", False, 0, train, 0), strict=True):
        torch.testing.assert_close(after, before)
    found = bench.learned(o, "lit@conse", False, 10, train, 0)

    def loss(vectors: Any) -> float:
        texts = np.searchsorted(o.owner, train)  # the first caption of each
        logits = 10 * vectors[0][train] @ vectors[1][texts].T
        return float(torch.nn.functional.cross_entropy(logits, torch.arange(len(train))))

    assert loss(found) < loss(plain) - 0.01


def test_the_report_names_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STEPS", (2,))
    monkeypatch.setattr(
        bench,
        "GRID",
        {**bench.GRID, "classes": (5, 50), "temperature": (2.0,), "template": (*bench.GRID["template"][:1], bench.TEMPLATE)},
    )
    o = outputs()
    lines = "\n".join(bench.report(o, bench.parts_of(np.arange(o.pictures), 3, 0), 0, True))
    assert lines.startswith("30 pictures, 60 captions, 3 parts of 10 pictures")
    for words in (
        "| as `conse` is |",
        "| classes 5 |",
        "| centre training |",
        "| `lit`, steps: 2, 2, 2 |",
        "| `lit@conse`, random crops",
    ):
        assert words in lines, words
    assert len(imagenet_classes()) == 1000
