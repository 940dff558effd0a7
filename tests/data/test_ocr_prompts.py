"""The words that a reader sees in pictures, as a part of prompts: order, boxes, engines; training and asking see the same tokens."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conversations_fixture import Talker
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample, Turn
from diptych.data.conversations.template import IMAGE_ID
from diptych.data.ocr import Line, OcrPrompt, Reader, open_prompt, ordered, told
from diptych.data.ocr.readers import Rapid, Truth, region_of_interest, resized
from diptych.data.sources import open_source
from diptych.inference.generate import decoding_of
from diptych.inference.run import TrainedModel


def bright(picture: np.ndarray) -> list[tuple[str, tuple[float, float, float, float]]]:
    """A reader of one's own: says where the picture is bright."""
    rows, columns = np.nonzero(picture.sum(-1) > 700)
    if not len(rows):
        return []
    return [("bright", (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))]


class Twice(Reader):
    """A class of one's own with an option."""

    def __init__(self, *, word: str):
        self.word = word

    def read(self, picture: np.ndarray) -> list[Line]:
        return [Line(self.word, (0, 0, 5, 5)), Line(self.word, (5, 0, 10, 5))]


def test_lines_stand_in_reading_order() -> None:
    lines = [Line("d", (0, 40, 20, 50)), Line("b", (30, 3, 50, 13)), Line("c", (60, 0, 80, 9)), Line("a", (0, 0, 20, 10))]
    assert [line.text for line in ordered(lines)] == ["a", "b", "c", "d"]
    assert [line.text for line in ordered([Line("low", (0, 9, 9, 20)), Line("high", (50, 0, 60, 10))])] == ["high", "low"]
    assert ordered([]) == []


def test_the_words_are_written_with_boxes_in_hundredths() -> None:
    prompt = OcrPrompt(Twice(word="no <image> entry"))
    picture = np.zeros((10, 20, 3), np.uint8)
    assert prompt.of_picture(picture) == "text in the picture: no entry <0 0 25 50>, no entry <25 0 50 50>"
    assert OcrPrompt(Twice(word="x"), places=False, most=1).of_picture(picture) == "text in the picture: x"
    assert prompt.written([], (4, 4)) == "text in the picture: none"
    large = [Line("small", (0, 0, 2, 2)), Line("big", (0, 5, 9, 9)), Line("wide", (0, 2, 9, 4))]
    assert OcrPrompt(Twice(word="x"), places=False, most=2).written(large, (10, 10)) == "text in the picture: wide, big"


@pytest.mark.parametrize(
    ("text", "lines", "expected"),
    [
        ("<image>\nwhat?", ["A"], "<image>\nA\nwhat?"),
        ("<image>\n<image>\nboth?", ["A", "B"], "<image>\n<image>\nA\nB\nboth?"),
        ("is <image> or <image>?", ["A", "B"], "is <image>\nA\nor <image>\nB\n?"),
        ("describe <image>", ["A"], "describe <image>\nA"),
        ("no picture", ["A"], "no picture"),
    ],
)
def test_words_stand_behind_their_pictures(text: str, lines: list[str], expected: str) -> None:
    assert told([Turn("user", text)], lines) == [Turn("user", expected)]


def test_words_of_later_pictures_stand_behind_those() -> None:
    turns = [Turn("user", "<image>\none"), Turn("assistant", "yes"), Turn("user", "<image>\ntwo")]
    assert [t.text for t in told(turns, ["A", "B"])] == ["<image>\nA\none", "yes", "<image>\nB\ntwo"]


def test_readers_are_opened_by_kind() -> None:
    assert open_prompt(None) is None
    assert (
        open_prompt({"kind": f"{__name__}:Twice", "word": "go", "places": False}).of_picture(np.zeros((9, 9, 3), np.uint8))
        == "text in the picture: go, go"
    )
    picture = np.zeros((10, 20, 3), np.uint8)
    picture[5:, 10:] = 255
    assert open_prompt(f"{__name__}:bright").of_picture(picture) == "text in the picture: bright <50 50 100 100>"
    for given, message in (
        ("rapidocd", "there is no reader 'rapidocd'; did you mean 'rapidocr'"), ({"kind": "truth", "mised": 1}, "unknown option 'mised'"),
        ({"kind": "truth", "missed": 2}, "missed: expected float"), ({"places": True}, "expected a kind of reader"),
        ({"kind": f"{__name__}:bright", "word": "x"}, "takes no options"), ({"kind": "truth", "most": 0}, "most: expected int"),
    ):  # fmt: skip
        with pytest.raises(DiptychError, match=message):
            open_prompt(given)


def test_the_truth_of_a_sample_and_of_its_picture_alone() -> None:
    source = open_source("scenes:text?split=test")
    reader = Truth(source="scenes:text", search=30)
    for i in (7, 3, 21):
        sample = source[i]
        (lines,) = reader.of_sample(sample)
        assert [w for line in lines for w in line.text.split()] == [w["text"] for w in sample.extra["words"]]
        assert reader.read(sample.image.copy()) == lines
        for line in lines:  # a note of two words is one line around both
            inside = [w for w in sample.extra["words"] if w["text"] in line.text.split()]
            assert line.box == (
                min(w["box"][0] for w in inside),
                min(w["box"][1] for w in inside),
                max(w["box"][2] for w in inside),
                max(w["box"][3] for w in inside),
            )
    assert reader.read(source[31].image) == [] and Truth().read(source[0].image) == []
    assert reader.of_sample(Sample("x", image=np.zeros((4, 4, 3), np.uint8))) == [[]]
    counts = [len(Truth(missed=missed).of_sample(source[i])[0]) for missed in (0.0, 0.5, 1.0) for i in range(60)]
    whole, half, none = (sum(counts[k : k + 60]) for k in (0, 60, 120))
    assert none == 0 and 0.35 * whole < half < 0.65 * whole
    assert Truth(missed=0.5).of_sample(source[2]) == Truth(missed=0.5).of_sample(source[2])


def test_large_pictures_are_searched_small_and_read_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine replaced by one that finds and names bright parts: what is read has the pixels of the picture's own size."""
    shown: list[tuple[tuple[int, ...], bool]] = []

    def run(self: Rapid, picture: np.ndarray, read: bool) -> Any:
        shown.append((picture.shape, read))
        found = bright(picture)
        quads = [[(b[0], b[1]), (b[2], b[1]), (b[2], b[3]), (b[0], b[3])] for _, b in found]
        return SimpleNamespace(boxes=np.array(quads) if quads else None, txts=[t for t, _ in found], scores=[0.9] * len(found))

    monkeypatch.setattr(Rapid, "_run", run)
    picture = np.zeros((400, 800, 3), np.uint8)
    picture[100:120, 600:700] = 255
    (line,) = Rapid(side=100).read(picture)
    assert line.text == "bright" and np.abs(np.array(line.box) - [600, 100, 700, 120]).max() < 1
    (searched, found), (read, named) = shown  # the part with text is larger than the picture that was searched
    assert searched == (100, 200, 3) and not found and named and read[0] == 100 and read[1] > 250
    shown.clear()
    assert Rapid(side=100, roi=False).read(picture) == [Line("bright", (600, 100, 700, 120), 0.9)] and shown == [
        ((400, 800, 3), True)
    ]
    assert Rapid(side=100).read(np.zeros((400, 400, 3), np.uint8)) == []
    shown.clear()
    small = resized(picture, 50)  # enlarged before it is read; boxes are in its own pixels
    (line,) = Rapid(side=100).read(small)
    assert shown == [((100, 200, 3), True)] and np.abs(np.array(line.box) - [75, 12.5, 87.5, 15]).max() <= 1.0
    assert Rapid(side=100, score=0.95).read(small) == []
    assert region_of_interest([], (10, 10), 0) is None
    assert region_of_interest([(0.2, 0.5, 0.4, 0.6), (0.3, 0.1, 0.9, 0.2)], (100, 200), 0.05) == (30, 5, 190, 65)
    assert pickle.loads(pickle.dumps(Rapid(side=64))).side == 64


@pytest.mark.slow
def test_rapidocr_reads_print() -> None:
    pytest.importorskip("rapidocr")
    sample = open_source("scenes:text?split=test&size=128&smallest=8&notes=0&numbers=0")[2]
    lines = Rapid(side=384).read(sample.image)
    assert {line.text.lower() for line in lines} == {w["text"] for w in sample.extra["words"]}
    boxes = {w["text"]: np.array(w["box"]) for w in sample.extra["words"]}
    for line in lines:  # engines draw wider boxes; their middle is that of the word
        left, top, right, bottom = np.array(line.box) - boxes[line.text.lower()]
        assert abs(left + right) / 2 < 3 and abs(top + bottom) / 2 < 3 and max(-left, right, -top, bottom) < 15


# --- training and asking ---


def test_prompts_have_the_words_in_training_and_when_the_model_is_asked() -> None:
    address = "scenes:text?ask=1&split=test&size=64&vocabulary=12"
    reading = Talker(address, 4, False, "data.fields.turns={kind: turns, reader: {kind: truth, search: 20}}")
    sample = open_source(address)[0]
    (words,) = OcrPrompt(Truth()).of_sample(sample)
    field = reading.loader.fields["turns"]
    shown = field.fit(sample, lambda: None)
    assert shown.told == (words,) and len(shown) == 1 and shown[0].shape[0] == 32
    assert pickle.loads(pickle.dumps(shown)).told == (words,), "worker processes send it"
    chat = field.chat
    expected = chat.lesson(told(sample.turns, [words]))
    row = SimpleNamespace(sample=field.rest(sample), fitted={"turns": shown})
    assert field._lesson(row) == expected and len(expected) > len(chat.lesson(sample.turns))
    # Asked: the same tokens before the answer, for both ways of asking.
    trained = TrainedModel("reading", reading.recipe, reading.model, reading.objectives, torch.device("cpu"))
    assert trained.answering.reader is not None
    question = sample.turns[0].text.removeprefix("<image>\n")
    learned = [i for i, learns in zip(expected.ids, expected.learned, strict=True) if learns]
    begin = expected.learned.index(True)
    prompt = trained.answering._prompt(trained.answering._told([sample.turns[0]], [sample.image]), 1)
    assert list(prompt) == expected.ids[:begin] and IMAGE_ID in prompt
    asked: list[Any] = []
    own = trained.answering._read
    trained.answering._read = lambda shown, prompts: asked.append(list(map(list, prompts))) or own(shown, prompts)
    trained.generate([sample.image], question)
    (value,) = trained.loglikelihood([sample.image], [sample.turns[1].text], question)
    trained.answering.stream([sample.image], [sample.turns[0]], decoding_of(max_tokens=1))
    assert asked == [[expected.ids[:begin]]] * 3 and np.isfinite(value) and learned
    trained.answering.reader = None
    assert (
        list(trained.answering._prompt(trained.answering._told([sample.turns[0]], [sample.image]), 1))
        == chat.document([sample.turns[0]], ask=True).ids
    )
