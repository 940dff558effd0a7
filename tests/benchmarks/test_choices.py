"""Questions with options: candidates, rotations, several prompts, MME; open answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_asking import save_pictures, speaker, values

from diptych.benchmarks.answers import vqa
from diptych.benchmarks.answers.choices import Choices
from diptych.benchmarks.answers.mme import Mme
from diptych.benchmarks.controls import constant
from diptych.benchmarks.run import evaluate, recompute
from diptych.benchmarks.tasks import task
from diptych.core.files import read_jsonl
from diptych.data.sources import open_source


def test_candidates_of_a_source_without_a_file(tmp_path: Path) -> None:
    asked = task("vqa?n=40&candidates=5")
    items = asked.items(open_source("scenes:small?split=test&size=48"))
    answers = {vqa.normalise_answer(a) for q in items for a in q.answers}
    assert len(items) == 40 and {len(q.options) for q in items} == {5} and set(items[0].options) <= answers
    assert all(q.options == items[0].options for q in items)
    assert items[0].statements == tuple(f"{items[0].text} {o}" for o in items[0].options)
    assert len({q.options for q in task("vqa?n=40").items(open_source("scenes:small?split=test&size=48"))}) > 1  # their own


def test_open_answers_without_references_have_no_accuracy(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["p.png", "q.png"])
    rows = [{"question_id": i, "image": f"{i}.png", "text": "What is it?"} for i in "pq"]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"question_id": i, "text": "a red cat"}) + "\n" for i in "pq"))
    model = speaker({(10, "What"): "a red cat"}, otherwise="nothing")
    found = evaluate(model, None, [task(f"open?file={tmp_path}/q.jsonl")], tmp_path / "out", key="k")
    assert found.results == [] and [s["task"] for s in found.skipped] == ["open"]
    assert "no reference answers" in found.skipped[0]["reason"] and "annotations=" in found.skipped[0]["reason"]
    assert [r["parsed"] for r in read_jsonl(tmp_path / "out/records/open.jsonl")] == ["a red cat", "nothing"]
    assert recompute(tmp_path / "out").skipped == found.skipped
    assert task("open").credits(read_jsonl(tmp_path / "out/records/open.jsonl")) == {}
    compared = evaluate(model, None, [task(f"open?file={tmp_path}/q.jsonl&annotations={tmp_path}/a.jsonl")])
    assert values(compared, "open") == {"accuracy": 0.5} and not compared.skipped


def test_circular_needs_every_rotation(tmp_path: Path) -> None:
    """Who always says A is right in one rotation of three, and in none of the questions."""
    (tmp_path / "t.tsv").write_text("index\tquestion\tA\tB\tC\tanswer\timage_path\n1\tWhat?\tx\ty\tz\tA\tp.png\n")
    save_pictures(tmp_path, ["p.png"])
    asked = Choices(file=f"{tmp_path}/t.tsv", circular=True)
    assert values(evaluate(speaker({}, "A"), None, [asked]), "choices") == pytest.approx({"accuracy": 1 / 3, "circular": 0})
    assert values(evaluate(speaker({}, "x"), None, [asked]), "choices") == {"accuracy": 1, "circular": 1}
    even = {r.metric: (r.value, r.chance) for r in evaluate(constant(), None, [asked]).results}
    assert even["circular"] == pytest.approx((1 / 3, 1 / 3))


def test_circular_of_ids_that_look_like_rotations(tmp_path: Path) -> None:
    """Of the questions p@1 and p@2 one is answered right in both rotations: the ids do not make them one."""
    rows = [{"id": f"p@{i}", "image": f"{i}.png", "question": "What?", "options": ["x", "y"], "answer": "x"} for i in (1, 2)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_pictures(tmp_path, ["1.png", "2.png"])
    asked = Choices(file=f"{tmp_path}/q.jsonl", circular=True)
    assert values(evaluate(speaker({(10, "What"): "x"}, "y"), None, [asked]), "choices") == {"accuracy": 0.5, "circular": 0.5}
    twice = Choices(file=f"{tmp_path}/q.jsonl", circular=True, prompts=("{question} 1 {options}", "{question} 2 {options}"))
    model = speaker({(10, "What? 1"): "x", (20, "What? 2"): "x"}, "y")
    assert values(evaluate(model, None, [twice]), "choices")["circular"] == 0.5


def test_several_prompts_are_not_one_rotation_or_one_image(tmp_path: Path) -> None:
    """Right with one prompt and wrong with the other: half of the questions, and of the images, are whole."""
    rows = [
        {"id": i, "group": "g", "image": "p.png", "question": "What?", "options": of, "answer": "x"}
        for i, of in enumerate((["x", "y"], ["y", "x"]))
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_pictures(tmp_path, ["p.png"])
    prompts = ("{question} good {options}", "{question} bad {options}")
    asked = Choices(file=f"{tmp_path}/q.jsonl", circular=True, prompts=prompts)
    found = evaluate(speaker({(10, "good"): "x"}, "y"), None, [asked])
    assert values(found, "choices")["circular"] == 0.5
    assert next(r for r in found.results if r.metric == "circular").chance == 0.25  # each prompt has two rotations
    (tmp_path / "m.tsv").write_text(
        "index\timage_path\tquestion\tanswer\tcategory\n1\tp.png\ta?\tYes\texistence\n2\tp.png\tb?\tNo\texistence\n"
    )
    model = speaker({(10, "a? good"): "yes", (10, "b? good"): "no"}, "hm")
    found = evaluate(model, None, [Mme(file=f"{tmp_path}/m.tsv", prompts=prompts)])
    assert values(found, "mme")["existence (of 200)"] == 100  # 50 for two of four answers, 50 for one whole image of two


def test_mme_adds_accuracy_and_accuracy_plus(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["p.png", "q.png"])
    rows = [("1", "p.png", "a", "Yes"), ("2", "p.png", "b", "No"), ("3", "q.png", "a", "Yes"), ("4", "q.png", "b", "No")]
    head = "index\timage_path\tquestion\tanswer\tcategory\n"
    (tmp_path / "mme.tsv").write_text(head + "".join(f"{i}\t{p}\t{q}?\t{a}\texistence\n" for i, p, q, a in rows))
    model = speaker({(10, "a?"): "yes", (10, "b?"): "no", (20, "a?"): "yes", (20, "b?"): "yes"})
    assert values(evaluate(model, None, [Mme(file=f"{tmp_path}/mme.tsv")]), "mme") == {"accuracy": 0.75, "existence (of 200)": 125}
    even = {r.metric: (r.value, r.chance) for r in evaluate(constant(), None, [Mme(file=f"{tmp_path}/mme.tsv")]).results}
    assert even["existence (of 200)"] == (75, 75) and even["accuracy"] == (0.5, 0.5)
