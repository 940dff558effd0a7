"""Questions about images: VQA, POPE, multiple choice, MME; from files and from the built-in world, in all three ways."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diptych.benchmarks.answers.choices import Choices
from diptych.benchmarks.answers.pope import Pope
from diptych.benchmarks.answers.vqa import Vqa
from diptych.benchmarks.controls import constant
from diptych.benchmarks.labels import labels_in
from diptych.benchmarks.records import plain
from diptych.benchmarks.run import evaluate, recompute
from diptych.benchmarks.tasks import task
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.core.files import read_json, read_jsonl
from diptych.data.sources import open_source


def save_pictures(folder: Path, names: list[str]) -> None:
    """Each of its own grey, so that a model can tell them: 10, 20, 30 …"""
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names, 1):
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(folder / name)


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(file, format="PNG")
    return file.getvalue()


def grey(image: np.ndarray) -> int:
    return int(image[0, 0, 0])


def speaker(answers: dict[tuple[int, str], str], otherwise: str = "no") -> FunctionModel:
    """Answers by the picture's grey and a word of the prompt."""

    def generate(images, prompts, max_tokens):
        return [
            next((a for (g, w), a in answers.items() if g == grey(i) and w in p), otherwise)
            for i, p in zip(images, prompts, strict=True)
        ]

    return FunctionModel("speaker", generate=generate)


def values(summary, task: str) -> dict[str, float]:
    return {r.metric: r.value for r in summary.results if r.task == task}


@pytest.fixture
def vqa_files(tmp_path: Path) -> Path:
    save_pictures(tmp_path, ["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000073.jpg"])
    for name in ("COCO_val2014_000000000042", "COCO_val2014_000000000073"):  # JPEG must not change the level
        Image.fromarray(np.full((8, 8, 3), 10 if "42" in name else 20, np.uint8)).save(tmp_path / f"{name}.jpg", quality=100)
    asked = [
        {"image_id": 42, "question": "What colour?", "question_id": 1},
        {"image_id": 42, "question": "How many?", "question_id": 2},
        {"image_id": 73, "question": "What colour?", "question_id": 3},
    ]
    (tmp_path / "questions.json").write_text(json.dumps({"data_subtype": "val2014", "questions": asked}))
    people = {1: ["red"] * 8 + ["pink", "Red."], 2: ["2"] * 2 + ["3"] * 8, 3: ["blue"] * 10}
    given = [
        {"question_id": q["question_id"], "image_id": q["image_id"], "question_type": "what", "answer_type": "other", "multiple_choice_answer": "x",
         "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(people[q["question_id"]])]}
        for q in asked
    ]  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps({"annotations": given}))
    return tmp_path


def test_vqa_by_the_official_accuracy(vqa_files: Path) -> None:
    """Red: 9 of 10 agree after normalising → 1; two: 2 of 10 → 0.6; nothing said about the third → 0."""
    asked = Vqa(file=f"{vqa_files}/questions.json", annotations=f"{vqa_files}/annotations.json")
    model = speaker({(10, "colour"): "Red", (10, "many"): "two", (20, "colour"): "  "}, otherwise="")
    found = evaluate(model, None, [asked])
    result = found.results[0]
    assert (result.value, result.n, result.clusters, result.by) == (pytest.approx(1.6 / 3), 3, 2, "generate")
    assert result.unparsed == 1 and result.band == (pytest.approx(1.6 / 3), pytest.approx(2.6 / 3))
    assert result.controls["constant"] == pytest.approx(1 / 3)  # "red" or "blue" for everything
    assert result.controls["blind"] == 0 and result.chance is None


def test_vqa_by_candidates_for_models_that_only_score(vqa_files: Path) -> None:
    asked = Vqa(file=f"{vqa_files}/questions.json", annotations=f"{vqa_files}/annotations.json", candidates=3)
    right = {10: ("What colour? red", "How many? 3"), 20: ("What colour? blue",)}
    model = FunctionModel("s", score=lambda images, texts: [[float(t in right.get(grey(i), ())) for t in texts] for i in images])
    found = evaluate(model, None, [asked])
    assert values(found, "vqa")["accuracy"] == 1 and found.results[0].by == "score"
    skipped = evaluate(model, None, [Vqa(file=asked.file, annotations=asked.annotations)]).skipped
    assert "no statements to score" in skipped[0]["reason"]


def test_gqa_and_plain_tables(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images", ["n1.png", "n2.png"])
    gqa = {"q1": {"question": "Is it red?", "imageId": "n1", "answer": "yes", "types": {"structural": "verify"}},
           "q2": {"question": "What is it?", "imageId": "n2", "answer": "a cat", "types": {"structural": "query"}}}  # fmt: skip
    (tmp_path / "gqa.json").write_text(json.dumps(gqa))
    model = speaker({(10, "red"): "Yes.", (20, "What"): "the cat"})
    result = evaluate(model, None, [Vqa(file=f"{tmp_path}/gqa.json")]).results[0]
    assert result.value == 1 and {s["slice"] for s in result.slices} == {"structural=verify", "structural=query"}
    (tmp_path / "mine.csv").write_text("id,image,question,answer\n1,n1.png,Is it red?,yes\n2,n2.png,What is it?,dog\n")
    assert evaluate(model, None, [Vqa(file=f"{tmp_path}/mine.csv")]).results[0].value == 0.5


@pytest.fixture
def pope_file(tmp_path: Path) -> str:
    """POPE's published form: JSON lines in a file that ends in .json."""
    save_pictures(tmp_path, ["a.png", "b.png"])
    rows = [("a.png", "snowboard", "yes"), ("a.png", "backpack", "no"), ("b.png", "dog", "yes"), ("b.png", "apple", "no")]
    lines = [
        {
            "question_id": i,
            "image": image,
            "text": f"Is there a {thing} in the image?".replace("a apple", "an apple"),
            "label": label,
        }
        for i, (image, thing, label) in enumerate(rows, 1)
    ]
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return f"{tmp_path}/coco_pope_random.json"


def test_pope_counts_yes_as_the_positive_class(pope_file: str) -> None:
    """One hit, one miss, one false alarm, one right no: everything is a half."""
    model = speaker({(10, "snowboard"): "Yes, there is.", (10, "backpack"): "yes", (20, "dog"): "No.", (20, "apple"): "no"})
    found = evaluate(model, None, [Pope(file=pope_file)])
    assert values(found, "pope") == pytest.approx(dict.fromkeys(("accuracy", "precision", "recall", "f1", "yes_ratio"), 0.5))
    always = {r.metric: r.controls.get("always_yes") for r in found.results}
    assert always["recall"] == 1 and always["f1"] == pytest.approx(2 / 3)
    doubtful = speaker({(10, "snowboard"): "yes", (10, "backpack"): "no", (20, "dog"): "I cannot tell", (20, "apple"): "no"})
    result = evaluate(doubtful, None, [Pope(file=pope_file)]).results[0]
    assert (result.value, result.band, result.unparsed) == (0.75, (0.75, 1.0), 1)
    recall = next(r for r in evaluate(doubtful, None, [Pope(file=pope_file)]).results if r.metric == "recall")
    assert (recall.value, recall.band) == (0.5, (0.5, 1.0))


def test_pope_for_models_that_only_score(pope_file: str) -> None:
    """It scores "there is a snowboard" highest of all and never prefers "no": every answer is yes, but the order is right."""
    there = {
        (10, "there is a snowboard"): 3.0,
        (10, "there is a backpack"): 1.0,
        (20, "there is a dog"): 2.0,
        (20, "there is an apple"): 1.5,
    }
    model = FunctionModel("s", score=lambda images, texts: [[there.get((grey(i), t), 0.0) for t in texts] for i in images])
    found = evaluate(model, None, [Pope(file=pope_file)])
    got = values(found, "pope")
    assert (got["accuracy"], got["yes_ratio"], got["recall"], got["auc"]) == (0.5, 1, 1, 1)


def test_pope_is_built_from_labels() -> None:
    labels = [["dog", "cat"]] * 6 + [["dog", "cup"]] * 3 + [["sofa"]]
    asked = Pope().build([(f"i{n}", np.zeros((2, 2, 3), np.uint8), names) for n, names in enumerate(labels)])
    of = {kind: [q for q in asked if q.slices["absent"] == kind] for kind in ("random", "popular", "adversarial")}
    for questions in of.values():
        for n, names in enumerate(labels):
            mine = [q for q in questions if q.cluster == f"i{n}"]
            said = {q.id.rpartition("/")[2]: q.answers[0] for q in mine}
            assert list(said.values()).count("yes") == list(said.values()).count("no") > 0
            assert all((answer == "yes") == (thing in names) for thing, answer in said.items())
    absent = [q.id.rpartition("/")[2] for q in of["popular"] if q.cluster == "i9" and q.answers[0] == "no"]
    assert absent == ["dog"]  # the most frequent of what is not there
    worst = [q.id.rpartition("/")[2] for q in of["adversarial"] if q.cluster == "i6" and q.answers[0] == "no"]
    assert worst[0] == "cat"  # goes with dog six times
    wider = Pope().build([("i", np.zeros((2, 2, 3), np.uint8), ["sofa"])], [*labels, *[["cup"]] * 20])
    absent = [q.id.rpartition("/")[2] for q in wider if q.slices["absent"] == "popular" and q.answers[0] == "no"]
    assert absent == ["cup"]  # the labels of a file speak for all its images, also those that are not asked about


def test_pope_knows_what_is_frequent_from_the_whole_label_file(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)]
    notes = [{"image_id": 0, "category_id": 1}, {"image_id": 0, "category_id": 2}, {"image_id": 1, "category_id": 2}]
    (tmp_path / "i.json").write_text(
        json.dumps({"images": images, "annotations": notes, "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]})
    )
    assert sorted(labels_in(str(tmp_path / "i.json"))) == [[], ["a", "b"], ["b"]]


def test_choices_from_tables_and_parquet(tmp_path: Path) -> None:
    """MMBench's columns, SEED's reference to a picture kept once, and MMMU's list as text."""
    big = base64.b64encode(io.BytesIO(png(20)).getvalue() + b"\0" * 300).decode()
    head = "index\tquestion\thint\tA\tB\tC\tanswer\tcategory\timage\n"
    (tmp_path / "mmb.tsv").write_text(
        head + f"1\tWhat?\tLook.\tcat\tdog\tcow\tB\tanimals\t{big}\n" + "2\tWhere?\tnan\tleft\tright\t\tA\tplaces\t1\n"
    )
    model = speaker({(20, "What?"): "B. dog", (20, "Where?"): "(B)"})
    found = evaluate(model, None, [Choices(file=f"{tmp_path}/mmb.tsv")])
    result = found.results[0]
    assert (result.value, result.n, result.clusters) == (0.5, 2, 1) and result.chance == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert result.controls["constant"] == 0.5
    rows = [
        {"id": "v0", "question": "Open?", "options": "[]", "answer": "x", "image_1": {"bytes": png(10)}, "question_type": "open"},
        {
            "id": "v1",
            "question": "Which?",
            "options": "['one', 'two']",
            "answer": "B",
            "image_1": {"bytes": png(10)},
            "subfield": "x",
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mmmu.parquet")
    assert evaluate(speaker({(10, "Which?"): "two"}), None, [Choices(file=f"{tmp_path}/mmmu.parquet")]).results[0].value == 1


def test_a_prompt_longer_than_any_file_name(tmp_path: Path, pope_file: str) -> None:
    asked = Pope(file=pope_file, prompt="{question} " + "Look closely. " * 500)
    evaluate(speaker({(10, "snowboard"): "yes"}), None, [asked], tmp_path / "out", key="k")
    assert list(read_json(tmp_path / "out" / "state.json")["tasks"]["pope"]["files"]) == ["file"]


@pytest.mark.parametrize("name", ["vqa", "choices", "choices?circular=true", "pope?samples=40"])
def test_no_opinion_is_exactly_chance_on_scenes(name: str) -> None:
    found = evaluate(constant(), open_source("scenes:small?split=test"), [task(name)])
    judged = [r for r in found.results if r.chance is not None]
    assert judged and found.results[0].by == "score"
    for r in judged:
        assert r.value == pytest.approx(r.chance, abs=1e-12), r.metric
        assert r.controls.get("blind", r.chance) == pytest.approx(r.chance, abs=1e-12), r.metric


def test_statements_of_scenes_say_what_is_there() -> None:
    """A model that knows the captions: the right statement is the only one that holds. Read by the scenes' own truth."""
    from scene_reader import holds

    source = open_source("scenes:small?split=test")
    counted = 0
    for i in range(40):
        sample = source[i]
        for asked in sample.extra["questions"]:
            options, statements = source.options(sample, asked)
            assert options.count(asked["answer"]) == 1 and len(options) == len(statements) == len(set(statements)) > 1
            if asked["kind"] not in ("existence", "count", "what-is"):
                for option, statement in zip(options, statements, strict=True):
                    true = holds(statement, sample.extra["boxes"], source.world.size)
                    assert true == (option == asked["answer"]), (asked, statement)
                    counted += 1
    assert counted > 40


def test_likelihood_of_options_and_calibration(pope_file: str) -> None:
    """Log-probabilities 0.8 to 0.2 for what is right in three of four: accuracy 0.75, confidence 0.8, ECE 0.05, Brier 0.19."""
    right = {(10, "snowboard"): "yes", (10, "backpack"): "no", (20, "dog"): "yes", (20, "apple"): "yes"}

    def loglikelihood(images, texts, prompts):
        said = [
            next((a for (g, w), a in right.items() if g == grey(i) and w in p), "yes") for i, p in zip(images, prompts, strict=True)
        ]
        return [np.log(0.8 if t == s else 0.2) for t, s in zip(texts, said, strict=True)]

    model = FunctionModel("l", loglikelihood=loglikelihood, follows_prompts=True)
    found = evaluate(model, None, [Pope(file=pope_file)])
    got = values(found, "pope")
    assert found.results[0].by == "likelihood" and got["accuracy"] == 0.75
    assert got["ece"] == pytest.approx(0.05, abs=1e-6) and got["brier"] == pytest.approx((3 * 0.04 + 0.64) / 4, abs=1e-6)


def test_records_stand_for_the_model(tmp_path: Path, pope_file: str) -> None:
    model = speaker({(10, "snowboard"): "yes", (20, "dog"): "maybe"})
    found = evaluate(model, None, [Pope(file=pope_file)], tmp_path / "out", key="k")
    again = recompute(tmp_path / "out")
    assert [plain(r) for r in again.results] == [plain(r) for r in found.results]
    record = read_jsonl(tmp_path / "out/records/pope.jsonl")[0]
    assert record["answer"] == "yes" and record["prompt"].startswith("Is there a snowboard") and record["parsed"] == "yes"
    with pytest.raises(DiptychError, match=r"no state.json"):
        recompute(tmp_path)


def test_a_changed_file_starts_anew(tmp_path: Path, pope_file: str) -> None:
    asked: list[int] = []

    def generate(images, prompts, max_tokens):
        asked.append(len(images))
        return ["yes"] * len(images)

    model = FunctionModel("m", generate=generate)
    for _ in range(2):
        evaluate(model, None, [Pope(file=pope_file)], tmp_path / "out", key="k")
    before = len(asked)
    Path(pope_file).write_text(Path(pope_file).read_text().replace("snowboard", "surfboard"))
    evaluate(model, None, [Pope(file=pope_file)], tmp_path / "out", key="k")
    assert before == 3 and len(asked) == 6  # shown, grey and shuffled, once for each content


def test_a_long_file_of_images_by_class_is_judged_in_all_its_classes(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["a.png"])
    (tmp_path / "rows.csv").write_text("image,label\n" + "".join(f"a.png,{label}\n" for label in "xxxyyyzzz"))
    evaluate(constant(), None, [task(f"zeroshot?file={tmp_path}/rows.csv&n=3")], tmp_path / "out", key="k")
    records = read_jsonl(tmp_path / "out" / "records" / "zeroshot.jsonl")
    assert [r["class"] for r in records] == ["x", "y", "z"] and all(len(r["scores"]) == 3 for r in records)


def test_images_of_a_class_each_are_classified_among_all_classes_of_the_source(tmp_path: Path) -> None:
    for name in ("big_cat", "dog", "fox"):  # class by class, more of each than are asked for
        (tmp_path / "in").mkdir(exist_ok=True)
        save_pictures(tmp_path / "in" / name, [f"{i}.png" for i in range(9)])
    asked: list[list[str]] = []

    def score(images, texts):
        asked.append(list(texts))
        return np.zeros((len(images), len(texts)))

    source = open_source(f"classes:{tmp_path}/in")
    evaluate(FunctionModel("m", score=score), source, [task("zeroshot?n=6&templates=a {}")], tmp_path / "out", key="k")
    records = read_jsonl(tmp_path / "out" / "records" / "zeroshot.jsonl")
    assert [r["class"] for r in records] == ["big cat"] * 2 + ["dog"] * 2 + ["fox"] * 2
    assert asked == [["a big cat", "a dog", "a fox"]]


def test_records_of_others_are_not_deleted(tmp_path: Path, pope_file: str) -> None:
    asked, out, said = [Pope(file=pope_file)], tmp_path / "out", list[str]()

    def judge(name: str = "m", key: str | None = "k", **how: bool) -> None:
        model = FunctionModel(name, generate=lambda images, prompts, max_tokens: ["yes"] * len(images))
        evaluate(model, None, asked, out, said.append, key=key, **how)

    judge()
    with pytest.raises(DiptychError, match="out holds records of other weights; .*--overwrite"):
        judge(key="l")
    with pytest.raises(DiptychError, match="another model and other weights"):
        judge(name="n", key=None)
    kept = out / "records" / "pope.jsonl"
    assert kept.is_file() and not any("replaced" in line for line in said)
    judge(key="l", own=True)
    assert any("of other weights and are replaced" in line for line in said)
    with pytest.raises(DiptychError, match="records of other data"):
        source = open_source("scenes:small")
        evaluate(constant(), source, ["zeroshot?n=4"], out, key="l", own=True)
    judge(name="n", key="o", overwrite=True)
    (out / "state.json").unlink()
    with pytest.raises(DiptychError, match="not named"):
        judge(name="n", key="o")
    assert kept.is_file()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("pope", '{"image": "a.png", "text": "Is there a x in the image?"}', "line 1: no field 'label or answer or class'"),
        (
            "pope",
            '{"image": "a.png", "text": "Is?", "label": "perhaps"}',
            "line 1: 'label' must be yes or no, got 'perhaps'",
        ),
        ("pope", '{"image": "zz.png", "text": "Is?", "label": "yes"}', "line 1: there is no picture 'zz.png'"),
        ("vqa", '{"question_id": 1, "image": "a.png", "question": "x"}\n{"question_id": ', "line 2.*not JSON"),
        ("vqa", '{"question_id": 1, "image": "a.png", "question": "x", "answer": "y"}\n' * 2, "question '1' occurs twice"),
        (
            "choices",
            '{"id": 1, "image": "a.png", "question": "x", "options": ["a", "b"], "answer": "C"}',
            "'C' is not one of the 2 options",
        ),
        ("choices", '{"id": 1, "image": "a.png", "question": "x", "options": ["a"], "answer": "A"}', "two or more options"),
    ],
)
def test_wrong_files_are_named_with_place_and_field(tmp_path: Path, name: str, text: str, message: str) -> None:
    save_pictures(tmp_path, ["a.png"])
    (tmp_path / "f.jsonl").write_text(text + "\n")
    with pytest.raises(DiptychError, match=message):
        evaluate(speaker({}), None, [task(f"{name}?file={tmp_path}/f.jsonl")])


def test_a_way_that_cannot_be_is_refused_with_the_reason() -> None:
    source = open_source("scenes:small?split=test")
    only_scores = constant()
    assert (
        "by generate: it cannot write a text about an image or follow a prompt"
        in evaluate(only_scores, source, [Vqa(by="generate")]).skipped[0]["reason"]
    )
    assert "valid are auto" in evaluate(only_scores, source, [Vqa(by="guess")]).skipped[0]["reason"]
    captions_only = FunctionModel("c", follows_prompts=False, generate=lambda i, p, n: ["a cat"] * len(i))
    assert (
        "the model cannot follow a prompt or score how well a text fits an image"
        in evaluate(captions_only, source, ["vqa"]).skipped[0]["reason"]
    )
    assert "no questions" in evaluate(only_scores, open_source_of_words(), ["vqa"]).skipped[0]["reason"]


def open_source_of_words():
    from evaluation_fixture import World

    return World()


def test_the_wording_of_the_prompt_is_told_apart(pope_file: str) -> None:
    """Right when asked politely, always yes otherwise: 1 and a half, three quarters in all; images stay the clusters."""
    right = {(10, "snowboard"): "yes", (10, "backpack"): "no", (20, "dog"): "yes", (20, "apple"): "no"}

    def generate(images, prompts, n):
        polite = speaker(right).generate(images, prompts, n)
        return [a if "Please" in p else "yes" for a, p in zip(polite, prompts, strict=True)]

    asked = Pope(file=pope_file, prompts=("{question} Please answer yes or no.", "{question}"))
    found = evaluate(FunctionModel("m", generate=generate), None, [asked])
    got = values(found, "pope")
    assert (got["accuracy"], got["accuracy/lowest_prompt"], got["accuracy/highest_prompt"]) == (0.75, 0.5, 1)
    assert (found.results[0].n, found.results[0].clusters) == (8, 2)
    assert {s["slice"]: s["value"] for s in found.results[0].slices} == {"prompt=1": 1, "prompt=2": 0.5}
