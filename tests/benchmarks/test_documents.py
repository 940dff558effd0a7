"""Questions about texts in pictures: the files of TextVQA and DocVQA as they are published, and ANLS."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_asking import png, save_pictures, speaker, values
from typer.testing import CliRunner

from diptych.benchmarks.answers.documents import anls, edit_distance
from diptych.benchmarks.answers.vqa import score_files
from diptych.benchmarks.run import evaluate
from diptych.benchmarks.tasks import task
from diptych.cli import app
from diptych.core.errors import DiptychError


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("abc", "abc", 0), ("ab", "ba", 2), ("a", "abc", 2)],
)
def test_edit_distance_by_hand(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("answer", "truth", "value"),
    [
        ("0.28", ["0.28"], 1),
        ("  ITC  Limited", ["itc limited"], 1),
        ("1999", ["1998"], 0.75),
        ("12", ["13"], 0.5),  # one of two signs: 0.5 itself counts
        ("abc", ["xyz"], 0),
        ("abcde", ["abxyz"], 0),  # 0.4
        ("university of calfornia", ["university of california", "UC"], 1 - 1 / 24),
        ("", ["a"], 0),
    ],
)
def test_anls_by_hand(answer: str, truth: list[str], value: float) -> None:
    assert anls(answer, truth) == pytest.approx(value)
    with pytest.raises(ValueError, match="at least one right answer"):
        anls(answer, [])


def docvqa(folder: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "questionId": 337,
            "question": "What is the rate?",
            "image": "documents/x_1.png",
            "docId": 1,
            "answers": ["0.28", "0.28 %"],
        },
        {"questionId": 338, "question": "Who wrote it?", "image": "documents/x_2.png", "docId": 2, "answers": ["Paul Smith"]},
    ]
    path = folder / "val_v1.0.json"
    path.write_text(json.dumps({"dataset_name": "SP-DocVQA", "dataset_split": "val", "data": rows}))
    return path


def textvqa(folder: Path) -> Path:
    rows = [
        {
            "question": "what brand?",
            "image_id": f"00{i}",
            "question_id": i,
            "image_width": 9,
            "answers": ["nokia"] * 8 + ["phone", "n"],
        }
        for i in (1, 2)
    ]
    path = folder / "TextVQA_0.5.1_val.json"
    path.write_text(json.dumps({"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": rows}))
    return path


def test_docvqa_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    save_pictures(tmp_path / "documents", ["x_1.png", "x_2.png"])
    model = speaker({(10, "rate"): "0.28", (20, "wrote"): "Paul Smyth"})
    found = evaluate(model, None, [task(f"vqa?file={docvqa(tmp_path)}&anls=true")])
    assert values(found, "vqa") == pytest.approx({"accuracy": 0.5, "anls": (1 + 0.9) / 2})
    assert next(r for r in found.results if r.metric == "anls").controls == {"blind": 0, "shuffled": 0}
    results = tmp_path / "r.json"
    results.write_text(json.dumps([{"questionId": 337, "answer": "0.28"}, {"questionId": 338, "answer": "Paul Smyth"}]))
    filed = {r.metric: r.value for r in score_files(tmp_path / "val_v1.0.json", None, results, True)}
    assert filed == pytest.approx({"accuracy": 0.5, "anls": 0.95})
    results.write_text(json.dumps([{"questionId": 337, "answer": None}, {"questionId": 338, "answer": "Paul Smith"}]))
    second = score_files(tmp_path / "val_v1.0.json", None, results, True)[1]
    assert (second.value, second.unparsed, second.band) == (0.5, 1, (0.5, 1))


def test_textvqa_from_its_file(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["001.jpg", "002.jpg"])
    found = evaluate(speaker({}, "Nokia"), None, [task(f"vqa?file={textvqa(tmp_path)}")])
    assert values(found, "vqa") == {"accuracy": 1}
    results = tmp_path / "r.json"
    results.write_text(json.dumps([{"question_id": 1, "answer": "nokia"}, {"question_id": 2, "answer": "phone"}]))
    command = ["metrics", "vqa", "--questions", str(tmp_path / "TextVQA_0.5.1_val.json"), "--results", str(results), "--json"]
    [accuracy] = json.loads(CliRunner().invoke(app, command).stdout)["results"]
    assert accuracy["value"] == pytest.approx((1 + 0.3) / 2) and accuracy["n"] == 2
    results.write_text(json.dumps([{"question_id": 1, "answer": "nokia"}]))
    with pytest.raises(DiptychError, match="1 of the 2 ids are in .*TextVQA.* but not in .*r.json: 2"):
        score_files(tmp_path / "TextVQA_0.5.1_val.json", None, results)


def test_a_wrapper_without_questions_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"rows": [1]}))
    with pytest.raises(DiptychError, match="q.json: expected a field 'questions'"):
        task(f"vqa?file={path}").items(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["tsv", "parquet"])
def test_images_in_the_table(tmp_path: Path, kind: str) -> None:
    """VLMEvalKit's .tsv (a picture once, answers as a list written as text) and the Hub's Parquet (bytes, answers as a list)."""
    path = tmp_path / f"DocVQA.{kind}"
    if kind == "tsv":
        picture = base64.b64encode(png(10)).decode()
        rows = [f"0\trate?\t{picture}\t['0.28', '0.28 %']", "1\twrote?\t0\t['Paul Smith']"]
        path.write_text("index\tquestion\timage\tanswer\n" + "\n".join(rows) + "\n")
    else:
        images = [{"bytes": png(10), "path": None}] * 2
        columns = {"questionId": ["0", "1"], "question": ["rate?", "wrote?"], "image": images, "image_id": ["a", "a"]}
        pq.write_table(pa.table({**columns, "answers": [["0.28", "0.28 %"], ["Paul Smith"]]}), path)
    model = speaker({(10, "rate"): "0.28 %", (10, "wrote"): "Paul Smith"})
    found = evaluate(model, None, [task(f"vqa?file={path}&anls=true")])
    assert values(found, "vqa") == {"accuracy": 1, "anls": 1} and found.results[0].clusters == 1
    answers = tmp_path / "a.jsonl"
    answers.write_text("".join(json.dumps({"index": i, "answer": "x", "prediction": "0.28"}) + "\n" for i in range(2)))
    filed = score_files(path, None, answers)[0]
    assert (filed.value, filed.n, filed.clusters) == (0.5, 2, 1)
