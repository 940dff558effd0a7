"""The pages of tasks, from made-up records: warnings exactly when they should come, numbers as in the results."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.benchmarks.statistics import mean_interval, paired_test
from diptych.report.drawing.pictures import is_ours
from diptych.report.pages.cards import EACH, PER_PAGE, choose
from diptych.report.read import load
from diptych.report.sections.answers import gather, task_names
from diptych.report.sections.confidence import decisions, from_scores
from diptych.report.sections.slices import fields, interval_of, parts
from diptych.report.sections.warnings import warnings
from report_fixture import make_comparison, page_of, records, text_of, write

HOSTILE = "<script>alert(3)</script>"


def warned(folder: Path, rows: list[dict[str, Any]], task: str = "mine") -> dict[str, Any]:
    c = load(write(folder, rows, task))
    return {w.kind: w for w in warnings(c, gather(c, task))}


# --- warnings


def test_a_model_clear_of_its_controls_gets_no_warning(tmp_path: Path) -> None:
    assert warned(tmp_path, records(score=0.9, blind=0.5, shuffled=0.5, length=0.52)) == {}


@pytest.mark.parametrize("control", ["blind", "shuffled", "length", "constant", "one_of_mine"])
def test_a_control_that_does_as_well_is_warned_of(tmp_path: Path, control: str) -> None:
    others = {c: 0.3 for c in ("blind", "shuffled") if c != control}
    found = warned(tmp_path, records(score=0.78, chance=0.25, **others, **{control: 0.77}))
    assert found["control"].controls == (control,) and found["control"].metrics == ("right",)


def test_close_is_what_the_paired_test_says(tmp_path: Path) -> None:
    for step, blind in enumerate(np.arange(0.5, 0.8, 0.02)):
        rows = records(score=0.74, chance=0.1, blind=float(blind))
        a, b = ([r[k]["right"] for r in rows] for k in ("correct", "blind"))
        test = paired_test(a, b, [r["cluster"] for r in rows])
        close = "control" in warned(tmp_path / str(step), rows)
        assert close == (test.p >= 0.05 or test.difference <= 0)


def test_at_chance_is_warned_of(tmp_path: Path) -> None:
    assert warned(tmp_path, records(score=0.53))["control"].controls == ("chance",)


def test_clusters_count_not_items(tmp_path: Path) -> None:
    alone = warned(tmp_path / "a", records(n=200, score=0.62))
    rows = records(n=20, score=0.62)
    tenfold = [{**r, "item": f"{r['item']}-{k}"} for r in rows for k in range(10)]
    together = warned(tmp_path / "b", tenfold)
    assert "control" not in alone and together["control"].controls == ("chance",) and "few" in together


def test_a_strong_control_is_warned_of_though_the_model_is_better(tmp_path: Path) -> None:
    rows = records(n=400, score=0.95, blind=0.8)
    found = warned(tmp_path, rows)
    assert set(found) == {"strong"} and "67%" in found["strong"].words  # 0.3 of 0.45 above chance


def test_few_items_ties_and_broken_scores(tmp_path: Path) -> None:
    assert set(warned(tmp_path / "a", records(n=24, score=1.0))) == {"few"}
    rows = records()
    for r in rows[:11]:
        r["ties"] = {"right": 1}
    assert set(warned(tmp_path / "b", rows)) == {"ties"}
    assert warned(tmp_path / "c", rows[1:] + records(201)[-1:]) == {}  # 10 of 200 is not more than a twentieth
    rows = records()
    rows[3]["nans"] = 2
    found = warned(tmp_path / "d", rows)
    assert set(found) == {"nans"} and "1 of 200" in found["nans"].words


def test_unread_answers_give_a_band(tmp_path: Path) -> None:
    rows = records(n=200, score=0.8)
    for i, r in enumerate(rows):
        r["answer"], r["parsed"] = "yes", "yes"
        if i < 20:
            r["answer"], r["parsed"], r["correct"] = "hm", None, {"right": 0.0}
    right = sum(r["correct"]["right"] for r in rows)
    found = warned(tmp_path, rows)
    assert set(found) == {"unparsed"}
    assert f"between {right / 2:.1f} and {(right + 20) / 2:.1f} %" in found["unparsed"].words


def test_warnings_stand_on_the_page_and_in_the_overview(tmp_path: Path) -> None:
    page = page_of(write(tmp_path, records(score=0.6, blind=0.6)))
    assert page.wrong == [] and page.open == []
    assert ("li", "data-kind", "control") in page.attributes
    text = text_of(page)
    assert "Read this before the numbers" in text and "close to a control" in text and "1 warning" in text
    clean = page_of(write(tmp_path / "b", records(n=800, score=0.9, blind=0.5)))
    assert "warning" not in text_of(clean).lower() and not any(name == "data-kind" for _, name, _ in clean.attributes)


# --- numbers


def test_records_alone_make_a_page_with_their_numbers(tmp_path: Path) -> None:
    rows = records(n=120, score=0.7, per_cluster=3, blind=0.4)
    text = text_of(page_of(write(tmp_path, rows)))
    v = mean_interval([r["correct"]["right"] for r in rows], [r["cluster"] for r in rows])
    assert f"{100 * v.value:.1f} {100 * v.low:.1f}–{100 * v.high:.1f}" in text
    test = paired_test([r["correct"]["right"] for r in rows], [r["blind"]["right"] for r in rows], [r["cluster"] for r in rows])
    assert f"+{100 * test.difference:.1f} [{100 * test.low:.1f} to {100 * test.high:.1f}]" in text
    data = json.loads((tmp_path / "results.json").read_text())
    (measure,) = data["recipes"][0]["results"]
    assert (measure["n"], measure["clusters"], measure["value"]) == (120, 40, pytest.approx(v.value))


def test_slices_have_n_and_interval(tmp_path: Path) -> None:
    rows = records(n=90)
    for i, r in enumerate(rows):
        r |= {"category": "abc"[i % 3], "slices": {"size": "big" if i < 10 else "small"}, "answer": f"free {i}"}
    c = load(write(tmp_path, rows))
    g = gather(c, "mine")
    assert fields(g) == ["category", "size"]
    big = parts(g.answers[0], "right", "size")["big"]
    v = interval_of(g.answers[0], "right", big)
    own = [r for r in rows if r["slices"]["size"] == "big"]
    assert len(big) == 10 and v == mean_interval([r["correct"]["right"] for r in own], [r["cluster"] for r in own])
    text = text_of(page_of(tmp_path))
    assert "By category" in text and f"{100 * v.low:.1f}–{100 * v.high:.1f}" in text


def test_a_field_with_a_measure_for_each_value_is_no_slice(tmp_path: Path) -> None:
    rows = [{"item": f"{s}{i}", "skill": s, "correct": {s: 1.0}} for s in ("count", "colour") for i in range(40)]
    assert fields(gather(load(write(tmp_path, rows, "controlled")), "controlled")) == []


def test_ten_thousand_pictures_are_not_embedded(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "red").save(tmp_path / "p.png")
    rows = [{**r, "image": "p.png", "confidence": 0.9} for r in records(n=10_000)]
    page = page_of(write(tmp_path, rows))
    shown = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert 0 < len(shown) <= PER_PAGE and (tmp_path / "report.html").stat().st_size < 1_000_000
    assert f"At most {PER_PAGE} pictures" in text_of(page)


# --- confidence


def test_probabilities_make_a_reliability_diagram(tmp_path: Path) -> None:
    rows = records(n=200, score=0.8)
    for r in rows:
        r["confidence"] = 0.95
    text = text_of(page_of(write(tmp_path, rows)))
    assert "ECE 15.0 points" in text and "temperature" not in text
    assert "AUC 20.0" in text  # a confidence that says nothing: the error rate


def test_scores_become_probabilities_that_fit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3000, 4))
    truth = np.array([rng.choice(4, p=np.exp(row) / np.exp(row).sum()) for row in logits])
    credit = (logits.argmax(1) == truth).astype(float)
    sure = from_scores((7 * logits + 3).tolist(), credit, [str(i) for i in range(3000)])
    wanted = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).max(1)
    assert np.abs(sure - wanted).mean() < 0.03, "the unknown scale is found again"


def test_no_item_fits_the_temperature_it_is_judged_by() -> None:
    rng = np.random.default_rng(1)
    scores, clusters = rng.normal(size=(200, 3)).tolist(), [str(i) for i in range(200)]
    credit = rng.integers(0, 2, 200).astype(float)
    first = from_scores(scores, credit, clusters)
    for i in range(10):
        changed = credit.copy()
        changed[i] = 1 - changed[i]
        assert from_scores(scores, changed, clusters)[i] == first[i]


def test_few_decisions_make_no_diagram(tmp_path: Path) -> None:
    rows = [{**r, "confidence": 0.5} for r in records(n=29)]
    g = gather(load(write(tmp_path, rows)), "mine")
    assert decisions(g, g.answers[0]) is None


# --- examples


def test_examples_are_of_their_kind_and_the_same_every_time(tmp_path: Path) -> None:
    rows = records(n=60, score=0.5)
    for r in rows[:8]:
        r["correct"], r["rank"] = {"right": 0.0}, {"right": 2}
    g = gather(load(write(tmp_path, rows)), "mine")
    chosen = choose(g, g.answers[0])
    assert chosen == choose(g, g.answers[0]) and all(len(found) == EACH for found in chosen.values())
    assert all(r["correct"]["right"] == 1 for r in chosen["right"])
    assert all(r["rank"]["right"] == 2 for r in chosen["near"])
    assert all(r["correct"]["right"] == 0 and "rank" not in r for r in chosen["wrong"])


def test_pictures_come_from_the_files_that_records_name(tmp_path: Path) -> None:
    images = tmp_path / "elsewhere"
    images.mkdir()
    Image.new("RGB", (40, 30), "blue").save(images / "b.png")
    folder = write(tmp_path / "e", [{**r, "image": "b.png", "question": HOSTILE} for r in records(n=40)])
    without = page_of(folder)
    assert not any(tag == "img" for tag, _, _ in without.attributes)
    page = page_of(folder, images=images)
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert alts and set(alts) == {HOSTILE}
    assert "<script>alert(3)" not in (folder / "report.html").read_text()


def test_pictures_come_from_scenes_opened_again(tmp_path: Path) -> None:
    from diptych.benchmarks.controls import constant
    from diptych.benchmarks.run import evaluate
    from diptych.data.sources import open_source

    source = open_source("scenes:small?split=test")
    evaluate(constant(), source, ["controlled?n=4", "zeroshot?n=12"], tmp_path / "e", key="k")
    page = page_of(tmp_path / "e")
    assert sum(tag == "img" and name == "src" for tag, name, _ in page.attributes) >= 6
    of_task = page_of(tmp_path / "e", only="zeroshot")
    assert sum(tag == "img" for tag, name, _ in of_task.attributes if name == "src") >= 3
    assert "Said" in text_of(of_task), "the name that scored highest"
    assert "without the picture" in text_of(page).lower()  # constant: at chance everywhere, and told so
    described = json.loads((tmp_path / "e" / "summary.json").read_text())
    (tmp_path / "e" / "summary.json").write_text(json.dumps(described | {"data_fingerprint": "other"}))
    page = page_of(tmp_path / "e")
    assert not any(tag == "img" for tag, _, _ in page.attributes) and "now holds other data" in text_of(page)


def test_a_report_runs_no_foreign_code_and_calls_nobody() -> None:
    assert is_ours("scenes:small") and is_ours("folder:photos") and is_ours("csv:a.csv?image=x")
    assert is_ours("repeated:scenes%3Asmall%3Fsize=32?items=9") and is_ours("control:folder:photos?blank=image")
    for scheme in ("repeated", "control"):
        assert not is_ours(f"{scheme}:my.sources%3AMine%3Ax?x=1") and not is_ours(f"{scheme}:folder:s3%3A//b/a?x=1")
        assert not is_ours(f"{scheme}:control%3Amy.sources:Mine%253Ax?x=1")
    assert not is_ours("my.sources:Mine:x") and not is_ours("https://example.org/a.csv") and not is_ours("wds:s3://b/a.tar")


# --- two models


def test_differences_count_the_items(tmp_path: Path) -> None:
    path = make_comparison(tmp_path / "c", seeds=1)
    a, b = records(n=100, score=0.9), records(n=100, score=0.6)
    for name, rows in (("clip", a), ("coca", b)):
        write(path / f"{name}-s0" / "evaluation", rows)
    page = page_of(path)
    x, y = ([r["correct"]["right"] for r in rows] for rows in (a, b))
    only = sum(i > j for i, j in zip(x, y, strict=True)), sum(j > i for i, j in zip(x, y, strict=True))
    text = text_of(page)
    assert f"{only[0]} of 100 {only[1]} of 100" in text and "+30.0" in text
    assert "CLIP better than CoCa" in text and "CoCa better than CLIP" in text


def test_seeds_are_averaged(tmp_path: Path) -> None:
    path = make_comparison(tmp_path / "c", seeds=2)
    for seed, value in enumerate((1.0, 0.0)):
        write(path / f"clip-s{seed}" / "evaluation", [{"item": "a", "correct": {"right": value}, "blind": {"right": 0.0}}])
    (a,) = gather(load(path), "mine").answers
    assert a.credits == {"right": {"a": 0.5}} and a.controls == {"right": {"blind": {"a": 0.0}}}


# --- holes


def test_broken_records_are_told(tmp_path: Path) -> None:
    write(tmp_path, records())
    write(tmp_path, [{"item": "x", "correct": {"m": 1}}, {"item": "x", "correct": {"m": 0}}], "twice")
    (tmp_path / "records" / "torn.jsonl").write_text('{"item": "a"}\n{"item": \n{"item": "b"}\n')
    text = text_of(page_of(tmp_path))
    assert "item 'x' occurs twice" in text and "line 2 is not JSON" in text
    assert task_names(load(tmp_path))[0] == "mine"


def test_every_link_leads_somewhere(tmp_path: Path) -> None:
    page = page_of(make_comparison(tmp_path / "c", seeds=1))
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    hrefs = {value for tag, name, value in page.attributes if (tag, name) == ("a", "href") and value.startswith("#")}
    assert len(identifiers) == len(set(identifiers)) and {h[1:] for h in hrefs} <= set(identifiers)
    assert {"task-retrieval", "task-controlled", "task-captions"} <= set(identifiers)
    assert all(value for tag, name, value in page.attributes if (tag, name) in (("img", "alt"), ("svg", "aria-label")))


def test_a_run_of_anothers_model_by_its_results_alone(tmp_path: Path) -> None:
    whole = make_comparison(tmp_path / "c", seeds=1)
    shutil.copytree(whole / "clip-s0" / "evaluation", tmp_path / "theirs")
    text = text_of(page_of(tmp_path / "theirs"))
    assert "Evaluation of clip" in text and re.search(r"text-to-image/recall@1 .*91\.6", text)
