"""The differences between two results, and their reasons."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from diptych.curation.explain import Result

EXAMPLES = 5


@dataclass
class Diff:
    """The differences between two results."""

    rows: tuple[int, int]
    kept: tuple[int, int]
    only: tuple[int, int]  # rows that are missing from the other pool
    dropped: dict[str, int]  # kept before, now removed: by the reason now
    gained: dict[str, int]  # removed before, now kept: by the reason then
    moved: dict[str, int]  # removed in both, for another reason: "before → now"
    plan: list[str]  # differences of the plans
    examples: dict[str, list[str]] = field(default_factory=dict)


def diff(a: Result, b: Result) -> Diff:
    """The differences between two results; rows are matched by id. Memory grows with the ids of ``a``."""
    before: dict[str, str | None] = {}
    for number in a.numbers:
        table = a.part(number, ["id", "reason"])
        before.update(zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True))
    dropped, gained, moved = Counter[str](), Counter[str](), Counter[str]()
    examples: dict[str, list[str]] = defaultdict(list)
    new = 0

    def note(what: str, identity: str) -> None:
        """Keep a row as an example of a change, up to ``EXAMPLES`` of each."""
        if len(examples[what]) < EXAMPLES:
            examples[what].append(identity)

    seen = 0
    for number in b.numbers:
        table = b.part(number, ["id", "reason"])
        for identity, now in zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True):
            if identity not in before:
                new += 1
                note("only in the second", identity)
                continue
            seen += 1
            then = before[identity]
            if then is None and now is not None:
                dropped[now] += 1
                note(f"now dropped: {now}", identity)
            elif then is not None and now is None:
                gained[then] += 1
                note(f"now kept, was: {then}", identity)
            elif then != now:
                moved[f"{then} → {now}"] += 1
    return Diff(
        rows=(a.manifest["rows"], b.manifest["rows"]),
        kept=(a.manifest["kept"], b.manifest["kept"]),
        only=(len(before) - seen, new),
        dropped=dict(dropped.most_common()),
        gained=dict(gained.most_common()),
        moved=dict(moved.most_common()),
        plan=_plan_differences(a, b),
        examples=dict(examples),
    )


def _plan_differences(a: Result, b: Result) -> list[str]:
    """The differences of the plans, one sentence each."""
    differences = []
    for name in ("errors", "seed", "pool"):
        x, y = (r.plan.model_dump(mode="json")[name] for r in (a, b))
        if x != y:
            differences.append(f"{name}: {x} → {y}")
    if a.manifest["data"] != b.manifest["data"]:
        differences.append(f"data: {a.manifest['data']} → {b.manifest['data']}")
    first, second = ({_identity(step): step for step in r.manifest["steps"]} for r in (a, b))
    for name, step in first.items():
        if name not in second:
            differences.append(f"gone: {_describe(step)}")
        elif step != second[name]:
            differences.append(f"changed: {name}: {_changes(step, second[name])}")
    differences += [f"new: {_describe(step)}" for name, step in second.items() if name not in first]
    common = [n for n in first if n in second]
    if common != [n for n in second if n in first]:
        differences.append("the order of the steps")
    return differences


def _identity(step: dict[str, Any]) -> str:
    """The identity of a step, independent of its options: an operator's name, a rule's column and way."""
    if "operator" in step:
        return str(step["as"] or step["operator"])
    rule = step["keep"]
    way = (
        "range"
        if {"min", "max", "above", "below"} & set(rule)
        else next(k for k in rule if k not in ("column", "reason", "missing", "of"))
    )
    return f"keep {rule.get('column', '')} {way}".replace("  ", " ")


def _describe(step: dict[str, Any]) -> str:
    return f"{step['operator']} {step['options'] or ''}".strip() if "operator" in step else f"keep {step['keep']}"


def _changes(a: dict[str, Any], b: dict[str, Any]) -> str:
    flat_a, flat_b = _flat(a), _flat(b)
    keys = [k for k in dict.fromkeys([*flat_a, *flat_b]) if flat_a.get(k) != flat_b.get(k)]
    return ", ".join(f"{k}: {flat_a.get(k)} → {flat_b.get(k)}" for k in keys)


def _flat(step: dict[str, Any]) -> dict[str, Any]:
    inner = step.get("keep") or step.get("options") or {}
    return {**{k: v for k, v in step.items() if k not in ("keep", "options")}, **inner}
