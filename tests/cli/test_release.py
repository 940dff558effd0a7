"""The release tool changes the version in every place, and refuses what would be no release."""

from __future__ import annotations

import datetime
import importlib.util
import shutil
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DAY = datetime.date(2026, 12, 1)


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools/release.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("src/diptych/__init__.py", "CHANGELOG.md", "CITATION.cff"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_version_stands_in_one_place(release: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "diptych.__version__"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == release.current(ROOT)


def test_a_release_closes_the_section_of_the_changelog(release: ModuleType, tree: Path) -> None:
    before = (tree / "CHANGELOG.md").read_text()
    made = release.edits(tree, "7.1.0", DAY)
    for path, text in made.items():
        path.write_text(text)
    assert release.current(tree) == "7.1.0" and yaml.safe_load((tree / "CITATION.cff").read_text())["version"] == "7.1.0"
    after = (tree / "CHANGELOG.md").read_text()
    assert after.replace("\n## 7.1.0 (2026-12-01)\n", "", 1) == before, "nothing else has changed"
    with pytest.raises(release.ReleaseError, match="nothing under '## Unreleased'"):
        release.edits(tree, "7.2.0", DAY)


@pytest.mark.parametrize(("version", "reason"), [("0.0.9", "is before"), ("1.2", "not a version"), ("v9.0.0", "not a version")])
def test_what_is_no_release_is_refused(release: ModuleType, tree: Path, version: str, reason: str) -> None:
    with pytest.raises(release.ReleaseError, match=reason):
        release.edits(tree, version, DAY)


def test_versions_are_in_order(release: ModuleType) -> None:
    names = ["0.9.0", "1.0.0a1", "1.0.0b1", "1.0.0rc1", "1.0.0rc2", "1.0.0", "1.0.1", "1.10.0"]
    assert sorted(reversed(names), key=release.order) == names


def test_the_workflow_calls_what_lands(release: ModuleType) -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    assert [step.get("run") for step in jobs["test"]["steps"]][-1] == ".ci/run"
    assert jobs["test"]["strategy"]["matrix"]["python"][0] == "3.11"
    targets = (ROOT / "Makefile").read_text()
    for job in jobs.values():
        last = job["steps"][-1]["run"]
        assert (ROOT / last).is_file() or f"\n{last.removeprefix('make ').partition(' ')[0]}:" in targets
