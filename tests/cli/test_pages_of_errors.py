"""Errors name the page of the docs that they belong to, and every such page and place is there; bars in notebooks."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

import cli_fixture
from cli_fixture import Cli
from diptych.cli.start.pages import PAGES, page_of
from diptych.core import progress
from diptych.core.errors import DiptychError

cli = cli_fixture.cli
ROOT = Path(__file__).parents[2]


def test_every_page_and_place_exists() -> None:
    for module, address in PAGES.items():
        assert importlib.util.find_spec(module) is not None, module
        page, _, place = address.partition("#")
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        titles = {re.sub(r"[^\w -]", "", t).strip().lower().replace(" ", "-") for t in re.findall(r"^#+ (.+)$", text, re.M)}
        assert not place or place in titles, address


def test_the_page_is_that_of_the_module_that_raised(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", "clipp").err.rstrip().endswith("read: docs/recipes.md")
    assert cli("report", tmp_path / "none").err.rstrip().endswith("read: docs/report.md")
    assert cli("push", tmp_path, "ada/clip").err.rstrip().endswith("read: docs/exporting.md#on-a-model-hub")
    assert "read:" not in cli("plan", "--help").all
    assert page_of(DiptychError("never raised")) == ""


def test_bars_are_drawn_in_notebooks_that_can_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook, pipe, terminal = Console(force_jupyter=True), Console(force_terminal=False), Console(force_terminal=True)
    monkeypatch.setattr(progress, "installed", lambda module: module == "ipywidgets")
    assert progress.live(notebook) and progress.live(terminal) and not progress.live(pipe)
    monkeypatch.setattr(progress, "installed", lambda module: False)
    assert not progress.live(notebook) and progress.live(terminal)


def test_colours_are_off_in_a_pipe(cli: Cli) -> None:
    for command in (("curate", "plans"), ("--help",), ("evaluate", "nowhere")):
        assert "\x1b[" not in cli(*command).all, command


def test_every_extra_is_tried_alone() -> None:
    spec = importlib.util.spec_from_file_location("wheel", ROOT / "tools/wheel.py")
    assert spec and spec.loader
    wheel: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wheel)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert wheel.PROMISED.keys() - {""} == extras.keys()
    workflow = (ROOT / ".github/workflows/tests.yml").read_text()
    listed = re.search(r"extra: \[(.+)\]", workflow)
    assert listed and set(listed[1].split(", ")) == extras.keys()
    for modules in wheel.PROMISED.values():
        for module in (m for m in modules if m.startswith("diptych.")):
            assert importlib.util.find_spec(module) is not None, module
    assert wheel.wanted(["video"]) == ["", "video"] and wheel.wanted(["all"]) == list(wheel.PROMISED)
    with pytest.raises(SystemExit, match="no extra vido"):
        wheel.wanted(["vido"])
