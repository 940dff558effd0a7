"""``make mutants``: which changes are tried, which tests run them, what the page says."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import mutants
from bench.inplace import patch
from bench.mutants import Area, Coverage, Mutant, Worker, annotations, difference, drawn

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
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    file = tmp_path / "clamped.py"
    file.write_text(CODE)
    found = list(mutants.mutants_of(file))
    changes = {difference(CODE, mutants.mutated(CODE, f"core/{m.operator}", m.occurrence) or CODE)[1] for m in found}
    assert "limit: int | float = low / 2" in changes and "if x is not None:" in changes
    assert not any("int & " in change for change in changes), "annotations stay"
    assert {m.line for m in found} <= {6, 8, 9, 11}


def test_a_mark_in_a_signature_is_no_multiplication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cosmic_ray", reason="cosmic-ray is in the extra mutants")
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    code = "def scaled(x, *, by=2, **more):\n    return dict(**more, y=x * by), {**more, 1: by**x}\n"
    (tmp_path / "scaled.py").write_text(code)
    found = [m for m in mutants.mutants_of(tmp_path / "scaled.py") if m.operator.endswith(("Mul_Div", "Pow_Mul"))]
    changes = [difference(code, mutants.mutated(code, f"core/{m.operator}", m.occurrence) or code)[1] for m in found]
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
