"""``diptych evaluate`` and ``diptych metrics`` give the same results for the same answers, wherever the two once disagreed."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_asking import png, save_pictures
from test_metrics_cli import run
from test_truth import Labelled, teller

from diptych.benchmarks.records import Result, plain
from diptych.benchmarks.run import evaluate
from diptych.benchmarks.tasks import task
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from evaluation_fixture import Plain

SAME = ("value", "low", "high", "n", "clusters", "chance", "unparsed", "band", "ties", "nans", "higher_is_better")


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answering(answers: dict[str, str | None]) -> FunctionModel:
    """Its answer to the prompt with the word <key>."""
    return FunctionModel(
        "answers", generate=lambda images, prompts, n: [next((a for k, a in answers.items() if f"<{k}>" in p), "") for p in prompts]
    )


def evaluated(model: FunctionModel, address: str, source: Any = None) -> dict[str, dict[str, Any]]:
    results: list[Result] = evaluate(model, source, [task(address)]).results
    return {r.metric: plain(r) for r in results}


def same(a: dict[str, Any], b: dict[str, Any], fields: tuple[str, ...] = SAME) -> None:
    for field in fields:
        assert a[field] == pytest.approx(b[field], abs=1e-9), field


# --- VQA ---


def both_vqa(tmp_path: Path, answers: dict[str, str | None], humans: dict[str, list[str]]) -> tuple[dict, dict]:
    """Accuracy by ``evaluate`` and by ``metrics``."""
    save_pictures(tmp_path, ["1.png", "2.png"])
    asked = [{"question_id": k, "image_id": f"{1 + i % 2}.png", "question": f"<{k}>?"} for i, k in enumerate(humans)]
    true = [{"question_id": k, "answer_type": "other", "answers": [{"answer": a} for a in of]} for k, of in humans.items()]
    (tmp_path / "q.json").write_text(json.dumps({"questions": asked}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": true}))
    (tmp_path / "r.json").write_text(json.dumps([{"question_id": k, "answer": a} for k, a in answers.items()]))
    own = evaluated(answering(answers), f"vqa?file={tmp_path}/q.json&annotations={tmp_path}/a.json")["accuracy"]
    files = (
        "--questions",
        str(tmp_path / "q.json"),
        "--annotations",
        str(tmp_path / "a.json"),
        "--results",
        str(tmp_path / "r.json"),
    )
    return own, run("vqa", *files)["accuracy"]


def test_vqa_takes_the_first_line_of_an_answer(tmp_path: Path) -> None:
    own, filed = both_vqa(tmp_path, {"a": "red\nbecause it is", "b": "blue"}, {"a": ["red"] * 9 + ["pink"], "b": ["blue"] * 10})
    same(own, filed)
    assert filed["value"] == 1


@pytest.mark.parametrize("blank", ["", " \n", None])
def test_vqa_answers_that_are_blank_or_null_are_unparsed(tmp_path: Path, blank: str | None) -> None:
    own, filed = both_vqa(tmp_path, {"a": blank, "b": "blue"}, {"a": ["red"] * 10, "b": ["blue"] * 10})
    same(own, filed)
    assert (filed["value"], filed["unparsed"], filed["band"]) == (0.5, 1, [0.5, 1])


def test_vqa_with_few_answers_compares_the_normal_form(tmp_path: Path) -> None:
    own, filed = both_vqa(tmp_path, {"a": "The cat.", "b": "two"}, {"a": ["cat"], "b": ["3", "4"]})
    same(own, filed)
    assert filed["value"] == 0.5


def test_vqa_constant_is_the_best_single_answer(tmp_path: Path) -> None:
    """Each question has its own commonest answer, but "it" is a third one everywhere: of 10, three say so, which earns .9."""
    humans = {k: [f"x{k}"] * 4 + ["it"] * 3 + [f"y{k}"] * 3 for k in "abc"}
    own, filed = both_vqa(tmp_path, dict.fromkeys("abc", "no"), humans)
    assert own["controls"]["constant"] == filed["controls"]["constant"] == pytest.approx(0.9)


# --- POPE ---


def both_pope(tmp_path: Path, rows: list[dict], answers: dict[str, str | None]) -> tuple[dict, dict]:
    save_pictures(tmp_path, ["1.png", "2.png"])
    questions = lines(tmp_path / "q.jsonl", [{"image": f"{1 + i % 2}.png", "text": f"<{i}>?", **row} for i, row in enumerate(rows)])
    filed = lines(tmp_path / "a.jsonl", [{"question": f"<{i}>?", "answer": answers[str(i)]} for i in range(len(rows))])
    return evaluated(answering(answers), f"pope?file={questions}"), run("pope", "--questions", questions, "--answers", filed)


def test_pope_reads_the_same_rows(tmp_path: Path) -> None:
    """Without question_id, the right answer as ``answer``; a null answer is unparsed; most are no, so the best constant is no."""
    rows = [{"answer": a} for a in ("yes", "No", "no", "no")]
    own, filed = both_pope(tmp_path, rows, {"0": None, "1": "yes", "2": "No.", "3": "no"})
    for metric in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        same(own[metric], filed[metric])
    assert filed["accuracy"]["unparsed"] == 1 and filed["accuracy"]["band"] == [0.5, 0.75]
    assert own["accuracy"]["controls"]["constant"] == filed["accuracy"]["controls"]["constant"] == 0.75
    assert own["f1"]["controls"]["always_yes"] == filed["f1"]["controls"]["always_yes"] == 0.4


def test_pope_refuses_a_question_that_occurs_twice(tmp_path: Path) -> None:
    """Three files put together number their questions from 1 each; the second of a number was lost without a word."""
    with pytest.raises(DiptychError, match=r"q.jsonl: question '1' occurs twice"):
        both_pope(tmp_path, [{"label": "yes", "question_id": 1}] * 2, {"0": "yes", "1": "yes"})
    with pytest.raises(DiptychError, match=r"'1' (again|occurs twice)"):
        run("pope", "--questions", str(tmp_path / "q.jsonl"), "--answers", str(tmp_path / "a.jsonl"))


# --- multiple choice ---


def both_choices(tmp_path: Path, rows: list[dict], answers: list[str | None], mode: str = "plain") -> tuple[dict, dict]:
    save_pictures(tmp_path, ["1.png"])
    asked = [{"id": i, "image": "1.png", "question": f"<{i}>?", **row} for i, row in enumerate(rows)]
    questions = lines(tmp_path / "q.jsonl", asked)
    filed = lines(tmp_path / "a.jsonl", [{"id": row["id"], "answer": a} for row, a in zip(asked, answers, strict=True)])
    model, more = answering({str(i): a for i, a in enumerate(answers)}), "&circular=true" if mode == "circular" else ""
    own = evaluated(model, f"choices?file={questions}{more}")
    return own, run("multiple-choice", "--questions", questions, "--answers", filed, "--mode", mode)


@pytest.mark.parametrize(
    ("options", "keys", "answers"),
    [
        (["3", "2", "1"], [1, 2], ["B", "C"]),  # indices, though the options are numbers
        (["3", "2", "1"], [1, "1"], ["B", "B"]),
        (["x", "y", "z"], ["1", "0"], ["B", "A"]),  # indices as digits, as tables have them
        (["2", "3", "4"], ["4", "2"], ["C", "A"]),  # texts, for which 4 could not be an index
        (["B", "A", "whale"], ["A", "C"], ["A", "C"]),  # letters, though options are letters: C is not the text of one
        (["Cat", "dog"], ["cat", "Dog"], ["A", "B"]),  # the text of an option in another case
    ],
)
def test_the_right_option_is_read_alike(tmp_path: Path, options: list[str], keys: list, answers: list[str]) -> None:
    own, filed = both_choices(tmp_path, [{"options": options, "answer": key} for key in keys], answers)
    same(own["accuracy"], filed["accuracy"])
    assert filed["accuracy"]["value"] == 1


def test_options_may_be_a_list_written_as_text_and_repeat(tmp_path: Path) -> None:
    """MMMU's way. Where two options are the same, either letter is right, for an answer and for chance."""
    rows = [{"options": "['cat', 'dog']", "answer": "B"}, {"choices": ["cat", "cat", "dog"], "answer": "A"}]
    own, filed = both_choices(tmp_path, rows, ["dog", "B"])
    same(own["accuracy"], filed["accuracy"])
    assert filed["accuracy"]["value"] == 1 and filed["accuracy"]["chance"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_null_answers_of_choices_are_unparsed(tmp_path: Path) -> None:
    own, filed = both_choices(tmp_path, [{"options": ["cat", "dog"], "answer": "A"}] * 2, [None, "A"])
    same(own["accuracy"], filed["accuracy"])
    assert filed["accuracy"]["band"] == [0.5, 1]


def test_circular_accuracy_of_a_file_with_its_own_rotations(tmp_path: Path) -> None:
    """MMBench's: index 1 and 1000001 are one question. The second rotation cannot be read; who guesses anew is right in 1 of 4."""
    rows = [{"id": 1, "options": ["cat", "dog"], "answer": "A"}, {"id": 1000001, "options": ["dog", "cat"], "answer": "B"}]
    own, filed = both_choices(tmp_path, rows, ["cat", "hm"], "circular")
    same(own["accuracy"], filed["accuracy"])
    same(own["circular"], filed["circular_accuracy"])
    assert filed["circular_accuracy"]["n"] == 1 and filed["circular_accuracy"]["band"] == [0, 1]
    assert filed["circular_accuracy"]["chance"] == 1 / 4


def test_ties_at_the_top_are_counted_wherever_the_right_option_is(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["1.png"])
    scores = {"x": 1.0, "y": 1.0, "z": 0.0}
    rows = [{"id": i, "image": "1.png", "question": "?", "options": list("xyz"), "answer": k} for i, k in enumerate("AC")]
    questions = lines(tmp_path / "q.jsonl", rows)
    filed = lines(tmp_path / "a.jsonl", [{"id": i, "scores": list(scores.values())} for i in range(2)])
    model = FunctionModel("s", score=lambda images, texts: [[scores[t[-1]] for t in texts]] * len(images))
    own = evaluated(model, f"choices?file={questions}")["accuracy"]
    same(own, run("multiple-choice", "--questions", questions, "--answers", filed)["accuracy"])
    assert own["ties"] == 2 and own["value"] == 0.25


def test_index_is_the_name_of_a_question_that_also_has_an_id(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["1.png"])
    rows = [{"index": i, "id": "same", "image": "1.png", "question": "?", "options": ["x", "y"], "answer": "A"} for i in range(2)]
    questions = lines(tmp_path / "q.jsonl", rows)
    filed = lines(tmp_path / "a.jsonl", [{**row, "prediction": "B"} for row in rows])  # VLMEvalKit keeps all columns
    own = evaluated(answering({}), f"choices?file={questions}")["accuracy"]
    found = run("multiple-choice", "--questions", questions, "--answers", filed)["accuracy"]
    assert own["n"] == found["n"] == 2 and found["value"] == 0


def test_an_image_that_is_kept_once_is_one_cluster(tmp_path: Path) -> None:
    """The second question's cell holds the index of the first: always yes is right in half of them and never in both."""
    rows = ["index\tquestion\tanswer\tcategory\timage"]
    for i in range(6):
        picture = base64.b64encode(png(10 + i) + b"\0" * 200).decode() if i % 2 == 0 else str(i - 1)
        rows.append(f"{i}\t<{i}>?\t{['Yes', 'No'][i % 2]}\texistence\t{picture}")
    (tmp_path / "mme.tsv").write_text("\n".join(rows) + "\n")
    filed = lines(tmp_path / "a.jsonl", [{"index": i, "prediction": "Yes" if i else "hm"} for i in range(6)])
    own = evaluated(answering({str(i): "Yes" if i else "hm" for i in range(6)}), f"mme?file={tmp_path}/mme.tsv")
    found = run("multiple-choice", "--questions", f"{tmp_path}/mme.tsv", "--answers", filed, "--mode", "mme")
    same(own["accuracy"], found["accuracy"])
    same(own["existence (of 200)"], found["existence: mme_score"], tuple(k for k in SAME if k not in ("n", "ties", "nans")))
    assert found["accuracy"]["clusters"] == 3 and found["existence: mme_score"]["value"] == pytest.approx(100 / 3)
    assert found["existence: mme_score"]["band"] == pytest.approx([100 / 3, 50])


# --- scores of images and texts ---


def test_pairs_have_the_same_controls_macro_and_ties(tmp_path: Path) -> None:
    """Lengths are counted in words: "a cat sits" is longer than "incomprehensibilities"."""
    rng = random.Random(0)
    save_pictures(tmp_path, [f"{i}.png" for i in range(12)])
    words = ["incomprehensibilities", "a cat sits", "two dogs", "one"]
    rows, scores = [], []
    for i in range(24):
        true, *false = (f"{w} {i}" for w in rng.sample(words, 3))
        kind = ["on", "near", "under"][rng.randrange(3)]
        rows.append({"id": i, "image": f"{i % 12}.png", "caption": true, "negatives": false, "relation_name": kind})
        scores.append([float(rng.randrange(3)) for _ in range(3)])
    of = {
        t: s for row, mine in zip(rows, scores, strict=True) for t, s in zip([row["caption"], *row["negatives"]], mine, strict=True)
    }
    model = FunctionModel("s", score=lambda images, texts: [[of[t] for t in texts]] * len(images))
    own = evaluated(model, f"pairs?file={lines(tmp_path / 'q.jsonl', rows)}")
    filed = [
        {**row, "positive": s[0], "negatives": s[1:], "negative_captions": row["negatives"]}
        for row, s in zip(rows, scores, strict=True)
    ]
    found = run("pairs", "--scores", lines(tmp_path / "s.jsonl", filed))
    same(own["accuracy"], found["accuracy"])
    same(own["macro"], found["accuracy, macro over relation_name"])
    for control in ("shortest", "longest"):
        assert own["accuracy"]["controls"][control] == pytest.approx(found["accuracy"]["controls"][control])
    assert own["accuracy"]["slices"] == found["accuracy"]["slices"] != []


def test_winoground_ties_are_those_of_each_metric(tmp_path: Path) -> None:
    """Equal scores within captions only: both texts are ties, no image is."""
    save_pictures(tmp_path, ["a.png", "b.png"])
    row = {"id": 1, "image_0": "a.png", "image_1": "b.png", "caption_0": "x", "caption_1": "y", "collapsed_tag": "Object"}
    grey = {10: [2.0, 2.0], 20: [1.0, 3.0]}
    model = FunctionModel(
        "s", score=lambda images, texts: [[grey.get(int(i[0, 0, 0]), [0, 0])["xy".index(t)] for t in texts] for i in images]
    )
    own = evaluated(model, f"winoground?file={lines(tmp_path / 'q.jsonl', [row])}")
    found = run("pairs", "--scores", lines(tmp_path / "s.jsonl", [{"id": 1, "c0_i0": 2, "c1_i0": 2, "c0_i1": 1, "c1_i1": 3}]))
    for metric in ("text", "image", "group"):
        same(own[metric], found[metric])
    assert (own["text"]["ties"], own["image"]["ties"]) == (1, 0)


def test_per_class_recall_has_the_same_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names, labels = ["x", "y", "z"], rng.integers(3, size=30)
    save_pictures(tmp_path, [f"{i}.png" for i in range(25)])
    labels = labels[:25]
    (tmp_path / "rows.csv").write_text("image,label\n" + "".join(f"{i}.png,{names[k]}\n" for i, k in enumerate(labels)))
    scores = rng.normal(size=(26, 3)).round(1)
    model = FunctionModel("s", score=lambda images, texts: scores[: len(images)])
    own = evaluated(model, f"zeroshot?file={tmp_path}/rows.csv&n=0")
    np.save(tmp_path / "s.npy", scores[:25])
    (tmp_path / "l.json").write_text(json.dumps(labels.tolist()))
    found = run("zeroshot", "--scores", str(tmp_path / "s.npy"), "--labels", str(tmp_path / "l.json"))
    for metric in ("top1", "per_class_recall"):
        same(own[metric], found[metric])


def test_selective_results_have_the_same_intervals(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    save_pictures(tmp_path, [f"{i}.png" for i in range(20)])
    rows = [{"id": i, "image": f"{i // 2}.png", "question": f"<{i}>", "options": ["x", "y"], "answer": "A"} for i in range(40)]
    p = rng.random(40).round(2)
    model = FunctionModel(
        "l",
        follows_prompts=True,
        loglikelihood=lambda images, texts, prompts: [
            np.log(0.01 + q if t == "x" else 1.01 - q)
            for t, q in zip(texts, (p[int(w.split(">")[0].split("<")[1])] for w in prompts), strict=True)
        ],
    )
    records = evaluate(model, None, [task(f"choices?file={lines(tmp_path / 'q.jsonl', rows)}")], tmp_path / "out", key="k")
    own = {r.metric: plain(r) for r in records.results}
    kept = [json.loads(line) for line in (tmp_path / "out/records/choices.jsonl").read_text().splitlines()]
    filed = [
        {"id": r["item"], "image": r["cluster"], "confidence": r["confidence"], "correct": r["correct"]["accuracy"]} for r in kept
    ]
    found = run("selective", "--records", lines(tmp_path / "c.jsonl", filed), "--risks", "0.05,0.1,0.2")
    fields = ("value", "low", "high", "n", "clusters", "higher_is_better")
    same(own["risk_coverage_area"], found["area under risk"], fields)
    same(own["coverage@20%_risk"], found["coverage at risk 0.2"], fields)
    assert own["risk_coverage_area"]["chance"] == found["area under risk"]["controls"]["constant"]


# --- captions ---


def test_captions_have_the_same_intervals_and_null_is_an_empty_caption(tmp_path: Path) -> None:
    source = Plain(size=12)
    samples = [source[i] for i in range(12)]
    said = {s.id: None if i == 3 else f"{s.captions[0][: 9 + 3 * i]} thing" for i, s in enumerate(samples)}
    of = {s.image.tobytes(): said[s.id] for s in samples}
    own = evaluated(
        FunctionModel("m", generate=lambda images, p, n: [of.get(i.tobytes(), "x") for i in images]), "captions", source
    )
    true = {"annotations": [{"image_id": s.id, "caption": c} for s in samples for c in s.captions]}
    (tmp_path / "refs.json").write_text(json.dumps(true))
    (tmp_path / "r.json").write_text(json.dumps([{"image_id": k, "caption": v} for k, v in reversed(said.items())]))
    found = run("captions", "--results", str(tmp_path / "r.json"), "--references", str(tmp_path / "refs.json"), "--no-java")
    for metric in ("cider", "bleu4", "rouge_l"):
        same(own[metric], found[metric])
        assert own[metric]["controls"]["shuffled"] == pytest.approx(found[metric]["controls"]["shuffled"])


def test_chair_knows_labels_in_capitals_and_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    """The label "Dog" is the dog of the captions."""
    labels = [["Dog"], ["Cat"], ["Dog", "Cat"], ["Cup"]]
    said = {10: "a dog", 20: "a cat and a cup", 30: "a cat", 40: "a dog"}
    own = evaluated(teller(said), "chair", Labelled(labels))
    names = ["Dog", "Cat", "Cup"]
    known = {
        "images": [{"id": i} for i in range(4)],
        "annotations": [{"image_id": i, "category_id": names.index(n)} for i, of in enumerate(labels) for n in of],
        "categories": [{"id": i, "name": n} for i, n in enumerate(names)],
    }
    (tmp_path / "i.json").write_text(json.dumps(known))
    made = [{"image_id": i, "caption": c} for i, c in enumerate(said.values())]
    (tmp_path / "c.json").write_text(json.dumps([made[2], made[0], made[3], made[1]]))
    found = run("chair", "--captions", str(tmp_path / "c.json"), "--instances", str(tmp_path / "i.json"))
    for metric in ("chair_i", "chair_s", "recall", "length"):
        same(own[metric], found[metric])
    assert found["chair_i"]["value"] == 2 / 5  # a cup in the second image, a dog in the fourth
    assert own["chair_i"]["controls"]["shuffled"] == found["chair_i"]["controls"]["shuffled"]


# --- probes ---


def test_less_memorisation_is_better_in_both(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(9, 4))
    for name in "TR":
        np.savez(tmp_path / f"{name}.npz", text=vectors[:4], public=vectors[4:])
    (tmp_path / "o.json").write_text(
        json.dumps({"samples": [["cat"]] * 4, "public": [["cat"], ["dog"], ["cup"], ["cat"], ["dog"]]})
    )
    files = [a for k in ("target", "reference") for a in (f"--{k}", str(tmp_path / f"{k[0].upper()}.npz"))]
    found = run("memorization", *files, "--objects", str(tmp_path / "o.json"), "-k", "2")
    assert not any(r["higher_is_better"] for r in found.values())


def test_frequency_reads_the_same_counts_and_has_the_same_intervals(tmp_path: Path) -> None:
    names, rng = ["ant", "bee", "cat", "dog", "elk"], np.random.default_rng(0)
    save_pictures(tmp_path, [f"{i}.png" for i in range(20)])
    (tmp_path / "rows.csv").write_text("image,label\n" + "".join(f"{i}.png,{names[i // 4]}\n" for i in range(20)))
    (tmp_path / "c.json").write_text(json.dumps(dict(zip(names, (1, 10.0, 100, 1e3, 0), strict=True))))
    scores = rng.random((21, 5)) + 0.4 * np.eye(5)[[*np.repeat(np.arange(5), 4), 0]]
    model = FunctionModel("s", score=lambda images, texts: scores[: len(images)])
    own = evaluated(model, f"frequency?file={tmp_path}/rows.csv&counts={tmp_path}/c.json")
    rows = [{"concept": names[i // 4], "correct": int(scores[i].argmax() == i // 4)} for i in range(20)]
    found = run("frequency", "--counts", str(tmp_path / "c.json"), "--results", lines(tmp_path / "r.jsonl", rows))
    pairs = {"correlation": "raw correlation (r)", "rank_correlation": "rank correlation (rho)", "slope": "slope per decade"}
    for metric, name in pairs.items():
        same(own[metric], found[name])
    (tmp_path / "c.json").write_text('{"ant": 1, "bee": 2, "cat": 3, "dog": 4}')
    with pytest.raises(DiptychError, match="elk"):
        evaluated(model, f"frequency?file={tmp_path}/rows.csv&counts={tmp_path}/c.json")
    with pytest.raises(DiptychError, match="elk"):
        run("frequency", "--counts", str(tmp_path / "c.json"), "--results", str(tmp_path / "r.jsonl"))


def test_records_outlive_a_move_of_the_task_in_the_source(tmp_path: Path) -> None:
    """state.json names the class of a task; its module may be one of an earlier version."""
    model = FunctionModel("m", score=lambda images, texts: np.zeros((len(images), len(texts))))
    first = evaluate(model, Plain(), ["retrieval"], tmp_path, key="k")
    state = json.loads((tmp_path / "state.json").read_text())
    settings = state["tasks"]["retrieval"]["settings"]
    settings["class"] = "diptych.evaluation.tasks.retrieval:Retrieval"
    (tmp_path / "state.json").write_text(json.dumps(state))
    from diptych.benchmarks.run import recompute

    assert [plain(r) for r in recompute(tmp_path).results] == [plain(r) for r in first.results]
    asked: list[int] = []
    counting = FunctionModel("m", score=lambda images, texts: asked.append(1) or np.zeros((len(images), len(texts))))
    evaluate(counting, Plain(), ["retrieval"], tmp_path, key="k")
    assert not asked
