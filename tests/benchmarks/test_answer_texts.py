"""Answers as models write them, in four languages: none is read as another than it means, and hardly any is not read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from diptych.benchmarks.answers.choice_text import parse_choice
from diptych.benchmarks.answers.choices import Choices
from diptych.benchmarks.answers.final import marked, spoken, without_thinking
from diptych.benchmarks.answers.open_answers import OpenAnswers
from diptych.benchmarks.answers.vqa import Vqa
from diptych.benchmarks.answers.yes_no_text import parse_yes_no

UNREADABLE = "undecided"
MOST_UNREAD = 0.02


def corpus(name: str) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
    return found


def check(read: list[tuple[str, str, str]]) -> None:
    """Of (text, what it means, what was read): no misreading and no guess, and few clear ones that are not read."""
    assert [r for r in read if r[2] not in (r[1], UNREADABLE)] == []
    clear = [r for r in read if r[1] != UNREADABLE]
    unread = [r for r in clear if r[2] == UNREADABLE]
    assert len(unread) <= MOST_UNREAD * len(clear), unread


def test_choices_are_read_as_they_are_meant() -> None:
    read = []
    for group in corpus("choice_texts.json").values():
        for meaning, texts in group.items():
            for text in texts if meaning != "options" else []:
                found = parse_choice(text, group["options"])
                read.append((text, meaning, UNREADABLE if found is None else "ABCD"[found]))
    assert len(read) > 750 and sum(meaning == UNREADABLE for _, meaning, _ in read) > 120
    check(read)


def test_yes_and_no_are_read_as_they_are_meant() -> None:
    words = {True: "yes", False: "no", None: UNREADABLE}
    groups = corpus("yes_no_texts.json").values()
    read = [(t, meaning, words[parse_yes_no(t)]) for group in groups for meaning, texts in group.items() for t in texts]
    assert len(read) > 300 and sum(meaning == UNREADABLE for _, meaning, _ in read) > 60
    check(read)


@pytest.mark.parametrize(
    ("text", "options", "letters", "choice"),
    [
        ("D", ["x", "y", "z"], "ABD", 2), ("C", ["x", "y", "z"], "ABD", None), ("D. z", ["x", "y", "z"], "ABD", 2),
        ("The answer is D, not C.", ["x", "y", "z"], "ABD", 2),
        ("I", list("stuvwxyzk"), "", 8), ("I think it is E.", list("stuvwxyzk"), "", 4), ("I am not sure.", list("stuvwxyzk"), "", None),
        ("B", ["same", "same"], "", 1), ("same", ["same", "same"], "", None), ("", ["", "x"], "", None), ("x", ["", "x"], "", 1),
    ],
)  # fmt: skip
def test_other_letters_and_odd_options(text: str, options: list[str], letters: str, choice: int | None) -> None:
    assert parse_choice(text, options, letters) == choice


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>\n\nred", "red"), ("a</think>red", "red"), ("<think>a", ""), ("red <think>a", "red"), ("red", "red"),
        ("<think>a</think>b<think>c</think>red", "red"), ("◁think▷a◁/think▷red", "red"), ("<THINK>a</THINK>red", "red"),
    ],
)  # fmt: skip
def test_what_follows_the_thinking(text: str, answer: str) -> None:
    assert without_thinking(text) == spoken(text) == answer


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]), (r"\boxed{\text{B}} \boxed{C}", ["B", "C"]), (r"\boxed{B", []),
        ("<answer> B </answer>", ["B"]), ("<answer></answer>", [""]), ('{"answer": "say \\"B\\""}', ['say \\"B\\"']), ("B", []),
        ('{"answer": 3}', ["3"]), ("<|begin_of_box|>B<|end_of_box|>", ["B"]),
    ],
)  # fmt: skip
def test_marks(text: str, found: list[str]) -> None:
    assert marked(text) == found


def test_tasks_read_what_follows_the_thinking() -> None:
    record: dict[str, Any] = {"options": ["red", "blue"], "answers": ["blue"]}
    said = "<think>It looks red.</think>\nblue\nlike the sky"
    assert Vqa().parse({**record, "options": []}, said) == "blue" and Vqa().parse(record, "<think>It looks red.") is None
    assert Choices().parse(record, said) == "blue" and OpenAnswers().parse(record, said) == "blue\nlike the sky"
    assert OpenAnswers().parse(record, "<think>It looks red.") is None
    assert Vqa().parse({**record, "options": []}, "I see. <answer>blue</answer>") == "blue"


@pytest.mark.parametrize("part", ["word ", "A", "(", "answer is ", "B. ", "? ", "\n", "<think>", r"\boxed{", "是"])
def test_long_texts_do_not_take_long(part: str) -> None:
    start = time.perf_counter()
    parse_choice(part * 2000, ["cat", "dog"])
    parse_yes_no(part * 2000)
    assert time.perf_counter() - start < 2
