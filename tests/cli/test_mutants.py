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
from bench.inplace import patch
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


def test_a_default_value_is_tried_with_the_tests_of_its_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text("def f(\n    x,\n    y=2,\n):\n    z = x + y\n    return z\n\n\nLIMIT = 3\n")
    tests = Coverage({("a.py", 5): {"t"}, ("a.py", 6): {"t"}}, {"a.py": {"t", "u"}}, {"t": 3.0, "u": 0.1})
    assert tests.of(some(3, file="a.py")) == ["t"]
    assert tests.of(some(9, file="a.py")) == ["u", "t"]


def test_the_page_counts_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [some(line) for line in range(1, 11)]
    monkeypatch.setattr(mutants, "AREAS", {"mine": Area((), (), None)})
    monkeypatch.setattr(mutants, "mutants", lambda area: found)
    monkeypatch.setattr(mutants, "RESULTS", tmp_path)
    monkeypatch.setattr(mutants, "PAGE", tmp_path / "mutants.md")
    results = ["killed"] * 6 + ["timeout", "survived", "not run", "the same"]
    rows = [
        {"id": m.id, "result": r, "file": m.file, "line": m.line, "before": "a | b", "after": "a & b", "date": "2026-11-30"}
        for m, r in zip(found, results, strict=True)
    ]
    rows.append({"id": "gone", "result": "survived", "file": "src/a.py", "line": 1, "before": "", "after": ""})
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reasons.yaml").write_text(f"'{found[7].id}': \"both are the same here\"\n")
    (tmp_path / "planted.yaml").write_text(
        "{about: by reading, areas: {mine: {planted: 3, found: 2}}, missed: [{fault: a sign, test: 'tests/t.py::t'}]}"
    )
    mutants.write_page()
    page = (tmp_path / "mutants.md").read_text()
    assert "| mine | 9 | 10 | 7 | 77.8% | 40.0% to 97.2% | 2 | 1 | 2026-11-30 |" in page
    assert "both are the same here" in page and "`a \\| b` → `a \\& b`".replace("\\&", "&") in page and "not run |" in page
    assert "gone" not in page and "| mine | 3 | 2 |" in page and "| a sign | `tests/t.py::t` |" in page


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


def test_a_mark_in_a_signature_is_no_multiplication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cosmic_ray", reason="cosmic-ray is in the extra mutants")
    monkeypatch.setattr(mutations, "ROOT", tmp_path)
    code = "def scaled(x, *, by=2, **more):\n    return dict(**more, y=x * by), {**more, 1: by**x}\n"
    (tmp_path / "scaled.py").write_text(code)
    found = [m for m in mutations.mutants_of(tmp_path / "scaled.py") if m.operator.endswith(("Mul_Div", "Pow_Mul"))]
    changes = [difference(code, mutated(code, f"core/{m.operator}", m.occurrence) or code)[1] for m in found]
    assert sorted(changes) == [
        "return dict(**more, y=x * by), {**more, 1: by*x}",
        "return dict(**more, y=x / by), {**more, 1: by**x}",
    ]


@pytest.mark.parametrize("answer", ["killed\n", ""])
def test_a_worker_that_died_is_no_survivor(tmp_path: Path, answer: str) -> None:
    """And the file of its tree is as it was. A process that cannot make the change in place leaves it to the next."""
    worker: Any = Worker.__new__(Worker)
    worker.tree, worker.stamp = tmp_path, 0.0
    worker.servers = [SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO(text)) for text in ("not here\n", answer)]
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


def test_a_change_in_place_is_judged_like_one_of_the_file(tmp_path: Path) -> None:
    """Also where a test is not there; what cannot be changed in place, or does not end, has an answer of its own."""
    code = "CASES = [3, 6]\n\ndef half(x):\n    return x / 2\n"
    (tmp_path / "changed.py").write_text(code)
    (tmp_path / "test_it.py").write_text(TESTS)
    both, gone = ["test_it.py::test_half", "test_it.py::test_of_a_case[2]"], ["test_it.py::test_of_a_case[2]"]
    tries = [
        (both, "x / 2", "2 * x / 4", "survived"),
        (both, "x / 2", "x * 2", "killed"),
        (gone, "x / 2", "x * 2", "not run"),
        (both, "[3, 6]", "[2, 6]", "not here"),
        (both, "return x / 2", "while x: pass", "timeout"),
    ]
    asked = [(tests, (str(tmp_path / "changed.py"), code, code.replace(old, new))) for tests, old, new, _ in tries]
    script = (
        "import json, sys; from bench.mutant_tests import load, outcome; load(['test_it.py'])\n"
        "print(json.dumps([outcome(tests, 2, tuple(change)) for tests, change in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{mutants.ROOT}:{tmp_path}"},
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [expected for *_, expected in tries]


# --- changes in place ---

LOADED = '''"""A module."""

LIMIT = 3


def clamped(x, low=1):
    return max(low, min(x, LIMIT))


class Twice:
    factor = 2

    def of(self, x):
        return [self.factor * y for y in (x, x + 1)]

    @staticmethod
    def half(x):
        return x / 2


above = [x for x in (1, 2, 3) if x > 1]
key = lambda x: -x
'''


@pytest.mark.parametrize(
    ("old", "new", "in_place"),
    [
        ("max(low, min", "min(low, min", True),
        ("y in (x, x + 1)", "y in (x, x - 1)", True),
        ("return x / 2", "return x * 2", True),
        ("lambda x: -x", "lambda x: +x", True),
        ("low=1", "low=2", False),
        ("LIMIT = 3", "LIMIT = 4", False),
        ("factor = 2", "factor = 3", False),
        ("if x > 1", "if x >= 1", False),
        ("clamped", "clamped", False),
    ],
)
def test_functions_change_in_place_wherever_they_are_known(tmp_path: Path, old: str, new: str, in_place: bool) -> None:
    path = str(tmp_path / "loaded.py")
    own: dict[str, Any] = {"__name__": "loaded"}
    exec(compile(LOADED, path, "exec"), own)
    elsewhere = {
        "clamped": own["clamped"],
        "of": own["Twice"]().of,
        "half": own["Twice"].half,
        "key": own["key"],
    }  # as imported before
    before = [elsewhere["clamped"](0), elsewhere["of"](5), elsewhere["half"](8), elsewhere["key"](1)]
    assert before == [1, [10, 12], 4, -1]
    assert patch(path, LOADED, LOADED.replace(old, new)) == in_place
    after = [elsewhere["clamped"](0), elsewhere["of"](5), elsewhere["half"](8), elsewhere["key"](1)]
    assert sum(a != b for a, b in zip(before, after, strict=True)) == in_place
