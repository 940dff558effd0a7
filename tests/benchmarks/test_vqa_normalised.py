"""VQA accuracy where all people agree: the official figure, and the one with answers normalised everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diptych.benchmarks.answers import vqa
from diptych.cli import app

HUMANS = {
    "1": ["yes"] * 10,
    "2": ["black"] * 10,
    "3": ["2"] * 10,
    "4": ["cat"] * 10,
    "5": ["yes"] * 9 + ["no"],  # not unanimous: the official script normalises
    "6": ["yes"] * 10,
    "7": ["red"] * 10,
}
SAID = {"1": "Yes", "2": "Black.", "3": "two", "4": "The cat", "5": "Yes.", "6": "no", "7": None}


def files(folder: Path, said: dict[str, str | None]) -> tuple[Path, Path, Path]:
    asked = [{"question_id": k, "image_id": f"{k}.png", "question": "?"} for k in HUMANS]
    true = [{"question_id": k, "answer_type": "other", "answers": [{"answer": a} for a in of]} for k, of in HUMANS.items()]
    rows = [{"question_id": k, "answer": a} for k, a in said.items()]
    made = []
    for name, content in {"q": {"questions": asked}, "a": {"annotations": true}, "r": rows}.items():
        made.append(folder / f"{name}.json")
        made[-1].write_text(json.dumps(content))
    return made[0], made[1], made[2]


@pytest.mark.parametrize(
    ("answer", "official", "normalised"), [("Yes", 0, 1), ("yes.", 0, 1), ("the yes", 0, 1), ("yes", 1, 1), ("no", 0, 0)]
)
def test_unanimous_people(answer: str, official: float, normalised: float) -> None:
    assert vqa.vqa_accuracy(answer, ["yes"] * 10) == official
    assert vqa.normalised_accuracy(answer, ["yes"] * 10) == normalised
    assert vqa.vqa_accuracy(answer, ["yes"] * 9 + ["no"]) == vqa.normalised_accuracy(answer, ["yes"] * 9 + ["no"])


def test_both_figures_and_the_number_of_items_between_them(tmp_path: Path) -> None:
    found = {r.metric: r for r in vqa.score_files(*files(tmp_path, SAID))}
    assert found["accuracy"].value == pytest.approx(1 / 7)  # 5
    normalised = found["accuracy_normalised"]
    assert normalised.value == pytest.approx(5 / 7) and normalised.unparsed == 1
    assert normalised.band == pytest.approx((5 / 7, 6 / 7))
    assert [(s["slice"], s["value"], s["n"]) for s in normalised.slices] == [("differs from accuracy", 1, 4)]
    lower = {
        r.metric: r for r in vqa.score_files(*files(tmp_path, {k: vqa.normalise_answer(a) if a else a for k, a in SAID.items()}))
    }
    assert lower["accuracy"].value == lower["accuracy_normalised"].value == normalised.value
    assert lower["accuracy_normalised"].slices == []


def test_the_terminal_says_how_many(tmp_path: Path) -> None:
    q, a, r = map(str, files(tmp_path, SAID))
    command = ["metrics", "vqa", "--questions", q, "--annotations", a, "--results", r]
    said = " ".join(CliRunner().invoke(app, command).stdout.split())
    assert "4 of 7 answers count otherwise after normalisation: where all people agree" in said


def test_people_who_never_all_agree_need_one_figure(tmp_path: Path) -> None:
    record = {"item": "1", "cluster": "1", "slices": {}, "question": "?", "options": [], "answer": "Yes"}
    several = [vqa.Vqa().with_credits({**record, "answers": HUMANS["5"]})]
    assert [r.metric for r in vqa.Vqa().accuracy_results(several)] == ["accuracy"]
    few = [vqa.Vqa().with_credits({**record, "answers": ["yes"]})]
    assert [r.metric for r in vqa.Vqa().accuracy_results(few)] == ["accuracy"]
