"""The differences between two results: which rows changed, and why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from diptych.curation.diff import EXAMPLES, diff


def result(reasons: dict[str, str | None], size: int, **given: Any) -> Any:
    """A result as ``diff`` reads it: {id: reason of the removal, None if kept}, in parts of ``size`` rows."""
    names = list(reasons)
    parts = [names[k : k + size] for k in range(0, len(names), size)]
    plan = SimpleNamespace(model_dump=lambda mode: {"errors": "drop", "seed": given.get("seed", 0), "pool": None})
    manifest = {
        "rows": len(names),
        "kept": sum(r is None for r in reasons.values()),
        "data": given.get("data", "d"),
        "steps": given.get("steps", []),
    }
    return SimpleNamespace(
        numbers=range(len(parts)),
        part=lambda number, columns: pa.table(
            {"id": parts[number], "reason": pa.array([reasons[n] for n in parts[number]], pa.string())}
        ),
        manifest=manifest,
        plan=plan,
    )


def test_rows_are_matched_by_id_and_counted_by_the_reason_of_their_change() -> None:
    before = {"a": None, "b": None, "c": "few words", "d": "dark", "e": "dark", "f": None, "gone": None}
    after = {"new": None, "f": None, "e": "dark", "d": "copy", "c": None, "b": "copy", "a": None, "other": "dark"}
    found = diff(result(before, 3), result(after, 2))
    assert (found.rows, found.kept, found.only) == ((7, 8), (4, 4), (1, 2))
    assert (found.dropped, found.gained, found.moved) == ({"copy": 1}, {"few words": 1}, {"dark → copy": 1})
    assert found.examples == {
        "only in the second": ["new", "other"],
        "now dropped: copy": ["b"],
        "now kept, was: few words": ["c"],
    }
    back = diff(result(after, 2), result(before, 3))
    assert (back.dropped, back.gained, back.moved) == ({"few words": 1}, {"copy": 1}, {"copy → dark": 1}), "the other way round"
    assert back.only == (2, 1)


def test_examples_are_few_and_counts_are_whole() -> None:
    many = [f"r{k}" for k in range(3 * EXAMPLES)]
    found = diff(result(dict.fromkeys(many), 4), result(dict.fromkeys(many, "dark"), 4))
    assert found.dropped == {"dark": 3 * EXAMPLES} and found.examples == {"now dropped: dark": many[:EXAMPLES]}


def test_plans_are_compared_step_by_step() -> None:
    def operator(name: str, **options: Any) -> dict[str, Any]:
        return {"operator": name, "as": None, "options": options}

    def rule(**keep: Any) -> dict[str, Any]:
        return {"keep": keep}

    first = [operator("text_length"), rule(column="words", min=3), operator("embed", of=["image"]), rule(column="score", top=0.3)]
    second = [operator("embed", of=["text"]), operator("text_length"), rule(column="words", max=9), operator("language")]
    found = diff(result({}, 1, steps=first, seed=1), result({}, 1, steps=second, seed=2, data="other"))
    assert found.plan == [
        "seed: 1 → 2",
        "data: d → other",
        "changed: keep words range: min: 3 → None, max: None → 9",
        "changed: embed: of: ['image'] → ['text']",
        "gone: keep {'column': 'score', 'top': 0.3}",
        "new: language",
        "the order of the steps",
    ]
    assert diff(result({}, 1, steps=first), result({}, 1, steps=first)).plan == []
