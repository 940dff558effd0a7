"""Samples that come again and again, worlds with long tails, partial captions and habits, and tokens hidden in training."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from cli_fixture import make_photos
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.data.loader import loader_for
from diptych.data.scenes import open_scenes
from diptych.data.sources import open_source
from diptych.data.sources.repeated import Repeated, repeated
from diptych.data.text import Tokenizer
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives


def test_repeats_have_their_share_and_their_set() -> None:
    sources = {part: open_source(repeated("scenes:small?told=1&size=32", 7, 0.3, part)) for part in "ab"}
    a, b = sources["a"], sources["b"]
    assert isinstance(a, Repeated) and isinstance(b, Repeated) and a.base.address == "scenes:small?told=1&size=32&split=train"
    drawn = [[source.number(i) for i in range(1000)] for source in (a, b)]
    for source, numbers in zip((a, b), drawn, strict=True):
        often = Counter(n for n in numbers if n in source.members())
        assert sum(often.values()) == 300 and len(often) == 7 and max(often.values()) - min(often.values()) <= 1
    fresh = [[n for n in numbers if n not in source.members()] for source, numbers in zip((a, b), drawn, strict=True)]
    assert fresh[0] == fresh[1] == list(range(14, 714)), "the same fresh samples, none of them a member of either set"
    assert not set(a.members()) & set(b.members()) and not set(a.ordinary()) & set(drawn[0])
    assert a[0].id == a.base[a.number(0)].id and a.image_size == 32
    assert a.fingerprint() != b.fingerprint() and a.split("train") is a
    assert a.split("test").address == open_source("scenes:small?told=1&size=32").split("test").address


def test_a_finite_source_repeats_within_its_epoch(tmp_path: object) -> None:
    photos = make_photos(tmp_path / "photos", 60)  # type: ignore[operator]
    base = open_source(photos).split("train")
    source = open_source(repeated(photos, 4, 0.5))
    assert len(source) == 2 * (len(base) - 8)
    often = Counter(source[i].id for i in range(len(source)))
    members = {base[i].id for i in range(4)}
    assert sum(often[m] for m in members) == len(source) // 2
    assert all(n == 1 for item, n in often.items() if item not in members)
    assert {base[i].id for i in range(4, 8)}.isdisjoint(often), "the other set's samples are never shown"


@pytest.mark.parametrize(
    ("items", "share", "words"), [(30, 0.5, "take 1 to"), (2, 1.0, "between 0 and 1"), (2, 0.0, "between 0 and 1")]
)
def test_repeats_that_cannot_be_are_refused(items: int, share: float, words: str, tmp_path: object) -> None:
    photos = make_photos(tmp_path / "photos", 30)  # type: ignore[operator]
    with pytest.raises(DiptychError, match=words):
        open_source(repeated(photos, items, share))


def test_concepts_of_a_long_tail_are_drawn_as_their_rank_says() -> None:
    world = open_scenes("scenes:small?zipf=1&size=32").world
    order = sorted(world.seen, key=lambda name: -world.weights[name])
    weights = np.array([world.weights[n] for n in order])
    assert weights[0] == max(world.weights.values()) and len(set(weights)) == len(order)
    source = open_scenes("scenes:small?zipf=1&size=32&placed=1&counted=0")
    found = Counter(source.graph(i).things[0].concept for i in range(4000))
    expected = weights / weights.sum()
    seen = np.array([found[n] for n in order]) / 4000
    assert np.abs(seen - expected).max() < 5 * np.sqrt(0.25 / 4000)
    assert order != list(world.seen), "ranks are shuffled: the first concepts are the plainest drawings"
    uniform = Counter(open_scenes("scenes:small?size=32&placed=1&counted=0").graph(i).things[0].concept for i in range(2400))
    assert max(uniform.values()) < 2 * min(uniform.values())


def test_new_options_leave_worlds_that_do_not_use_them_as_they_were() -> None:
    plain, spelled = open_scenes("scenes:small"), open_scenes("scenes:small?told=0&zipf=0&habit=0")
    assert plain.fingerprint() == spelled.fingerprint() != open_scenes("scenes:small?told=1").fingerprint()
    assert (plain[5].image == spelled[5].image).all() and plain[5].captions == spelled[5].captions


def test_captions_may_leave_groups_untold() -> None:
    source = open_scenes("scenes:medium?told=1&absent=1&long=1&size=32")
    plain = open_scenes("scenes:medium?absent=1&long=1&size=32")
    untold = 0
    for i in range(200):
        sample, labels = source[i], source[i].extra["labels"]
        assert (sample.image == plain[i].image).all()
        for caption in sample.captions:
            said = caption.split(" no ")[0]
            for label in labels[1:]:
                assert f" {label}" not in said.replace(labels[0], ""), caption
                assert not caption.endswith(f"no {label}"), "what the picture shows is not denied, told or not"
                untold += 1
    assert untold > 100


def test_habits_colour_most_and_pairs_differ_in_colour_alone() -> None:
    source = open_scenes("scenes:small?habit=0.9&size=32")
    things = [t for i in range(400) for t in source.graph(i).things]
    share = np.mean([t.colour == source.world.habits[t.concept] for t in things if t.colour])
    assert 0.85 < share < 0.97
    for (habitual, contrary), (first, second) in source.split("test").habit_pairs(24).values():
        assert habitual.shape == contrary.shape and (habitual != contrary).any()
        differing = [(a, b) for a, b in zip(first.split(), second.split(), strict=True) if a != b and {a, b} != {"a", "an"}]
        assert len(differing) == 1 and differing[0][0] in source.world.habits.values()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    source = open_scenes("scenes:small?size=32")
    return Tokenizer.train([c for i in range(200) for c in source[i].captions], 400, 32)


def test_hidden_tokens_have_their_share_and_spare_the_marks(tokenizer: Tokenizer) -> None:
    source = open_scenes("scenes:small?size=32")
    plain, masked = (
        loader_for(source, tokenizer, 32, 256, fields=("image", "text", "negatives"), text_mask=share).batch(3)
        for share in (0.0, 0.3)
    )
    ids = plain["text"].ids
    words = (ids != tokenizer.bos) & (ids != tokenizer.eos) & (ids != tokenizer.pad)
    hidden = masked["text"].ids == tokenizer.mask
    assert (masked["text"].ids == ids)[~hidden].all() and not (hidden & ~words).any()
    assert abs(hidden.sum() / words.sum() - 0.3) < 4 * np.sqrt(0.21 / int(words.sum()))
    assert torch.equal(masked["text"].mask, plain["text"].mask) and torch.equal(masked["text"].meaning, plain["text"].meaning)
    wrong = masked["negatives"]
    assert (wrong.ids == tokenizer.mask).any()
    row = int(wrong.owner[0])
    width = min(ids.shape[1], wrong.ids.shape[1])
    both = words[row, :width] & (plain["negatives"].ids[0, :width] > 3)
    assert torch.equal((wrong.ids[0, :width] == tokenizer.mask)[both], hidden[row, :width][both])


def test_hidden_tokens_are_a_function_of_the_step(tokenizer: Tokenizer) -> None:
    source = open_scenes("scenes:small?size=32")
    one, two = (loader_for(source, tokenizer, 32, 16, seed=1, text_mask=0.5) for _ in range(2))
    one.batch(0)
    again, other = one.batch(7)["text"].ids, one.batch(8)["text"].ids
    whole = two.batch(7)["text"].ids
    assert torch.equal(again, whole) and not torch.equal(other, whole)
    halves = [two.rows(7, 0, 8)["text"].ids, two.rows(7, 8, 16)["text"].ids]
    for part, rows in zip(halves, (whole[:8], whole[8:]), strict=True):
        assert torch.equal(part, rows[:, : part.shape[1]])


def test_tokens_that_must_be_predicted_may_not_be_hidden(tokenizer: Tokenizer) -> None:
    recipe = load_recipe("coca", {"data.text_mask": 0.3})
    model = build_model(recipe, tokenizer, 32)
    with pytest.raises(DiptychError, match=r"text_mask hides tokens that stages\.0\.objectives\.next_token has to predict"):
        build_objectives(recipe, model)
