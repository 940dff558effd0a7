"""Answers piece by piece are the same answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conversations_fixture import CHATML, Talker, table, tokenizer
from diptych.core.errors import DiptychError
from diptych.core.sample import Turn
from diptych.core.streaming import Conversing, Tokenizing, Writing, safe
from diptych.data.conversations.turns import question
from diptych.inference.run import TrainedModel
from diptych.models.pretrained.tokenizer import tiny_tokenizer

BYTES, PIECES = tokenizer(CHATML), tiny_tokenizer(["the red fox is left of a blue key"] * 3)


def plain_answer(whole: str, stop: list[str]) -> str:
    """The text before the first stop string, by trying every position."""
    for at in range(len(whole)):
        if any(whole[at : at + len(s)] == s for s in stop):
            return whole[:at].strip()
    return whole.strip()


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet="ab \n.é漢😀\ufffd", max_size=14),
    st.lists(st.sampled_from(["ab", "\nb", "a b", ".", "漢a", "b\n", "😀😀"]), max_size=3),
    st.booleans(),
)
def test_pieces_are_together_the_answer(text: str, stop: list[str], bytewise: bool) -> None:
    """Tokens of single bytes: characters and stop strings come in parts."""
    coder = BYTES if bytewise else PIECES
    (ids,) = coder.pieces([text])
    wholes = [coder.decode(ids[: k + 1]) for k in range(len(ids))]
    kept = next((k for k, whole in enumerate(wholes) if any(s in whole for s in stop)), len(wholes) - 1)
    writing = Writing(iter([(w, w) for w in wholes]), stop, 3, lambda: True)
    pieces = list(writing)
    assert all(pieces) and "".join(pieces) == plain_answer(wholes[kept] if wholes else "", stop)
    assert writing.tokens == min(kept + 1, len(wholes)) and writing.finish == "stop"


def test_what_is_held_back() -> None:
    assert safe("one tw", ("two",)) == "one" and safe("one two", ("two",)) == "one" and safe("one to", ("two",)) == "one to"
    assert safe("caf\ufffd", ()) == "caf" and safe("a \n", ()) == "a"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """With random weights, which write at random."""
    talker = Talker(table(tmp_path_factory.mktemp("talk")), 2)
    return TrainedModel("talker", talker.recipe, talker.model, talker.objectives, torch.device("cpu"))


PICTURES = [np.random.default_rng(i).integers(0, 256, (32, 40, 3), dtype=np.uint8) for i in range(2)]
TALKS = [
    (PICTURES[:1], [question("what colour?")]),
    (PICTURES, [Turn("system", "be brief"), question("which?", 2), Turn("assistant", "the first"), Turn("user", "why?")]),
    ([], [Turn("user", "hello")]),
]


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0, "seed": 3}, {"top_p": 0.8, "seed": 1}, {"repetition_penalty": 1.3}])
def test_a_stream_is_what_converse_returns(model: TrainedModel, how: dict[str, float]) -> None:
    assert isinstance(model, Conversing) and isinstance(model, Tokenizing)
    for images, turns in TALKS:
        whole = model.converse(images, turns, 12, **how)
        writing = model.stream(images, turns, 12, **how)
        assert "".join(writing) == whole
        assert 1 <= writing.tokens <= 12 and (writing.finish == "length") == (writing.tokens == 12 and not writing._ended())
        assert model.answering is not None and writing.prompt_tokens == len(model.answering._prompt(turns, len(images)))


def test_a_stop_string_ends_a_stream(model: TrainedModel) -> None:
    images, turns = TALKS[0]
    whole = model.converse(images, turns, 24)
    stops = {whole[at : at + 2] for at in range(1, len(whole) - 1) if not whole[at : at + 2].isspace()}
    assert stops
    for stop in sorted(stops)[:3]:
        writing = model.stream(images, turns, 24, stop=(stop,))
        assert "".join(writing) == model.converse(images, turns, 24, stop=(stop,)) == whole[: whole.index(stop)].strip()
        assert writing.finish == "stop"


def test_a_stream_that_is_closed_computes_nothing_more(model: TrainedModel) -> None:
    steps = 0

    def counted() -> Iterator[tuple[str, str]]:
        nonlocal steps
        for k in itertools.count(1):
            steps += 1
            yield "word " * k, "word " * k

    writing = Writing(counted(), (), 0, lambda: False)
    pieces = iter(writing)
    assert next(pieces) == "word"
    pieces.close()  # type: ignore[attr-defined]
    assert steps == 1 and writing.finish is None
    assert not torch.is_inference_mode_enabled()
    stream = iter(model.stream(*TALKS[0], 12))
    next(stream, None)
    assert not torch.is_inference_mode_enabled(), "the caller's own work is not part of it"


def test_errors_come_before_the_first_piece(model: TrainedModel) -> None:
    with pytest.raises(DiptychError, match="beams"):
        model.stream(*TALKS[0], 8, beams=2)
    with pytest.raises(DiptychError, match="image count mismatch"):
        model.stream([], [question("what?")])
    with pytest.raises(DiptychError, match="unknown setting 'topp'"):
        model.stream(*TALKS[0], 8, topp=1)


def test_tokens_as_numbers(model: TrainedModel) -> None:
    (ids,) = model.token_ids(["a red fox"])
    assert model.text_from(ids) == "a red fox"
    with pytest.raises(DiptychError, match="has no token 99999999"):
        model.text_from([99999999])
