"""Before training: captions from which little can be learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sources_fixture
from conversations_fixture import tokenizer
from diptych.config.recipe import load_recipe
from diptych.data.notes import caption_notes
from diptych.data.text import Tokenizer
from diptych.training.start.describe import describe
from diptych.training.start.setup import set_up
from sources_fixture import picture, put

own_cache = sources_fixture.own_cache  # pytest finds it here
LONG = "this photograph was taken on a sunny afternoon in the studio by an unknown author and shows at last"


def trained(captions: list[str], room: int) -> Tokenizer:
    return Tokenizer.train(captions, 300, room)


@pytest.mark.parametrize("many", [2, 40])
def test_captions_that_are_equal_after_the_cut(many: int) -> None:
    captions = [*(f"{LONG} number {i}" for i in range(many)), "a short one"]
    (note,) = caption_notes(captions, trained(captions, 24), "data.tokenizer.max_length")
    assert f"{many} of {many + 1} captions are longer than 24 tokens" in note
    assert f"; {many} of them are then equal to another one" in note and "--set data.tokenizer.max_length=" in note
    room = int(note.partition("max_length=")[2].partition(",")[0])
    assert caption_notes(captions, trained(captions, room)) == []
    assert len(caption_notes(captions, trained(captions, room - 1))) == 1


def test_captions_that_are_cut_but_differ_and_few_that_are_cut() -> None:
    captions = [f"{i} {LONG}" for i in range(10)]
    (note,) = caption_notes(captions, trained(captions, 24))
    assert "10 of 10 captions are longer" in note and "equal" not in note and note.endswith("; shorten them")
    assert caption_notes([*captions[:1], *(f"cat {i}" for i in range(200))], trained(captions, 24)) == []


@pytest.mark.parametrize(("same", "words"), [(10, "all 10 captions are the same, 'a cat'"), (6, "6 of 10 captions are the same")])
def test_equal_captions(same: int, words: str) -> None:
    captions = ["a cat", "A cat."] * 5
    captions[same:] = [f"dog {i}" for i in range(10 - same)]
    (note,) = caption_notes(captions, trained(captions, 24))
    assert note.startswith(words)
    assert caption_notes(["a cat"] * 5 + [f"dog {i}" for i in range(5)], trained(captions, 24)) == []


def test_a_language_models_tokenizer() -> None:
    given = tokenizer(None)
    given.max_length = 8
    (note,) = caption_notes([f"{LONG} {i}" for i in range(3)], given)
    assert "3 of 3 captions are longer than 8 tokens" in note and "3 of them are then equal" in note and given.max_length == 8


@pytest.mark.usefixtures("own_cache")
def test_the_user_reads_it_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(20):
        put(f"{tmp_path}/data/{i}.png", picture(i))
        put(f"{tmp_path}/data/{i}.txt", f"{LONG} {np.base_repr(i, 3)}")
    small = [f"parts.{p}.{k}" for p in ("vision", "text") for k in ("depth=1", "width=32", "heads=2")]
    given = [*small, "device=cpu", f"data.train=folder:{tmp_path}/data", "data.tokenizer.vocab_size=300", "data.image_size=32"]
    describe(set_up(load_recipe("clip", given)), tmp_path / "run")
    note = capsys.readouterr().err
    assert "captions are longer than 32 tokens" in note and "nothing distinguishes their pictures" in note
    describe(set_up(load_recipe("clip", [*given, "data.tokenizer.max_length=200"])), tmp_path / "other")
    assert "captions" not in capsys.readouterr().err
