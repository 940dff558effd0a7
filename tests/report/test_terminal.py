"""What the terminal prints next to every number of ``diptych evaluate`` and ``diptych metrics``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diptych.benchmarks.records import Result
from diptych.benchmarks.run import Summary
from diptych.cli import app
from diptych.report import print_summary


def shown(results: list[Result], capsys: pytest.CaptureFixture[str], **more: list[dict[str, str]]) -> str:
    print_summary(Summary("m", "d", "", results=results, **more))
    return capsys.readouterr().out


def test_controls_and_what_could_not_be_read_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"chance": 0.5, "unparsed": 3, "ties": 2, "nans": 1}
    answers = Result("pope", "accuracy", 0.5, 0.4, 0.6, 12, 6, controls={"constant": 0.625}, band=(0.5, 0.75), **fields)
    pairs = Result("pairs", "accuracy", 0.5, 0.4, 0.6, 1200, 6, controls={"shortest": 0.5975, "longest": 0.4025})
    score = Result("mme", "count (of 200)", 100.0, None, None, 12, 6, unparsed=1, band=(100.0, 116.7))
    text = shown([answers, pairs, score], capsys, notes=[{"task": "pope", "note": "1 of 12 items have no answer"}])
    lines = [line.split() for line in text.splitlines()]
    assert ["value", "95", "%", "chance", "blind", "shuffled", "constant", "shortest", "longest", "n"] in lines
    assert ["accuracy", "≈", "50.0", "40.0–60.0", "50.0", "—", "—", "62.5", "12"] in lines
    assert ["accuracy", "50.0", "40.0–60.0", "—", "—", "—", "59.8", "40.2", "1200"] in lines
    plain = " ".join(text.split())
    assert "pope: 3 of 12 answers could not be read; from all of them wrong to all of them right: accuracy 50.0–75.0" in plain
    assert "pope: 2 items with a tie" in plain and "pope: 1 scores that are not numbers" in plain
    assert "mme: 1 of 12 answers could not be read" in plain and "count (of 200) 100.0" in plain
    assert "pope: 1 of 12 items have no answer" in plain and "pairs: " not in plain


def test_a_plain_result_has_no_empty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown([Result("retrieval", "R@1", 0.5, 0.4, 0.6, 100, 100)], capsys)
    assert "constant" not in text and "shortest" not in text and "could not be read" not in text


def test_a_table_in_a_pipe_is_not_cut(tmp_path: Path) -> None:
    rows = [{"question_id": i, "image": f"{i}.png", "text": "Is there a cat?", "label": ["yes", "no"][i % 2]} for i in range(4)]
    said = [{"question_id": i, "answer": a} for i, a in enumerate(["yes", "no", None, "hm"])]
    for name, content in (("q", rows), ("a", said)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    command = ["metrics", "pope", "--questions", f"{tmp_path}/q.jsonl", "--answers", f"{tmp_path}/a.jsonl"]
    text = CliRunner().invoke(app, command).stdout
    assert "…" not in text
    for name in ("chance", "constant", "published", "always_yes", "unparsed", "band", "clusters", "precision"):
        assert name in text
