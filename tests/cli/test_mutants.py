"""``make mutants``: which changes are tried, which tests run them, what the page says."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import mutants, mutations
from bench.mutants import Coverage, Worker
from bench.mutations import Area, Mutant, annotations, difference, drawn, mutated

CODE = '''"""A module."""

from __future__ import annotations


def clamped(x: int | None, low: float = 0.5) -> float | None:
    """At least ``low``."""
    limit: int | float = low * 2
    if x is None:
        return None
    return x + 1 if x < limit else limit - 1
'''


def some(line: int, operator: str = "AddNot", file: str = "src/a.py") -> Mutant:
    return Mutant(file, line, operator, line, "0" * 12)


def test_annotations_are_not_mutated() -> None:
    lines = CODE.splitlines()
    found = [lines[a[0] - 1][a[1] : b[1]] for a, b in annotations(CODE)]
    assert sorted(found) == sorted(["float", "float | None", "int | None", "int | float"])


def test_lines_are_drawn_alike_however_many_mutants_they_have() -> None:
    crowded = [some(1, f"op{n}") for n in range(1000)]
    single = [some(line) for line in range(2, 41)]
    sample = drawn(Area((), (), 20), [*crowded, *single])
    assert len(sample) == len({m.line for m in sample}) == 20
    assert sample == drawn(Area((), (), 20), [*single, *crowded]), "the same whatever the order"
    assert len(drawn(Area((), (), None), [*crowded, *single])) == 1039


def test_a_mutant_is_new_when_its_file_changes() -> None:
    assert some(3).id == some(3).id != Mutant("src/a.py", 3, "AddNot", 3, "1" * 12).id != some(3, "NumberReplacer").id


def test_the_changed_line_is_shown() -> None:
    assert difference("a\nb + c\nd\n", "a\nb - c\nd\n") == ("b + c", "b - c") and difference("a", "a") == ("", "")


def test_quick_tests_come_first_and_failing_ones_never() -> None:
    tests = Coverage({("src/a.py", 3): {"slow", "quick", "fails"}}, {"src/a.py": {"slow", "quick"}}, {"slow": 3.0, "quick": 0.1})
    assert tests.of(some(3)) == ["quick", "slow"]
    assert tests.of(some(1)) == ["quick", "slow"], "a line that runs on import"
    assert tests.of(some(1, file="src/other.py")) == []


def test_the_page_counts_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [some(line) for line in range(1, 11)]
    monkeypatch.setattr(mutants, "AREAS", {"mine": Area((), (), None)})
    monkeypatch.setattr(mutants, "mutants", lambda area: found)
    monkeypatch.setattr(mutants, "RESULTS", tmp_path)
    monkeypatch.setattr(mutants, "PAGE", tmp_path / "mutants.md")
    results = ["killed"] * 6 + ["timeout", "survived", "not run", "the same"]
    rows = [
        {"id": m.id, "result": r, "file": m.file, "line": m.line, "before": "a | b", "after": "a & b"}
        for m, r in zip(found, results, strict=True)
    ]
    rows.append({"id": "gone", "result": "survived", "file": "src/a.py", "line": 1, "before": "", "after": ""})
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reasons.yaml").write_text(f"'{found[7].id}': \"both are the same here\"\n")
    mutants.write_page()
    page = (tmp_path / "mutants.md").read_text()
    assert "| mine | 9 | 10 | 77.8% | 40.0% to 97.2% | 2 | 1 |" in page
    assert "both are the same here" in page and "`a \\| b` → `a \\& b`".replace("\\&", "&") in page and "not run |" in page
    assert "gone" not in page


def test_mutants_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cosmic_ray", reason="cosmic-ray is in the extra mutants")
    monkeypatch.setattr(mutations, "ROOT", tmp_path)
    file = tmp_path / "clamped.py"
    file.write_text(CODE)
    found = list(mutations.mutants_of(file))
    changes = {difference(CODE, mutated(CODE, f"core/{m.operator}", m.occurrence) or CODE)[1] for m in found}
    assert "limit: int | float = low / 2" in changes and "if x is not None:" in changes
    assert not any("int & " in change for change in changes), "annotations stay"
    assert {m.line for m in found} <= {6, 8, 9, 11}


@pytest.mark.parametrize("answer", ["killed\n", ""])
def test_a_worker_that_died_is_no_survivor(tmp_path: Path, answer: str) -> None:
    """And the file of its tree is as it was."""
    worker: Any = Worker.__new__(Worker)
    worker.tree, worker.stamp = tmp_path, 0.0
    worker.server = SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO(answer))
    (tmp_path / "a.py").write_text("x = 1\n")
    if answer:
        assert worker.run(some(1, file="a.py"), "x = 2\n", ["test"], 1.0) == "killed"
    else:
        with pytest.raises(RuntimeError, match="has ended"):
            worker.run(some(1, file="a.py"), "x = 2\n", ["test"], 1.0)
    assert (tmp_path / "a.py").read_text() == "x = 1\n"


# --- what tests say of a change ---

TESTS = """
import pytest
from changed import CASES, half

@pytest.mark.parametrize("case", CASES)
def test_of_a_case(case):
    assert half(case) * 2 == case

def test_half():
    assert half(4) == 2
"""


def outcome(folder: Path, code: str, *names: str) -> str:
    """What the tests of these names say if the module has this code."""
    (folder / "changed.py").write_text(code)
    (folder / "test_it.py").write_text(TESTS)
    tests = [f"test_it.py::{name}" for name in names]
    done = subprocess.run(
        [sys.executable, "-c", f"from bench.mutant_tests import outcome; print(outcome({tests!r}, 60))"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{mutants.ROOT}:{folder}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("code", "names", "expected"),
    [
        ("CASES = [2, 6]\nhalf = lambda x: x / 2", ["test_half", "test_of_a_case[2]"], "survived"),
        ("CASES = [2, 6]\nhalf = lambda x: x * 2", ["test_half"], "killed"),
        (
            "CASES = [3, 6]\nhalf = lambda x: x / 2",
            ["test_half", "test_of_a_case[2]"],
            "survived",
        ),  # the id is gone, nothing failed
        ("CASES = [3, 6]\nhalf = lambda x: x * 2", ["test_half", "test_of_a_case[2]"], "killed"),
        ("CASES = [3, 6]\nhalf = lambda x: x / 2", ["test_of_a_case[2]"], "not run"),
        ("CASES = []\nhalf = lambda x: x / 2\n1 / 0", ["test_half"], "killed"),  # cannot be imported
    ],
)
def test_a_test_that_is_not_there_kills_nothing(tmp_path: Path, code: str, names: list[str], expected: str) -> None:
    assert outcome(tmp_path, code, *names) == expected


def test_the_process_that_forks_has_loaded_nothing_of_what_is_changed() -> None:
    """A module that is loaded before the fork stays as it was, so its mutants would all survive."""
    code = "import bench.mutant_tests, sys; print([m for m in sys.modules if m.startswith('diptych')])"
    environment = {**os.environ, "PYTHONPATH": f"{mutants.ROOT}:{mutants.ROOT / 'src'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
