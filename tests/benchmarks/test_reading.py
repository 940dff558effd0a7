"""Text in pictures: accuracy against the height of print, and the files and metrics of TextVQA, DocVQA, ChartQA and OCRBench."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_asking import save_pictures, speaker, values

from diptych.benchmarks.answers.documents import anls
from diptych.benchmarks.reading.metrics import contains, relaxed, textvqa_accuracy
from diptych.benchmarks.reading.read import Read, curve, table
from diptych.benchmarks.run import evaluate
from diptych.benchmarks.tasks import task
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from diptych.report.sections.reading import print_sizes

# --- metrics ---


def levenshtein(a: str, b: str) -> int:
    """By its recursive definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1, levenshtein(a[1:], b[1:]) + (a[0] != b[0]))


def test_anls_equals_its_definition():
    rng = random.Random(0)
    for _ in range(60):
        answer, *truths = ("".join(rng.choices("ab ", k=rng.randint(0, 5))) for _ in range(3))
        plain = [" ".join(t.lower().split()) for t in (answer, *truths)]
        shares = [1 - levenshtein(plain[0], t) / max(len(plain[0]), len(t), 1) for t in plain[1:]]
        best = max(shares)
        assert anls(answer, truths) == pytest.approx(best if best >= 0.5 else 0)


def test_textvqa_accuracy_equals_loops_over_the_ten_people():
    humans = ["Nokia"] * 3 + ["nokia phone", "the nokia", "1,000", "john's", "two", "phone?", "phone"]
    form = {"Nokia": "nokia", "the nokia": "nokia", "1,000": "1000", "john's": "john 's", "two": "2", "phone?": "phone"}
    plain = [form.get(h, h) for h in humans]
    for answer, same in (("nokia", "nokia"), ("1000", "1000"), ("John's", "john 's"), ("2", "2"), ("Phone?", "phone"), ("x", "x")):
        expected = np.mean([min(1, sum(h == same for k, h in enumerate(plain) if k != left) / 3) for left in range(10)])
        assert textvqa_accuracy(answer, humans) == pytest.approx(expected), answer


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("104.9", "100", True), ("105.1", "100", False), ("95", "100", True), ("-95", "-100", True), ("14%", "0.14", True),
        ("14", "0.14", False), ("72%", "72%", True), ("Blue", "blue", True), ("blue.", "blue", False), ("0", "0", True),
        ("0.0", "0", False), ("1,000", "1000", False), ("2018", "2010", True), ("no", "7", False),
    ],
)  # fmt: skip
def test_relaxed_correctness_by_hand(answer, truth, right):
    assert relaxed(answer, truth) == right


def test_an_answer_counts_if_it_contains_a_right_one():
    assert contains("It says CENTRE\n inside", ["centre"]) and not contains("it says center", ["centre"])
    assert contains("x", ["y", "X"]) and contains(r"so: \frac { a } { b }", [r"\frac {a}{b}"], formula=True)
    assert not contains("A+b", ["a + b"], formula=True) and not contains(r"a + b", ["a+b"])


# --- files, in the form in which they are published ---


def test_textvqa_from_its_file_with_ocr_tokens(tmp_path: Path):
    save_pictures(tmp_path / "train_images", ["001.jpg", "002.jpg"])
    rows = [
        {"question": "what brand?", "image_id": f"00{i}", "question_id": i, "answers": ["Nokia"] * 8 + ["a", "n"]} for i in (1, 2)
    ]
    file = tmp_path / "TextVQA_0.5.1_val.json"
    file.write_text(json.dumps({"dataset_type": "val", "dataset_name": "textvqa", "data": rows}))
    ocr = tmp_path / "ocr.json"
    ocr.write_text(
        json.dumps({"data": [{"image_id": "001", "ocr_tokens": ["NOKIA", "n8"]}, {"image_id": "002", "ocr_tokens": []}]})
    )
    prompts: list[str] = []

    def generate(images: Any, asked: Any, max_tokens: int) -> list[str]:
        prompts.extend(asked)
        return ["nokia."] * len(images)

    found = evaluate(
        FunctionModel("m", generate=generate), None, [task(f"textvqa?file={file}&images={tmp_path}/train_images&ocr={ocr}")]
    )
    assert values(found, "textvqa") == {"accuracy": 1}
    assert prompts[0] == "what brand?\nReference OCR token: NOKIA, n8\nAnswer the question using a single word or phrase."
    assert prompts[1] == "what brand? Answer the question using a single word or phrase."
    ocr.write_text(json.dumps({"data": [{"image_id": "001", "ocr_tokens": []}]}))
    with pytest.raises(DiptychError, match="no row with image_id '002'"):
        evaluate(speaker({}), None, [task(f"textvqa?file={file}&images={tmp_path}/train_images&ocr={ocr}")])


def test_docvqa_from_its_file(tmp_path: Path):
    save_pictures(tmp_path / "documents", ["x_1.png", "x_2.png"])
    rows = [
        {
            "questionId": 7,
            "question": "What rate?",
            "image": "documents/x_1.png",
            "answers": ["0.28", "0.28 %"],
            "question_types": ["table/list"],
        },
        {
            "questionId": 8,
            "question": "Who?",
            "image": "documents/x_2.png",
            "answers": ["Paul Smith"],
            "question_types": ["form", "layout"],
        },
    ]
    file = tmp_path / "val_v1.0.json"
    file.write_text(json.dumps({"dataset_name": "SP-DocVQA", "data": rows}))
    found = evaluate(speaker({(10, "rate"): "0.28", (20, "Who"): "Paul Smyth"}), None, [task(f"docvqa?file={file}")])
    assert values(found, "docvqa") == pytest.approx({"accuracy": 0.5, "anls": 0.95})
    anls_result = next(r for r in found.results if r.metric == "anls")
    assert anls_result.controls["blind"] == 0 and {s["slice"] for s in anls_result.slices} == {
        "type=table/list",
        "type=form+layout",
    }
    (tmp_path / "info").mkdir()
    rows = [
        {**{k: v for k, v in row.items() if k not in ("image", "question_types")}, "image_local_name": row["image"]} for row in rows
    ]
    info = tmp_path / "infographicsVQA_val_v1.0.json"
    info.write_text(json.dumps({"dataset_name": "infographicVQA", "data": rows}))
    assert values(evaluate(speaker({(10, "rate"): "0.28 %"}), None, [task(f"docvqa?file={info}")]), "docvqa")["anls"] == 0.5


def test_chartqa_from_its_folder(tmp_path: Path):
    save_pictures(tmp_path / "png", ["1.png", "2.png"])
    (tmp_path / "test_human.json").write_text(
        json.dumps(
            [
                {"imgname": "1.png", "query": "Which year?", "label": "2010"},
                {"imgname": "2.png", "query": "What share?", "label": "0.14"},
            ]
        )
    )
    (tmp_path / "test_augmented.json").write_text(json.dumps([{"imgname": "1.png", "query": "Which colour?", "label": "Blue"}]))
    model = speaker({(10, "year"): "2011", (20, "share"): "14%", (10, "colour"): "blue"})
    found = evaluate(model, None, [task(f"chartqa?file={tmp_path}")])
    assert values(found, "chartqa") == pytest.approx({"accuracy": 1 / 3, "relaxed_accuracy": 1})
    parts = {s["slice"]: s["n"] for s in next(r for r in found.results if r.metric == "relaxed_accuracy").slices}
    assert parts == {"part=human": 2, "part=augmented": 1}
    one = evaluate(model, None, [task(f"chartqa?file={tmp_path}/test_human.json")])
    assert one.results[0].n == 2
    with pytest.raises(DiptychError, match="no .json file in it"):
        evaluate(model, None, [task(f"chartqa?file={tmp_path}/png")])


def test_ocrbench_from_its_file(tmp_path: Path):
    save_pictures(
        tmp_path / "OCRBench_Images" / "svt" if (tmp_path / "OCRBench_Images").mkdir() is None else tmp_path,
        ["1.png", "2.png", "3.png"],
    )
    rows = [
        {"dataset_name": "svt", "type": "Regular Text Recognition", "question": "what is written in the image?", "image_path": "svt/1.png", "answers": ["CENTRE"]},
        {"dataset_name": "ORAND", "type": "Digit String Recognition", "question": "what number?", "image_path": "svt/2.png", "answers": "64"},
        {"dataset_name": "HME100k", "type": "Handwritten Mathematical Expression Recognition", "question": "formula?", "image_path": "svt/3.png", "answers": ["x ^ 2"]},
    ]  # fmt: skip
    file = tmp_path / "OCRBench.json"
    file.write_text(json.dumps(rows))
    model = speaker({(10, "written"): "It says\ncentre.", (20, "number"): "62", (30, "formula"): "X^2"})
    found = evaluate(model, None, [task(f"ocrbench?file={file}&images={tmp_path}/OCRBench_Images")])
    assert values(found, "ocrbench") == pytest.approx({"accuracy": 1 / 3})
    groups = {s["slice"]: s["value"] for s in found.results[0].slices if s["slice"].startswith("group")}
    assert groups == {"group=Text Recognition": 0.5, "group=Handwritten Mathematical Expression Recognition": 0}
    assert found.results[0].controls["constant"] == pytest.approx(1 / 3)


def test_each_needs_its_file():
    for name in ("textvqa", "docvqa", "chartqa", "ocrbench"):
        skipped = evaluate(speaker({}), open_source("scenes:text?split=test"), [task(name)]).skipped
        assert "it reads its questions from a file" in str(skipped)


# --- print of known height ---


def short_sighted(least: int) -> FunctionModel:
    """Reads print from a height on, since it is told the truth of the test pictures; of smaller print it misses the last letter."""
    truth: dict[tuple[bytes, str], tuple[str, int]] = {}
    source = open_source("scenes:text?split=test")
    for i in range(160):
        sample = source[i]
        for q in sample.extra["questions"]:
            truth[sample.image.tobytes(), q["question"]] = q["answer"], q.get("height", 0)

    def generate(images: Any, prompts: Any, max_tokens: int) -> list[str]:
        answers = []
        for image, prompt in zip(images, prompts, strict=True):
            text, height = truth.get(
                (image.tobytes(), prompt.removesuffix(" Answer the question using a single word or phrase.")), ("", 99)
            )
            answers.append(f"{text}." if height >= least else text[:-1])
        return answers

    return FunctionModel("short-sighted", generate=generate)


def test_read_gives_the_curve_of_accuracy_against_height(tmp_path: Path):
    source = open_source("scenes:text?split=test")
    found = evaluate(short_sighted(8), source, [task("read?n=240")], out=tmp_path)
    records = [json.loads(line) for line in (tmp_path / "records" / "read.jsonl").read_text().splitlines()]
    records = [r for r in records if "item" in r]
    assert len(records) == 240 and {r["slices"]["kind"] for r in records} == {"sign", "label", "number", "note"}
    by = {r.metric: r for r in found.results}
    points = curve(records)
    assert [p.height for p in points] == list(range(4, 14)) and sum(p.n for p in points) == 240
    assert all(p.accuracy == (p.height >= 8) for p in points)
    assert all(0 < p.anls < 1 for p in points if p.height < 8)
    assert by["half_height"].value == 8 and not by["half_height"].higher_is_better
    assert by["accuracy"].value == pytest.approx(np.mean([r["height"] >= 8 for r in records]))
    assert {s["slice"]: s["value"] for s in by["accuracy"].slices if s["slice"].startswith("print")} == {
        "print=04–05 px": 0, "print=06–07 px": 0, "print=08–09 px": 1, "print=10–11 px": 1, "print=12–13 px": 1,
    }  # fmt: skip
    assert by["accuracy"].controls["blind"] == 0 and by["anls"].value > by["accuracy"].value
    shown = SimpleNamespace(records=records, recipe=SimpleNamespace(label="good <1>"), index=0)
    page = print_sizes(SimpleNamespace(answers=[shown, SimpleNamespace(records=[], recipe=shown.recipe, index=1)]))
    assert page.count("<tr>") == 11 and "good &lt;1&gt;" in page and "0.0 at 4 px, 100.0 at 13 px" in page and "<1>" not in page
    lines = table({"good": records, "other": [r for r in records if r["height"] > 6]}).splitlines()
    assert lines[0] == "| print, px | good | other |" and len(lines) == 7
    assert lines[2].startswith("| 4–5 | 0 [") and lines[2].endswith("| — |") and lines[-1].startswith("| 12–13 | 100 ")


def test_half_height_is_missing_where_nothing_is_read_and_kinds_can_be_chosen():
    found = evaluate(short_sighted(99), open_source("scenes:text?split=test"), [task("read?n=60&kinds=sign&step=1")])
    assert values(found, "read")["accuracy"] == 0 and "half_height" not in values(found, "read")
    assert Read(step=1).bin(7) == "07 px" and Read(step=4).bin(7) == "04–07 px"
    skipped = evaluate(short_sighted(8), open_source("scenes:small?split=test"), [task("read")]).skipped
    assert "no questions about print of known height" in str(skipped)
