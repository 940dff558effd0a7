"""Tasks of instructions: what answers earn, against plain loops; a model that knows all, one that sees nothing, one that is silent."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.benchmarks.base import NotApplicable
from diptych.benchmarks.instructions.scores import boxed, corrected, counted, placed, refused, yes_or_no
from diptych.benchmarks.instructions.task import INSTRUCTIONS, CorrectInstructions, RefuseInstructions, turns_to
from diptych.benchmarks.records import Records
from diptych.benchmarks.tasks import TASKS, task
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.core.sample import IMAGE, Turn
from diptych.data.sources import open_source

SHOWN = {"total": 3, "parts": [2, 1]}
STATED = {"false": True, "fact": "the fox is blue", "final": "two"}
BOX = {"box": (10.0, 20.0, 30.0, 40.0), "size": [50, 100], "boxes": "xyxy/100", "name": ""}


class Talker(FunctionModel):
    """A model that answers (pictures, turns) by a function, in a conversation or to a prompt."""

    def __init__(self, answer):
        super().__init__(
            "talker",
            generate=lambda images, prompts, n: [answer([i], [Turn("user", p)]) for i, p in zip(images, prompts, strict=True)],
        )
        self.answer = answer

    def converse(self, images, turns, max_tokens=0):
        assert "".join(t.text for t in turns).count(IMAGE) == len(images)
        return self.answer(images, turns)


def asked(images, turns):
    """What was asked, of which pictures, whatever the form."""
    texts = tuple(t.text.replace(IMAGE, "").strip() for t in turns)
    return texts, tuple(image.tobytes() for image in images)


@pytest.fixture(scope="module")
def source():
    return open_source("instruct:scenes:small?split=test")


def results_of(cls, source, answer, n=16):
    each = cls(n=n)
    records = Records()
    each.run(Talker(answer), each.items(source), records)
    return {r.metric: r for r in each.summarise(records.all())}


def truths(cls, source, n=16):
    return {asked(i.images, turns_to(i)): i.exchange.answer for i in cls(n=n).items(source)}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_who_sees_is_right_and_who_does_not_is_right_of_one_twin_at_most(source, name):
    cls = INSTRUCTIONS[name]
    right = truths(cls, source)
    seen = results_of(cls, source, lambda images, turns: right.get(asked(images, turns), "?"))
    assert {m: r.value for m, r in seen.items() if m != "iou"} == dict.fromkeys(seen.keys() - {"iou"}, 1.0)
    assert seen["accuracy"].controls["shuffled"] == 0 and seen["accuracy"].controls["blind"] == 0
    assert seen["twins"].n == 8 and seen["accuracy"].n == 16
    assert set(seen) <= set(cls.metrics) and name in TASKS

    by_words = {texts: answer for (texts, _), answer in right.items()}
    sightless = results_of(cls, source, lambda images, turns: by_words[asked(images, turns)[0]])
    assert sightless["accuracy"].value <= 0.5 and sightless["twins"].value == 0
    assert sightless["accuracy"].controls["blind"] == sightless["accuracy"].value
    silent = results_of(cls, source, lambda images, turns: "")
    assert silent["accuracy"].value == 0


def test_precision_and_recall_are_those_of_a_count(source):
    answers = {RefuseInstructions: ("there is none", "red"), CorrectInstructions: ("no, the fox is red; two", "right; two")}
    for cls, (yes, no) in answers.items():
        items = cls(n=40).items(source)
        positive = {asked(i.images, turns_to(i)): k % 3 == 0 for k, i in enumerate(items)}
        result = results_of(
            cls, source, lambda images, turns, p=positive, yes=yes, no=no: yes if p.get(asked(images, turns)) else no, 40
        )
        fact = "absent" if cls is RefuseInstructions else "false"
        hits = sum(i.exchange.truth[fact] for k, i in enumerate(items) if k % 3 == 0)
        assert result["precision"].value == pytest.approx(hits / len(items[::3]))
        assert result["recall"].value == pytest.approx(hits / sum(i.exchange.truth[fact] for i in items))


@pytest.mark.parametrize(
    ("score", "text", "truth", "earned"),
    [
        (counted, "2 left + 1 right = 3", SHOWN, {"accuracy": 1, "reason": 1, "sum": 1}),
        (counted, "two left + one right = three.", SHOWN, {"accuracy": 1, "reason": 1, "sum": 1}),
        (counted, "1 left + 2 right = 3", SHOWN, {"accuracy": 1, "reason": 0, "sum": 1}),
        (counted, "2 left + 1 right = 4", SHOWN, {"accuracy": 0, "reason": 1, "sum": 0}),
        (counted, "there are three of them", SHOWN, {"accuracy": 1, "reason": 0, "sum": 0}),
        (counted, "some", SHOWN, {"accuracy": 0, "reason": 0, "sum": 0}),
        (refused, "There is no fox.", {"absent": True}, {"accuracy": 1}),
        (refused, "red", {"absent": True}, {"accuracy": 0}),
        (refused, "there are none", {"absent": False}, {"accuracy": 0, "answered": 0}),
        (refused, "Red.", {"absent": False}, {"accuracy": 1, "answered": 1}),
        (corrected, "no, the fox is blue; two", STATED, {"accuracy": 1, "fact": 1, "final": 1}),
        (corrected, "no, the fox is green; two", STATED, {"accuracy": 0, "fact": 0, "final": 1}),
        (corrected, "no, the fox is blue; three", STATED, {"accuracy": 0, "fact": 1, "final": 0}),
        (corrected, "right; two", STATED, {"accuracy": 0, "fact": 0, "final": 1}),
        (corrected, "right; two", {**STATED, "false": False}, {"accuracy": 1, "final": 1}),
        (corrected, "no, the fox is blue; two", {**STATED, "false": False}, {"accuracy": 0, "final": 1}),
        (boxed, "[10, 40, 30, 80]", BOX, {"accuracy": 1, "iou": 1}),
        (boxed, "it is at (10,40),(30,60).", BOX, {"accuracy": 1, "iou": 0.5}),
        (boxed, "[10, 40, 30, 59]", BOX, {"accuracy": 0, "iou": 0.475}),
        (boxed, "a fox [10, 40, 30, 80]", {**BOX, "name": "a fox"}, {"accuracy": 1, "iou": 1, "name": 1}),
        (boxed, "a cat [10, 40, 30, 80]", {**BOX, "name": "a fox"}, {"accuracy": 0, "iou": 1, "name": 0}),
        (boxed, "left", BOX, {"accuracy": 0, "iou": 0}),
        (boxed, "[20, 10, 40, 30]", {**BOX, "boxes": "yxyx"}, {"accuracy": 1, "iou": 1}),
        (boxed, "<patch_index_0017><patch_index_0050>", {**BOX, "boxes": "kosmos-2/16", "size": [16, 16], "box": (1.5, 1.5, 2.5, 3.5)},
         {"accuracy": 1, "iou": 1}),
        (boxed, "<patch_index_0017><patch_index_0999>", {**BOX, "boxes": "kosmos-2/16"}, {"accuracy": 0, "iou": 0}),
        (placed, "The second picture.", {"place": 1}, {"accuracy": 1}),
        (placed, "the first or the second", {"place": 1}, {"accuracy": 0}),
    ],
)  # fmt: skip
def test_what_an_answer_earns(score, text, truth, earned):
    assert score(text, "red", truth) == pytest.approx(earned)


def test_yes_and_no_are_read_and_never_guessed():
    assert [yes_or_no(text, "no", {})["accuracy"] for text in ("No.", "no, it is not", "yes", "maybe")] == [1, 1, 0, 0]


def test_what_cannot_be_asked(source):
    with pytest.raises(NotApplicable, match="instruct:scenes:small"):
        task("instruct-count").items(open_source("scenes:albums"))
    with pytest.raises(DiptychError, match="instruct-box: boxes"):
        task("instruct-box?boxes=wrong").items(source)
    which = task("instruct-which?n=4")
    with pytest.raises(NotApplicable, match="converses"):
        which.run(FunctionModel("m", generate=lambda i, p, n: ["x"] * len(i)), which.items(source), Records())


def test_an_interrupted_run_asks_only_what_is_left(source):
    each, heard = task("instruct-yes-no?n=8&batch=4"), []
    items, records = each.items(source), Records()
    each.run(Talker(lambda i, t: "yes"), items[:4], records)
    each.run(Talker(lambda i, t: heard.append(t) or "yes"), items, records)
    assert len(records) == 8 and len(heard) == 4 * 2 + 2  # two conditions of each, and one grey picture for each pair
    assert np.mean([r["correct"]["accuracy"] for r in records.all()]) == 0.5
