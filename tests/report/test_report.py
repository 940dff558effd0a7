"""The report from made-up comparisons: right numbers, right words, self-contained, safe, tolerant of holes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from diptych.benchmarks.probes.embedding import modality_gap
from diptych.benchmarks.records import Result
from diptych.benchmarks.run import Summary
from diptych.core.arrays import unit_rows
from diptych.core.errors import DiptychError
from diptych.report import build_report, print_summary, print_table
from diptych.report.columns import classify, columns, standing
from diptych.report.drawing.plots import loss_curve, pca
from diptych.report.read import load
from diptych.report.sections.examples import retrieved
from diptych.report.words import plain_words
from report_fixture import ITEMS, KNOWN, RECIPES, SKILLS, Page, make_comparison, result

HOSTILE = ' <script>alert(1)</script> & "quoted" \' <img src=x onerror=alert(2)>'


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_comparison(tmp_path_factory.mktemp("known") / "c", hostile=HOSTILE)
    build_report(path)
    return path


@pytest.fixture(scope="module")
def html(known: Path) -> str:
    return (known / "report.html").read_text(encoding="utf-8")


def words_of(path: Path) -> str:
    return plain_words(load(path)).replace("**", "")


def same_everywhere(value: float) -> dict[str, tuple[float, ...]]:
    return {name: (value,) * 11 for name in ("clip", "siglip", "coca")}


# --- the page


def test_html_is_balanced_and_holds_every_section(html: str) -> None:
    page = Page(html)
    assert page.wrong == [] and page.open == []
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    assert {
        "words",
        "results",
        "spent",
        "loss",
        "skills",
        "retrieved-retrieval",
        "written-captions",
        "maps",
        "tests",
        "again",
        "reading",
    } <= set(identifiers)


def test_every_recipe_and_number_is_on_the_page(known: Path, html: str) -> None:
    text = " ".join(Page(html).text)
    for label, *_ in RECIPES.values():
        assert label in text
    c = load(known)
    for recipe in c.measured:
        for column in columns(c):
            if column.key in recipe.measures:
                m = recipe.measures[column.key]
                assert (f"{100 * m.value:.1f}" if column.share else f"{m.value:.2f}") in text
    assert "90.6 · 91.4" in text  # CLIP, image → caption, its two seeds
    assert "739" in text and "910 MB" in text and "270 M" in text  # what was spent


def test_page_asks_nothing_of_the_network(html: str) -> None:
    page = Page(html)
    for tag, name, value in page.attributes:
        if name in ("src", "srcset", "data", "poster", "action", "background"):
            assert value.startswith("data:image/"), (tag, name, value[:80])
        if name == "href":
            assert tag == "a" and value.startswith(("#", "https://")), (tag, value)
        assert not name.startswith("on"), (tag, name)
    # the player of clips shows the pictures of the page itself
    assert not re.search(r"url\((?!\"\$\{film)|@import|fetch\(|XMLHttpRequest|WebSocket", html)
    assert page.scripts == 1
    assert "default-src 'none'" in html
    assert sum(value.startswith("data:image/") for _, name, value in page.attributes if name == "src") >= 20


def test_strange_captions_are_escaped(html: str) -> None:
    assert "alert(1)" in html, "the hostile caption must be shown, or this test says nothing"
    assert "<script>alert" not in html and "<img src=x" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_page_is_small_and_sortable_by_keyboard(known: Path, html: str) -> None:
    assert (known / "report.html").stat().st_size < 2_000_000
    heads = re.findall(r"<th [^>]*aria-sort=\"none\">(.*?)</th>", html)
    assert len(heads) > 20 and all(h.startswith('<button type="button">') for h in heads)


def test_chance_is_marked_in_text_and_shape(html: str) -> None:
    row = re.search(r'<th scope="row">[^\n]*?CLIP.*?</tr>', html)
    assert row and row[0].count("≈ chance") == 3  # position, relation, binding
    panels = html.split('id="skills"')[1].split("</figure>")[0].split('class="panel"')[1:]
    clip, coca = (next(p for p in panels if f"</span>{label}" in p) for label in ("CLIP", "CoCa"))
    assert clip.count('<circle class="hollow') == 3 and coca.count('<circle class="hollow') == 0
    for panel in (clip, coca):
        assert panel.count('class="blind"') == panel.count('class="shuffled"') == panel.count('class="chance"') == len(SKILLS)


# --- the words


def test_words_tell_the_known_result(known: Path) -> None:
    words = words_of(known)
    assert "CLIP 92.0 % and SigLIP 91.1 % are tied at the top; CoCa and LLaVA-joint are significantly behind" in words
    assert "Binding (chance 50.0 %): CoCa 95.0 % is above chance; LLaVA-joint 53.0 % [48.1–57.9], CLIP" in words
    assert "stay at chance within the interval" in words
    assert "LLaVA-joint is at chance in 1 of 2 seeds" in words
    assert "CLIP and SigLIP for caption → image and image → caption; CoCa for relation and binding" in words
    assert "No results from FLAVA (loss was not finite at step 12)" in words
    assert "Training took 5.0 min a run" in words and "CLIP was fastest" in words


def test_words_follow_a_reversed_result(tmp_path: Path) -> None:
    values = KNOWN | {"clip": (*KNOWN["coca"][:9][:2], 0.8, *[0.95] * 8), "coca": (0.97, 0.96, 0.9, *[0.9] * 5, 0.51, 0.40, 0.9)}
    words = words_of(make_comparison(tmp_path / "c", values))
    assert "CoCa is best (97.0 % right at first rank" in words and "significantly ahead of the next, SigLIP" in words
    assert "Relation (chance 50.0 %): CLIP 95.0 %" in words
    assert re.search(r"CoCa 51\.0 % \[[^;]* stay at chance within the interval", words)
    assert "CoCa 40.0 % is below chance, which points to a consistent wrong preference" in words
    assert "CoCa for relation" not in words


def test_words_call_ties_ties(tmp_path: Path) -> None:
    words = words_of(make_comparison(tmp_path / "c", same_everywhere(0.8)))
    assert "the recipes are tied: none is significantly behind the best" in words
    assert "with no significant difference among them" in words
    assert "All recipes tie for first on all 4 of these measures" in words
    assert "is best" not in words and "significantly ahead" not in words


def test_words_when_nobody_learned_anything(tmp_path: Path) -> None:
    values = {
        name: (1 / ITEMS, 1 / ITEMS, 0.02, *[0.25 if s == "count" else 0.5 for s in SKILLS]) for name in ("clip", "siglip", "coca")
    }
    words = words_of(make_comparison(tmp_path / "c", values))
    assert "no recipe does better than chance within its interval" in words
    assert "every recipe stays at chance within its interval" in words
    assert "No recipe beats chance on any of these 4 measures" in words


def test_words_warn_of_a_blind_score(tmp_path: Path, known: Path) -> None:
    leaky = words_of(make_comparison(tmp_path / "c", blind=0.64))
    assert "binding is above chance even without the picture" in leaky and "CoCa 64.0 %" in leaky
    assert "without the picture" not in words_of(known)


def test_without_tests_overlap_decides_and_is_said(tmp_path: Path) -> None:
    path = make_comparison(tmp_path / "c")
    (path / "tests.json").unlink()
    words = words_of(path)
    assert "CLIP 92.0 % and SigLIP 91.1 % are tied at the top" in words
    assert "by the overlap of the intervals" in words


def test_a_significant_test_outranks_overlapping_intervals(tmp_path: Path) -> None:
    path = make_comparison(tmp_path / "c")
    key = ("retrieval", "text-to-image/recall@1")
    assert [r.name for r in standing(load(path), key).tied] == ["clip", "siglip"]
    tests = json.loads((path / "tests.json").read_text())
    for t in tests:
        if (t["task"], t["metric"]) == key and {t["a"], t["b"]} == {"clip", "siglip"}:
            t["p_holm"] = 0.01
    (path / "tests.json").write_text(json.dumps(tests))
    assert [r.name for r in standing(load(path), key).tied] == ["clip"]


# --- numbers


def test_means_over_seeds(known: Path) -> None:
    c = load(known)
    m = next(r for r in c.recipes if r.name == "clip").measures["controlled", "relation"]
    assert m.value == pytest.approx(0.52) and m.seeds == pytest.approx({0: 0.516, 1: 0.524})
    low = [result("controlled", "relation", v, 0.5)["low"] for v in (0.516, 0.524)]
    assert m.low == pytest.approx(sum(low) / 2)
    assert next(r for r in c.recipes if r.name == "siglip").measures["controlled", "relation"].seeds == pytest.approx({0: 0.506})


def test_table_and_json_agree_with_the_inputs(known: Path) -> None:
    data = json.loads((known / "results.json").read_text(encoding="utf-8"))
    lines = (known / "table.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    head, body = rows[0], {row[0]: row for row in rows[2:]}
    for recipe in data["recipes"]:
        for r in recipe["results"]:
            inputs = []
            for seed in r["seeds"]:
                summary = json.loads((known / f"{recipe['name']}-s{seed}" / "evaluation" / "summary.json").read_text())
                inputs += [x["value"] for x in summary["results"] if (x["task"], x["metric"]) == (r["task"], r["metric"])]
            assert r["value"] == pytest.approx(np.mean(inputs))
        for i, column in enumerate(data["columns"], 1):
            found = [r for r in recipe["results"] if (r["task"], r["metric"]) == (column["task"], column["metric"])]
            cell = body[recipe["label"]][i]
            if not found:
                assert cell == "—"
            else:
                shown = f"{found[0]['value']:.2f}" if column["metric"] == "cider" else f"{100 * found[0]['value']:.1f}"
                assert cell.replace("**", "").startswith(shown + " ")
                assert ("≈ chance" in cell) == found[0]["at_chance"]
    assert head[0] == "Recipe" and len(head) == len(data["columns"]) + 1 == 13
    assert body["CoCa"][head.index("Skills: relation (chance 50.0)")].startswith("**96.0**")
    assert data["words"] in "\n".join(lines).replace("**", "")


@pytest.mark.parametrize(
    ("task", "metric", "group", "label"),
    [
        ("retrieval", "text-to-image/recall@1", "Retrieval, R@1", "caption → image"),
        ("retrieval-1000", "image-to-text/recall@1", "Retrieval of 1,000, R@1", "image → caption"),
        ("zeroshot", "top1", "Zero-shot naming", "top-1"),
        ("controlled", "binding", "Skills", "binding"),
        ("captions", "cider", "Captions", "CIDEr"),
    ],
)
def test_main_measures_are_recognised(task: str, metric: str, group: str, label: str) -> None:
    found = classify(task, metric)
    assert found and found[:2] == (group, label)


def test_side_measures_stay_out_of_the_main_table() -> None:
    side = [("retrieval", "text-to-image/recall@10"), ("controlled", "binding/group"), ("controlled", "binding/text-to-image")]
    side += [("zeroshot", "top5"), ("zeroshot", "per_class_recall"), ("captions", "bleu4"), ("embedding", "modality_gap")]
    assert [classify(*key) for key in side] == [None] * len(side)


def test_loss_curve_is_a_share_of_the_budget(known: Path) -> None:
    recipe = next(r for r in load(known).recipes if r.name == "llava")
    x, y, stages = loss_curve(recipe.runs[0].files.metrics(), None)
    assert 0 < x[0] < 0.02 and 0.98 < x[-1] <= 1 and y[0] > 4 > 1 > y[-1]
    assert [(round(place, 1), name) for place, name in stages] == [(0.4, "main")]


def test_map_geometry() -> None:
    rows = np.outer(np.linspace(-1, 1, 9), [3.0, 4.0, 0.0]) + np.outer(np.tile([1.0, -1, 0], 3), [0.0, 0.0, 0.1])
    flat, kept = pca(rows)
    assert kept == pytest.approx(1.0)
    assert np.ptp(flat[:, 0]) == pytest.approx(10.0, rel=0.01)
    assert modality_gap(unit_rows(np.array([[2.0, 0], [5, 0]])), unit_rows(np.array([[0, 1.0], [0, 3]]))) == pytest.approx(2**0.5)


def test_retrieval_examples_rank_by_records_else_by_embeddings(known: Path) -> None:
    c = load(known)
    coca = retrieved(c, next(r for r in c.recipes if r.name == "coca"))
    assert len(coca) == ITEMS and sum(r.right for r in coca) == ITEMS - len(range(0, ITEMS, 6))
    wrong = next(r for r in coca if not r.right)
    assert wrong.rank == 3 and wrong.top[2] == wrong.item
    llava = next(r for r in c.recipes if r.name == "llava")
    with np.load(llava.runs[0].evaluation.path / "embeddings.npz") as stored:
        best = (stored["text"] @ stored["image"].T).argmax(1)
    assert [r.top[0] for r in retrieved(c, llava)] == [f"i{i:03}" for i in best]


# --- holes


def test_missing_and_broken_parts_are_told_not_fatal(tmp_path: Path) -> None:
    path = make_comparison(tmp_path / "c")
    shutil.rmtree(path / "items")
    (path / "tests.json").write_text("{ broken", encoding="utf-8")
    (path / "clip-s0" / "evaluation" / "embeddings.npz").write_bytes(b"nonsense")
    (path / "coca-s0" / "spent.json").unlink()
    (path / "coca-s0" / "metrics.jsonl").write_text('{"loss": 1.0, "seco', encoding="utf-8")
    page = Page(build_report(path).read_text(encoding="utf-8"))
    text = " ".join(page.text)
    assert page.wrong == [] and page.open == []
    assert "tests.json could not be read" in text
    assert "clip-s0/evaluation/embeddings.npz could not be read" in text
    assert "SigLIP: no results for seed 1" in text
    assert re.search(r"CLIP[^.:]* skipped captions: the model cannot generate", text)


def test_infinite_and_absent_values_are_left_out(tmp_path: Path) -> None:
    path = make_comparison(tmp_path / "c", seeds=1)
    summary = path / "clip-s0" / "evaluation" / "summary.json"
    content = json.loads(summary.read_text())
    for r in content["results"]:
        if r["metric"] == "relation":
            r["value"] = None
        if r["metric"] == "binding":
            r.update(value=0.5, low=None, high=None)
    summary.write_text(json.dumps(content))
    c = load(path)
    clip = next(r for r in c.recipes if r.name == "clip")
    assert ("controlled", "relation") not in clip.measures
    binding = clip.measures["controlled", "binding"]
    assert not binding.at_chance and not binding.better_than_chance  # no interval, no claim
    assert "CLIP 50.0" not in words_of(path)
    build_report(path)
    assert "no interval" in (path / "table.md").read_text(encoding="utf-8")


def test_a_line_separator_in_a_caption_loses_nothing(tmp_path: Path) -> None:
    path = make_comparison(tmp_path / "c")
    file = path / "items" / "retrieval.jsonl"
    rows = [json.loads(line) for line in file.read_text().split("\n") if line]
    rows[5]["captions"][0] = "two\u2028lines"
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    assert len(load(path).items) == ITEMS


def test_openmoji_is_credited_once_and_in_full(tmp_path: Path) -> None:
    path = make_comparison(tmp_path / "c")
    described = json.loads((path / "compare.json").read_text())
    described["licences"] = {"openmoji": "CC BY-SA 4.0", "minilm": "Apache-2.0"}
    (path / "compare.json").write_text(json.dumps(described))
    text = " ".join(Page(build_report(path).read_text(encoding="utf-8")).text)
    assert text.count("all emojis designed by OpenMoji") == 1 and "minilm" in text


def test_nothing_measured_yet(tmp_path: Path) -> None:
    text = " ".join(Page(build_report(make_comparison(tmp_path / "c", {})).read_text(encoding="utf-8")).text)
    assert "Nothing has been measured yet" in text and "FLAVA: no results" in text


def test_a_single_run(known: Path, tmp_path: Path) -> None:
    run = tmp_path / "clip-run"
    shutil.copytree(known / "clip-s0", run)
    page = Page(build_report(run).read_text(encoding="utf-8"))
    text = " ".join(page.text)
    assert page.wrong == [] and "91.6" in text and "Relation (chance 50.0\u00a0%)" in text
    assert "clip alone was measured" in " ".join(text.split())
    assert (run / "table.md").exists() and (run / "results.json").exists()


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="not a comparison"):
        build_report(tmp_path)


def test_terminal(known: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    print_table(known)
    shown = capsys.readouterr().out
    assert "LLaVA-joint" in shown and "96.0 [94.1–97.9]" in shown and "≈ chance" in shown
    for width in ("80", "100", "60"):
        monkeypatch.setenv("COLUMNS", width)
        print_table(known)
        narrow = capsys.readouterr().out
        table = narrow[: narrow.index("tied with the best")]
        cells = set(re.findall(r"\d+\.\d \[\d+\.\d–\d+\.\d\]", shown))
        assert len(cells) > 20 and cells == set(re.findall(r"\d+\.\d \[\d+\.\d–\d+\.\d\]", table)), "no interval is cut off"
        assert "…" not in table and max(map(len, table.splitlines())) <= int(width)
    monkeypatch.setenv("COLUMNS", "160")
    rows = [Result(**result("controlled", "binding", 0.51, 0.5, controls={"blind": 0.5, "shuffled": None}))]
    skipped = [{"task": "captions", "reason": "the model has no generate"}]
    print_summary(Summary("m", "scenes:", "", results=rows, skipped=skipped))
    shown = capsys.readouterr().out
    assert "46.1–55.9" in shown and "captions: skipped, the model has no generate" in shown
    assert re.search(r"binding +≈ +51\.0 ", shown)
