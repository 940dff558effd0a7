"""``diptych metrics``: whoever has predictions in files gets numbers by hand-checkable rules, or is told what is wrong and
where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from diptych.cli import app
from diptych.core.errors import DiptychError

Put = Callable[[str, Any], str]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write a file: rows of dicts as JSON lines where the name says so, arrays as .npy, the rest as JSON."""

    def write(name: str, content: Any) -> str:
        path = tmp_path / name
        if isinstance(content, np.ndarray):
            np.save(path, content)
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        elif isinstance(content, str):
            path.write_text(content)
        else:
            path.write_text(json.dumps(content))
        return str(path)

    return write


def run(*arguments: str) -> dict[str, dict[str, Any]]:
    """{metric: result} of a verb with --json."""
    document = whole(*arguments)
    return {r["metric"]: r for r in document.get("results", document.get("tests"))}


def whole(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["metrics", *arguments, "--json"])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(message: str, *arguments: str) -> None:
    with pytest.raises(DiptychError, match=message):
        run(*arguments)


@pytest.mark.parametrize("verb", ["captions", "vqa", "pope", "chair", "pairs", "retrieval", "zeroshot", "multiple-choice", "selective", "calibration", "memorization", "frequency", "bias", "compare"])  # fmt: skip
def test_help_shows_the_files_and_a_command(verb: str) -> None:
    text = CliRunner().invoke(app, ["metrics", verb, "--help"], env={"COLUMNS": "200"}).stdout
    assert "{" in text or ".npy" in text
    assert f"diptych metrics {verb} " in " ".join(text.split())


CAPTIONS = {1: "a cat on a mat", 2: "two dogs run in the park", 3: "a man rides a horse"}
REFERENCES = {1: ["A cat lies on a mat."], 2: ["Two dogs run.", "Dogs in the park"], 3: ["Someone rides a brown horse!"]}


def captions_files(put: Put, results: dict = CAPTIONS, references: dict = REFERENCES) -> tuple[str, ...]:
    made = put("R.json", [{"image_id": i, "caption": c} for i, c in results.items()])
    true = {"annotations": [{"image_id": i, "caption": c} for i, cs in references.items() for c in cs]}
    return "captions", "--results", made, "--references", put("REFS.json", true), "--no-java"


def test_captions_are_those_of_the_functions(put: Put) -> None:
    from diptych.benchmarks.metrics.captions import caption_scores

    found = run(*captions_files(put))
    expected = caption_scores({str(k): v for k, v in REFERENCES.items()}, {str(k): v for k, v in CAPTIONS.items()})
    assert {m: r["value"] for m, r in found.items()} == pytest.approx(expected)
    assert all(r["n"] == r["clusters"] == 3 and r["low"] <= r["value"] <= r["high"] for r in found.values())
    assert found["cider"]["controls"]["shuffled"] < found["cider"]["value"]


def test_captions_of_other_images_are_refused(put: Put) -> None:
    refused("1 of the 3 ids are in .*REFS.json but not in .*R.json: 3; add --partial", *captions_files(put, {1: "a", 2: "b"}))
    assert run(*captions_files(put, {1: "a", 2: "b"}), "--partial")["cider"]["n"] == 2
    extra = {**CAPTIONS, 9: "a bird"}
    refused(r"R.json, \[3\]: 1 of the 4 ids are in .*R.json but not in .*REFS.json: 9", *captions_files(put, extra))
    refused(r"R.json, \[3\]: 1 of the 4 ids", *captions_files(put, extra), "--partial")
    twice = put("R.json", [{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}])
    refused(
        r"R.json, \[1\]: image_id '1' again", "captions", "--results", twice, "--references", put("REFS.json", {"annotations": []})
    )
    refused("needs both", *captions_files(put), "--model", "runs/x")


def test_java_metrics_are_there_or_said_to_be_missing(put: Put) -> None:
    document = whole(*captions_files(put)[:-1], "--java")
    there = {r["metric"] for r in document["results"]}
    for name in ("meteor", "spice"):
        assert name in there or any(f"{name.upper()}: not computed" in note for note in document["notes"])


def vqa_files(put: Put, said: list[dict], n: int = 2) -> tuple[str, ...]:
    questions = [{"question_id": i, "image_id": i // 2, "question": "?"} for i in range(n)]
    humans = [["cat"] * 3 + ["dog"] * 7, ["yes"] * 10]
    annotations = [
        {"question_id": i, "image_id": i // 2, "answer_type": ["other", "yes/no"][i % 2], "answers": [{"answer": a} for a in humans[i % 2]]}
        for i in range(n)
    ]  # fmt: skip
    return (
        "vqa", "--questions", put("Q.json", {"questions": questions}), "--annotations", put("A.json", {"annotations": annotations}),
        "--results", put("R.json", said),
    )  # fmt: skip


def test_vqa_by_hand(put: Put) -> None:
    """Three of ten say cat: .9. Ten say yes: 1. The constant "dog" would get 1 and 0, "yes" 0 and 1."""
    found = run(*vqa_files(put, [{"question_id": 1, "answer": "yes"}, {"question_id": 0, "answer": "Cat."}]))["accuracy"]
    assert found["value"] == pytest.approx(0.95) and found["n"] == 2 and found["clusters"] == 1
    assert {s["slice"]: s["value"] for s in found["slices"]} == {"answer_type=other": pytest.approx(0.9), "answer_type=yes/no": 1}
    assert found["controls"]["constant"] == 0.5


def test_vqa_answers_must_be_those_asked_for(put: Put) -> None:
    both = [{"question_id": 0, "answer": "cat"}, {"question_id": 1, "answer": "yes"}]
    refused("1 of the 2 ids are in .*Q.json but not in .*R.json: 1", *vqa_files(put, both[:1]))
    refused(
        r"R.json, \[2\]: 1 of the 3 ids are in .*R.json but not in .*Q.json: 7",
        *vqa_files(put, [*both, {"question_id": 7, "answer": ""}]),
    )
    refused(r"R.json, \[2\]: question_id '1' again", *vqa_files(put, [*both, both[1]]))
    refused(
        r"R.json, \[1\]: no field 'answer'; did you mean 'answers'", *vqa_files(put, [both[0], {"question_id": 1, "answers": "x"}])
    )


def pope_rows(n: int = 4) -> list[dict]:
    return [
        {"question_id": i, "image": f"{i // 2}.jpg", "text": f"Is there a {i}?", "label": ["yes", "no"][i % 2]} for i in range(n)
    ]


def test_pope_by_hand(put: Put) -> None:
    """Right, unparsed, a missed yes, right: accuracy 2/4, with the unparsed one right 3/4."""
    said = [{"question_id": i, "answer": a} for i, a in enumerate(["Yes.", "hm", "no", "No, none."])]
    files = ("pope", "--questions", put("Q.jsonl", pope_rows()), "--answers", put("A.jsonl", said[::-1]))
    found = run(*files)
    assert found["accuracy"]["value"] == 0.5 and found["accuracy"]["band"] == [0.5, 0.75] and found["accuracy"]["unparsed"] == 1
    assert found["accuracy"]["chance"] == 0.5 and found["accuracy"]["controls"] == {"constant": 0.5, "published": 0.5}
    assert (found["precision"]["value"], found["recall"]["value"]) == (1, 0.5)
    assert found["yes_ratio"]["value"] == 0.25 and found["accuracy"]["clusters"] == 2


def test_pope_in_the_published_layout(put: Put) -> None:
    """One JSON object a line in a file named .json, answers in the order of the questions."""
    lines = "".join(json.dumps(row) + "\n" for row in pope_rows())
    said = [{"question": f"Is there a {i}?", "answer": "yes"} for i in range(4)]
    found = run("pope", "--questions", put("coco_pope_random.json", lines), "--answers", put("A.jsonl", said))
    assert found["recall"]["value"] == 1 and found["yes_ratio"]["value"] == 1
    wrong = put("B.jsonl", [said[1], said[0], *said[2:]])
    refused("B.jsonl, line 1: answers without question_id", "pope", "--questions", put("Q.jsonl", pope_rows()), "--answers", wrong)
    refused(
        "3 answers without question_id for the 4",
        "pope",
        "--questions",
        put("Q.jsonl", pope_rows()),
        "--answers",
        put("B.jsonl", said[:3]),
    )
    bad = [{**row, "label": "maybe"} for row in pope_rows()]
    refused("Q.jsonl, line 1: 'label' must be yes or no", "pope", "--questions", put("Q.jsonl", bad), "--answers", wrong)


def test_chair_by_hand(put: Put) -> None:
    """Image 1 shows a cat, by its reference a person too; image 2 nothing. Of cat, dog, man and bus, dog and bus are false."""
    made = put("C.json", [{"image_id": 1, "caption": "a cat, a dog and a man"}, {"image_id": 2, "caption": "a bus"}])
    labels = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [{"image_id": 1, "category_id": 17}],
        "categories": [{"id": 17, "name": "cat"}],
    }
    refs = put(
        "R.json", {"annotations": [{"image_id": 1, "caption": "A woman with a cat"}, {"image_id": 2, "caption": "a street"}]}
    )
    files = ("chair", "--captions", made, "--instances", put("I.json", labels))
    found = run(*files, "--references", refs)
    assert (found["chair_i"]["value"], found["chair_s"]["value"], found["recall"]["value"]) == (0.5, 1, 1)
    assert run(*files)["chair_i"]["value"] == 0.75  # without references the man is false as well
    own = put("words.txt", "cat, kitten\ndog\n")
    assert run(*files, "--synonyms", own)["chair_i"]["value"] == 0.5
    labels["categories"] = [{"id": 17, "name": "catt"}]
    refused(
        "no synonyms are known for the category 'catt'; did you mean 'cat'",
        "chair",
        "--captions",
        made,
        "--instances",
        put("J.json", labels),
    )
    labels["annotations"] = [{"image_id": 1, "category_id": 3}]
    labels["categories"] = [{"id": 17, "name": "cat"}]
    refused(r"J.json, annotations\[0\]: there is no category 3", "chair", "--captions", made, "--instances", put("J.json", labels))
    labels = {"images": [{"id": 1}], "annotations": [], "categories": []}
    refused("ids are in .*C.json but not in .*J.json: 2", "chair", "--captions", made, "--instances", put("J.json", labels))


def test_pairs_by_hand(put: Put) -> None:
    """Won, tied (half), lost, and a NaN, which loses."""
    rows = [
        {"id": 1, "positive": 2, "negative": 1, "split": "a", "caption": "a b", "negative_caption": "a b c"},
        {"id": 2, "positive": 1, "negative": 1, "split": "a", "caption": "a b", "negative_caption": "a c"},
        {"id": 3, "positive": 0, "negative": 1, "split": "a", "caption": "a b c", "negative_caption": "a"},
        {"id": 4, "positive": None, "negative": 1, "split": "b", "caption": "a", "negative_caption": "a b c"},
    ]
    found = run("pairs", "--scores", put("S.jsonl", rows))
    whole_set = found["accuracy"]
    assert (whole_set["value"], whole_set["ties"], whole_set["nans"], whole_set["chance"]) == (1.5 / 4, 1, 1, 0.5)
    assert whole_set["controls"] == {"shortest": 2.5 / 4, "longest": 1.5 / 4}
    assert found["accuracy, macro over split"]["value"] == (0.5 + 0) / 2
    many = [{"id": 1, "positive": 1, "negatives": [1, 0, 1]}, {"id": 2, "positive": 1, "negatives": [2]}]
    found = run("pairs", "--scores", put("S.jsonl", many))["accuracy"]
    assert (found["value"], found["chance"]) == (pytest.approx((1 / 3 + 0) / 2), pytest.approx((1 / 4 + 1 / 2) / 2))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "positive": 1}], "S.jsonl, line 1: no field 'negative'"),
        ([{"id": 1, "positive": 1, "negative": 0}, {"id": 1, "positive": 1, "negative": 0}], "line 2: id '1' again"),
        ([{"id": 1, "positive": 1, "negative": 0}, {"positive": 1, "negative": 0}], "line 2: no field 'id'"),
        ([{"id": 1, "positive": float("nan"), "negative": 0}], "line 1: NaN is not JSON; write null"),
        ([{"id": 1, "positive": "high", "negative": 0}], "line 1: 'positive' must be a number"),
        ([{"id": 1, "positive": 1, "negatives": []}], "line 1: 'negatives' is empty"),
    ],
)
def test_faulty_pairs_are_refused_with_their_line(put: Put, rows: list[dict], message: str) -> None:
    refused(message, "pairs", "--scores", put("S.jsonl", rows))


def test_winoground_by_hand_and_constant(put: Put) -> None:
    """As in arXiv:2204.03162, eq. 1–3: text right (3 > 2, 1 > 0), image wrong (2 > 1)."""
    rows = [{"id": 0, "c0_i0": 3, "c1_i0": 2, "c0_i1": 0, "c1_i1": 1}]
    assert {m: r["value"] for m, r in run("pairs", "--scores", put("W.jsonl", rows)).items()} == {"text": 1, "image": 0, "group": 0}
    rows = [{"id": i, "c0_i0": 1, "c1_i0": 1, "c0_i1": 1, "c1_i1": 1} for i in range(9)]
    for r in run("pairs", "--scores", put("W.jsonl", rows)).values():
        assert r["value"] == r["chance"]


def test_retrieval_by_hand(put: Put) -> None:
    scores = np.array([[0.9, 0.1, 0.5, 0.2], [0.8, 0.7, 0.6, 0.1]])
    files = ("retrieval", "--similarity", put("S.npy", scores), "--k", "1,2")
    found = run(*files, "--positives", put("P.json", [[0, 3], [1, 2]]))
    assert found["row→column R@1"]["value"] == 0.5 and found["row→column R@2"]["value"] == 1
    assert found["column→row R@1"]["value"] == 1 and found["column→row R@1"]["clusters"] == 2
    assert found["row→column R@1"]["chance"] == 0.5 and found["row→column median rank"]["value"] == 1.5
    assert run(*files, "--positives", put("P.json", {"1": [1, 2], "0": [0, 3]})) == found
    refused(r"P.json, \[1\]: expected a list of column numbers", *files, "--positives", put("P.json", [[0], "x"]))
    refused("P.json: row 1: there is no column 4", *files, "--positives", put("P.json", [[0], [4]]))
    one_way = whole(*files, "--positives", put("P.json", [[0], [1]]))
    assert "column→row is not scored" in one_way["notes"][0] and len(one_way["results"]) == 3
    refused("P.json: row 0 has no positive", *files, "--positives", put("P.json", [[], [1]]))
    refused("P.json: 2 rows of scores but positives for 1", *files, "--positives", put("P.json", [[0]]))
    refused("expected the keys 0 to 1", *files, "--positives", put("P.json", {"0": [1]}))


def test_zeroshot_by_hand(put: Put) -> None:
    scores = np.array([[3.0, 1, 0], [1, 1, 0], [0, np.nan, 1], [5, 4, 1]])
    files = ("zeroshot", "--scores", put("S.npy", scores))
    found = run(*files, "--labels", put("L.json", [0, 0, 2, 1]))
    assert found["top1"]["value"] == pytest.approx((1 + 0.5 + 1 + 0) / 4) and found["top1"]["nans"] == 1
    assert found["per_class_recall"]["value"] == pytest.approx((0.75 + 1 + 0) / 3)
    assert found["top1"]["controls"]["constant"] == 0.5 and "top5" not in found
    named = (*files, "--classes", put("C.json", ["cat", "dog", "bus"]))
    assert run(*named, "--labels", put("L.json", ["cat", "cat", "bus", "dog"])) == found
    refused(r"L.json, \[3\]: 'cow' is not one of the 3 classes", *named, "--labels", put("L.json", ["cat", "cat", "bus", "cow"]))
    refused("expected a list of 4 labels, one per row of .*S.npy, got 3 labels", *files, "--labels", put("L.json", [0, 0, 2]))


def choices(put: Put, answers: list[str], mode: str, **more: Any) -> dict:
    rows = [{"id": i, "image": f"{i // 2}", "answer": "A", "options": ["cat", "dog"], **{k: v[i] for k, v in more.items()}}
            for i in range(len(answers))]  # fmt: skip
    said = [{"id": i, "answer": a} for i, a in enumerate(answers)]
    return run("multiple-choice", "--questions", put("Q.jsonl", rows), "--answers", put("A.jsonl", said), "--mode", mode)


def test_multiple_choice_by_hand(put: Put) -> None:
    """Two rotations of two questions: the second rotation of the first is not understood."""
    found = choices(put, ["A", "what?", "cat", "B. dog"], "circular", group=[1, 1, 2, 2], answer=["A", "B", "A", "B"])
    assert found["accuracy"]["value"] == 0.75 and found["accuracy"]["band"] == [0.75, 1]
    assert found["circular_accuracy"]["value"] == 0.5 and found["circular_accuracy"]["band"] == [0.5, 1]
    assert found["accuracy"]["controls"]["constant"] == 0.5 and found["circular_accuracy"]["chance"] == 0.25
    refused("question '2' has 2 options but 1 rotations", *_files_of_one_rotation(put))


def _files_of_one_rotation(put: Put) -> tuple[str, ...]:
    rows = [{"id": i, "group": g, "answer": 0, "options": ["x", "y"]} for i, g in enumerate([1, 1, 2])]
    said = [{"id": i, "answer": "A"} for i in range(3)]
    return "multiple-choice", "--questions", put("Q.jsonl", rows), "--answers", put("A.jsonl", said), "--mode", "circular"


def test_scores_of_options_land_on_chance_if_equal(put: Put) -> None:
    rows = [{"id": i, "answer": i % 3, "options": ["x", "y", "z"], "group": i // 3} for i in range(6)]
    said = [{"id": i, "scores": [1, 1, 1]} for i in range(6)]
    files = ("multiple-choice", "--questions", put("Q.jsonl", rows), "--answers", put("A.jsonl", said), "--mode", "circular")
    for r in run(*files).values():
        assert r["value"] == r["chance"] == 1 / 3
    said[1]["scores"] = [1, 1]
    refused("A.jsonl, line 2: 2 scores for 3 options", *files[:3], "--answers", put("A.jsonl", said))


def test_mme_by_hand(put: Put) -> None:
    """Images 0 and 1 of "count": three of four right, one of two whole: 75 + 50. "color": all: 200."""
    rows = [
        {"id": i, "image": f"{i // 2}", "category": ["count", "color"][i // 4], "answer": ["Yes", "No"][i % 2]} for i in range(6)
    ]
    said = [{"id": i, "answer": ["yes", "no"][i % 2] if i != 3 else "yes"} for i in range(6)]
    files = ("multiple-choice", "--questions", put("Q.jsonl", rows), "--answers", put("A.jsonl", said), "--mode", "mme")
    found = run(*files)
    assert found["count: mme_score"]["value"] == 125 and found["color: mme_score"]["value"] == 200
    even = put("E.jsonl", [{"id": i, "scores": [1, 1]} for i in range(6)])
    assert all(r["value"] == r["chance"] for m, r in run(*files[:3], "--answers", even, *files[5:]).items() if ": " in m)
    assert found["mme_score, all subtasks"]["value"] == 325 and found["count: mme_score"]["chance"] == 75


def test_mmbench_table_as_published(put: Put) -> None:
    table = "index\tquestion\tA\tB\tanswer\tcategory\n1\twhat?\tcat\tdog\tA\tx\n1000001\twhat?\tdog\tcat\tB\tx\n"
    said = put("A.jsonl", [{"index": 1, "prediction": "A"}, {"index": 1000001, "prediction": "B. cat"}])
    found = run("multiple-choice", "--questions", put("mmbench.tsv", table), "--answers", said, "--mode", "circular")
    assert (found["circular_accuracy"]["value"], found["circular_accuracy"]["n"], found["accuracy"]["n"]) == (1, 1, 2)


CONFIDENCES = [{"id": i, "confidence": c, "correct": k} for i, (c, k) in enumerate([(0.9, 1), (0.8, 0), (0.7, 1), (0.6, 0)])]


def test_selective_by_hand(put: Put) -> None:
    """Risks 0, 1/2, 1/3, 1/2. Answering all at cost 1: (1 − 1 + 1 − 1) / 4 = 0; from .7 on validation: (1 − 1 + 1) / 4."""
    records = put("R.jsonl", CONFIDENCES)
    validation = put(
        "V.jsonl", [{"id": f"v{i}", "confidence": c, "correct": k} for i, (c, k) in enumerate([(0.9, 1), (0.7, 1), (0.1, 0)])]
    )
    found = run("selective", "--records", records, "--validation", validation, "--risks", "0.1,0.4", "--costs", "1")
    assert found["area under risk"]["value"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert (found["coverage at risk 0.1"]["value"], found["coverage at risk 0.4"]["value"]) == (0.25, 0.75)
    assert found["reliability at cost 1"]["value"] == 0.25 and found["reliability at cost 1"]["controls"]["always answering"] == 0
    refused("4 images or ids are also in", "selective", "--records", records, "--validation", records)
    refused("expected numbers above 0", "selective", "--records", records, "--risks", "x")


def test_calibration_by_hand(put: Put) -> None:
    found = whole("calibration", "--records", put("R.jsonl", CONFIDENCES), "--bins", "2")
    values = {r["metric"]: r["value"] for r in found["results"]}
    assert values["ece"] == pytest.approx(0.25) and values["brier"] == pytest.approx((0.01 + 0.64 + 0.09 + 0.36) / 4)
    assert [(b["n"], b["accuracy"]) for b in found["bins"]] == [(4, 0.5)]
    bad = put("R.jsonl", [*CONFIDENCES, {"id": 9, "confidence": 1.5, "correct": 1}])
    refused("R.jsonl, line 5: 'confidence' must be a probability", "calibration", "--records", bad)


def test_memorization_finds_what_was_planted(put: Put, tmp_path: Path) -> None:
    """The target's captions lie beside images of the same objects, those of the reference anywhere."""
    rng = np.random.default_rng(0)
    public, names = rng.normal(size=(200, 16)), ["cat", "dog", "bus", "car", "cup", "tv"]
    labels = [[str(name)] for name in rng.choice(names, 200)]
    own = rng.integers(200, size=60)
    np.savez(tmp_path / "T.npz", text=public[own] + 0.01 * rng.normal(size=(60, 16)), public=public)
    np.savez(tmp_path / "R.npz", text=rng.normal(size=(60, 16)), public=public)
    objects = put("O.json", {"samples": [labels[i] for i in own], "public": labels})
    target, reference = str(tmp_path / "T.npz"), str(tmp_path / "R.npz")
    found = run("memorization", "--target", target, "--reference", reference, "--objects", objects, "-k", "1")
    assert found["population recall gap"]["low"] > 0.5 and found["population recall gap"]["chance"] == 0
    assert found["area between recall curves"]["value"] == pytest.approx(
        found["recall, target"]["value"] - found["recall, target"]["controls"]["reference"]
    )
    same = run("memorization", "--target", target, "--reference", target, "--objects", objects)
    assert same["population recall gap"]["value"] == same["population precision gap"]["value"] == 0
    short = put("O.json", {"samples": [["cat"]], "public": labels})
    refused(
        "'text' has 60 rows, but .*O.json has 1", "memorization", "--target", target, "--reference", reference, "--objects", short
    )


def test_frequency_recovers_the_law_in_files(put: Put) -> None:
    counts = {f"c{i}": 10**i for i in range(5)}
    rows = [{"concept": f"c{i}", "correct": int(j < 2 + 2 * i)} for i in range(5) for j in range(10)]
    files = ("frequency", "--counts", put("C.json", counts), "--results")
    document = whole(*files, put("R.jsonl", rows))
    values = {r["metric"]: r["value"] for r in document["results"]}
    assert values["slope per decade"] == pytest.approx(0.2) and values["raw correlation (r)"] == pytest.approx(1)
    assert [b["concepts"] for b in document["bins"]] == [1] * 5
    refused("C.json: no count of the concept 'x'", *files, put("R.jsonl", [{"concept": "x", "correct": 1}]))
    for r in run(*files, put("R.jsonl", rows[:10])).values():  # one concept: there is nothing to correlate
        assert (r["value"], r["low"], r["high"]) == (None, None, None)


def test_bias_by_hand(put: Put) -> None:
    rows = [{"query": "q", "item": i, "group": "ab"[i % 2], "score": s} for i, s in enumerate([4, 1, 3, 2])]
    found = run("bias", "--scores", put("S.jsonl", rows), "-k", "2")
    assert found["max skew@2"]["value"] == pytest.approx(np.log(2))
    rows = [
        {"image": i, "group": "ab"[i % 2], "attribute": a, "score": s * (i + 1)} for i in range(4) for a, s in (("x", 2), ("y", 1))
    ]
    found = run("bias", "--scores", put("S.jsonl", rows))
    assert found["a: x − y"]["value"] == 2 and found["b: x − y"]["value"] == 3  # of images 1 and 3, 2 and 4
    rows = [{"set": i, "group": g, "score": i + (g == "f")} for i in range(5) for g in "mf"]
    found = run("bias", "--scores", put("S.jsonl", rows))["f − m"]
    assert (found["value"], found["controls"]["p of no difference"]) == (1, 2 / 2**5)
    refused("set '4' has no member of the group 'f'", "bias", "--scores", put("S.jsonl", rows[:-1]))


def test_compare_by_hand(put: Put) -> None:
    """Five images, in all of which A is right and B wrong: p = 2/32; Holm doubles the smallest of two."""
    rows = [{"item": i, "cluster": f"{i}.jpg", "correct": {"top1": 1, "top5": 1}} for i in range(5)]
    worse = [{**row, "correct": {"top1": 0, "top5": 1}} for row in rows]
    first, second = put("A.jsonl", rows), put("B.jsonl", worse[::-1])
    found = run("compare", first, second)
    assert found["top1"]["difference"] == 1 and found["top1"]["p"] == 2 / 32 and found["top1"]["p_holm"] == 4 / 32
    assert found["top5"]["p"] == 1
    assert run("compare", first, second, "--metric", "top1")["top1"]["p_holm"] == 2 / 32
    refused("did you mean 'top1'", "compare", first, second, "--metric", "op1")
    refused("1 of the 5 ids are in .*A.jsonl but not in .*C.jsonl: 4", "compare", first, put("C.jsonl", rows[:4]))
    table = put("D.csv", "item,correct\n1,true\n2,false\n")
    assert run("compare", table, put("E.csv", "item,correct\n1,0\n2,0\n"))["correct"]["difference"] == 0.5
    refused("E.csv, line 3: 'correct' must be a number", "compare", table, put("E.csv", "item,correct\n1,0\n2,nan\n"))
    moved = [{**row, "cluster": "x"} for row in rows]
    refused("C.jsonl, line 1: item '0' is of 'x' here and of '0.jpg'", "compare", first, put("C.jsonl", moved))


def test_the_same_set_twice_tells_nothing_new(put: Put) -> None:
    """Same value and, clustered on the image, the same interval; in any order."""
    rng = np.random.default_rng(3)
    rows = [{"id": i, "image": f"{i // 2}", "positive": float(p), "negative": 0.5} for i, p in enumerate(rng.random(40))]
    once = run("pairs", "--scores", put("S.jsonl", rows))["accuracy"]
    twice = rows + [{**row, "id": f"again {row['id']}"} for row in rows]
    rng.shuffle(twice)
    again = run("pairs", "--scores", put("S.jsonl", twice))["accuracy"]
    assert [again[k] for k in ("value", "low", "high", "clusters")] == pytest.approx(
        [once[k] for k in ("value", "low", "high", "clusters")]
    )
    assert again["n"] == 2 * once["n"]


def test_table_says_what_is_beside_the_numbers(put: Put) -> None:
    rows = [{"id": i, "positive": 1, "negative": 1, "split": ["[a]", "b"][i % 2]} for i in range(4)]
    text = CliRunner().invoke(app, ["metrics", "pairs", "--scores", put("S.jsonl", rows)], env={"COLUMNS": "200"}).stdout
    assert "split=[a]" in text and "0.5000" in text and "ties" in text and "no NaNs, no unparsed" in text
    assert "fewer than 10 clusters" in text


def test_clipscore_by_a_model_that_knows_two_colours(tmp_path: Path, put: Put) -> None:
    """Its embeddings are one axis a colour: the right colour has cosine 1, hence 2.5; the wrong one 0."""
    from PIL import Image

    from diptych.benchmarks.texts.clipscore import image_files, score_by_model
    from diptych.core.capabilities import FunctionModel

    model = FunctionModel(
        "colours",
        embed_image=lambda images: np.array([[i[..., 0].mean(), i[..., 2].mean()] for i in images]),
        embed_text=lambda texts: np.array([["red" in t, "blue" in t] for t in texts], dtype=float) + 1e-9,
    )
    for name, colour in (("1.png", (255, 0, 0)), ("2.png", (0, 0, 255)), ("3.png", (0, 0, 255))):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    generated = {"1": "red", "2": "blue", "3": "red"}
    references = {"1": ["red"], "2": ["red"], "3": ["something", "blue"]}
    rows = {"images": [{"id": i, "file_name": f"{i}.png"} for i in (1, 2, 3)]}
    files = image_files(Path(put("refs.json", rows)), tmp_path, list(generated))
    assert files == image_files(Path(put("refs.json", {"images": []})), tmp_path, list(generated))  # by name
    alone, beside = score_by_model(model, tmp_path, files, generated, references)
    assert (alone.metric, alone.value) == ("clipscore", pytest.approx((2.5 + 2.5 + 0) / 3))
    assert (beside.metric, beside.value) == ("refclipscore", pytest.approx((2 * 2.5 * 1 / 3.5 + 0 + 0) / 3, abs=1e-6))
    with pytest.raises(DiptychError, match="CLIPScore needs a model with embed_image and embed_text"):
        score_by_model(FunctionModel("mute", generate=lambda *_: []), tmp_path, files, generated, references)
    with pytest.raises(DiptychError, match="1 of 1 image missing, the first 9.png"):
        score_by_model(model, tmp_path, {"9": "9.png"}, {"9": "red"}, None)
