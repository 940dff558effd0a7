"""Sections of the report that only some tasks have: frequency, language priors, groups, what is invented."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.report.pages.cards import EACH, choose
from diptych.report.read import load
from diptych.report.sections.answers import gather
from diptych.report.sections.invented import counted
from report_fixture import credits, page_of, records, text_of, write


def test_frequency_finds_the_log_linear_law(tmp_path: Path) -> None:
    rows = []
    for c, count in enumerate((10, 30, 100, 300, 1000, 3000, 10_000, 0)):
        right = 0.1 + 0.2 * np.log10(count) if count else 0.05
        rows += [{"item": f"{c}-{i}", "concept": f"c{c}", "frequency": count, "correct": {"right": v}}
                 for i, v in enumerate(credits(right, 400))]  # fmt: skip
    text = text_of(page_of(write(tmp_path, rows)))
    assert "ten times the data: +20.0 points" in text and "8 concepts" in text and "1 not in training" in text and "r 1.00" in text
    few = [r for r in rows if r["concept"] in ("c0", "c1", "c2")]
    assert "times the data" not in text_of(page_of(write(tmp_path / "b", few))), "three concepts show no law"


def test_what_looking_adds(tmp_path: Path) -> None:
    text = text_of(page_of(write(tmp_path, records(n=400, score=0.9, blind=0.7))))
    assert "chance 50.0, blind 70.0, with the picture 90.0: 50% of the gain over chance does not need the picture" in text
    text = text_of(page_of(write(tmp_path / "b", records(n=400, score=0.5, blind=0.5))))
    assert "does not need the picture" not in text, "who is at chance has nothing to be shared out"


def test_pages_of_priors_and_contrast_sets_show_the_results(tmp_path: Path) -> None:
    from diptych.benchmarks.run import evaluate
    from diptych.core.capabilities import FunctionModel
    from diptych.data.sources import open_source

    def score(images: list[np.ndarray], texts: list[str]) -> np.ndarray:
        return np.array([[i[..., 0].mean() / 100 + len(t) / 50 for t in texts] for i in images])  # likes red, likes long texts

    source = open_source("scenes:small?split=test")
    out = tmp_path / "e"
    summary = evaluate(FunctionModel("m", score=score), source, ["priors?n=40", "bias?n=8"], out, key="k")
    page = page_of(out)
    text = text_of(page)
    assert page.wrong == []
    plain, corrected = (summary.value("priors", m) for m in ("accuracy", "corrected"))
    assert f"plain {100 * plain:.1f}, prior alone {100 * plain:.1f}, corrected {100 * corrected:.1f} %" in text  # type: ignore[operator]
    told = next(v for tag, name, v in page.attributes if name == "aria-label" and v.startswith("m: blue"))
    assert f"red {100 * summary.value('bias', 'preference/red'):.1f} %" in told  # type: ignore[operator]
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(alts) > 8


def test_a_table_with_groups_makes_a_page(tmp_path: Path) -> None:
    from diptych.benchmarks.run import evaluate
    from diptych.core.capabilities import FunctionModel
    from diptych.data.sources import open_source

    rng, lines = np.random.default_rng(0), ["image,caption,group"]
    for i in range(40):
        Image.fromarray(rng.integers(100 + 60 * (i % 2), 180 + 60 * (i % 2), (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,a person,{'ab'[i % 2]}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    bright = FunctionModel("bright", score=lambda images, texts: np.array([[i.mean() for _ in texts] for i in images]))
    evaluate(bright, open_source(f"csv:{tmp_path / 't.csv'}"), ["bias-table?texts=a <good> doctor&k=10"], tmp_path / "e", key="k")
    page = page_of(tmp_path / "e")
    text = text_of(page)
    assert "“a <good> doctor”" in text and "Who is preferred" in text and "groups assigned at random" in text.lower()
    assert any(v.startswith("bright, a <good> doctor: a -") for _, name, v in page.attributes if name == "aria-label")


def test_cards_do_not_repeat_a_picture(tmp_path: Path) -> None:
    rows = [{**r, "cluster": f"c{i // 20}"} for i, r in enumerate(records(n=200, score=0.5))]
    g = gather(load(write(tmp_path, rows)), "mine")
    for chosen in choose(g, g.answers[0]).values():
        assert len({r["cluster"] for r in chosen}) == len(chosen)


def test_where_less_is_better_a_high_credit_is_a_mistake(tmp_path: Path) -> None:
    rows = [{"item": f"i{i}", "correct": {"chair_s": float(i % 4 == 0)}} for i in range(80)]
    write(tmp_path, rows, "chair")
    result = {"task": "chair", "metric": "chair_s", "value": 0.25, "low": 0.2, "high": 0.3, "n": 80, "clusters": 80}
    (tmp_path / "summary.json").write_text(json.dumps({"model": "m", "results": [result | {"higher_is_better": False}]}))
    g = gather(load(tmp_path), "chair")
    chosen = choose(g, g.answers[0])
    assert all(r["correct"]["chair_s"] == 1 for r in chosen["wrong"]) and len(chosen["wrong"]) == EACH
    assert all(r["correct"]["chair_s"] == 0 for r in chosen["right"]) and len(chosen["right"]) == EACH


def test_what_is_invented_is_counted(tmp_path: Path) -> None:
    asked = [("cat", "no", "yes"), ("cat", "no", "no"), ("dog", "no", "no"), ("dog", "yes", "yes"), ("owl", "no", None)]
    rows = [
        {"item": str(i), "question": f"Is there {'an' if t == 'owl' else 'a'} {t} in the image?", "answers": [right], "parsed": said,
         "correct": {"accuracy": float(right == said)}}
        for i, (t, right, said) in enumerate(asked)
    ]  # fmt: skip
    write(tmp_path, rows, "pope")
    captions = [{"item": "a", "truth": ["cat"], "mentioned": ["cat", "key", "key"]}, {"item": "b", "truth": [], "mentioned": []}]
    write(tmp_path, [{**r, "correct": {"chair_s": 0.0}} for r in captions], "chair")
    c = load(tmp_path)
    (pope,), (chair,) = gather(c, "pope").answers, gather(c, "chair").answers
    assert counted(pope) == ({"cat": 1}, {"cat": 2, "dog": 1, "owl": 1})
    assert counted(chair) == ({"key": 1}, {"key": 2, "cat": 1})
    assert "cat m 1 2 50.0" in text_of(page_of(tmp_path)).replace(tmp_path.name, "m")


def test_every_task_is_explained() -> None:
    from diptych.benchmarks.tasks import TASKS
    from diptych.report.pages.explain import explain_task

    assert [name for name in TASKS if explain_task(name) is None] == []
    assert (
        explain_task("retrieval-1000")
        == explain_task("retrieval")
        != explain_task("bias-table")
        != explain_task("bias")
        == explain_task("bias-size")
    )
    assert explain_task("mine") is None
