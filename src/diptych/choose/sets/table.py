"""A selection of sets as a table with a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORDS = {
    "add": {
        "helps": "helps: kept",
        "costs": "costs: not kept",
        "no difference shown": "no difference shown: not kept",
    },
    "leave_one_out": {
        "helps": "leaving it out costs: kept",
        "costs": "leaving it out helps",
        "no difference shown": "leaving it out is not shown to cost",
    },
}
TITLES = {
    "add": "Added one at a time, in this order",
    "leave_one_out": "Left out of all, one at a time",
}


def written(result: Mapping[str, Any]) -> str:
    """``table.md`` of a selection: a table for each search, the scores of all arms, and what to train on."""
    lines = [
        f"# Sets for {result['recipe']}",
        "",
        f"{result['budget']} for each arm, seeds: {result['seeds']}, evaluated on {result['eval_data']} by "
        f"{', '.join(result['tasks'])}. The score is the mean over tasks. A difference is that of the arm with the set and the arm "
        f"without it, on the same items, {_noise(result['seeds'])}.",
        "",
    ]
    for way, title in TITLES.items():
        if way in result:
            lines += _table(way, title, result[way])
    lines += ["## Arms", "", *_arms(result["arms"]), "", "## What to train on", "", verdict(result), ""]
    return "\n".join(lines)


def _noise(seeds: int) -> str:
    return "over items and seeds" if seeds >= 3 else "over items: fewer than three seeds say little about other seeds"


def _table(way: str, title: str, found: Mapping[str, Any]) -> list[str]:
    tasks = list(dict.fromkeys(task for row in found["steps"] for task in row["tasks"]))
    lines = [f"## {title}", ""]
    if way == "add":
        lines += [f"Begins with {found['begins']}.", ""]
    lines += ["| set | score | " + " | ".join([*tasks, "verdict"]) + " |", "|" + "---|" * (len(tasks) + 3)]
    for row in found["steps"]:
        cells = [_points(row["score"]), *(_points(row["tasks"].get(task)) for task in tasks)]
        lines.append(f"| {row['set']} | " + " | ".join([*cells, WORDS[way][row["verdict"]]]) + " |")
    return [*lines, ""]


def _points(test: Mapping[str, float] | None) -> str:
    if test is None:
        return "–"
    return f"{100 * test['difference']:+.1f} [{100 * test['low']:+.1f}, {100 * test['high']:+.1f}]"


def _arms(arms: Mapping[str, Mapping[str, float]]) -> list[str]:
    tasks = list(dict.fromkeys(task for scores in arms.values() for task in scores if task != "all"))
    lines = ["| arm | score | " + " | ".join(tasks) + " |", "|" + "---|" * (len(tasks) + 2)]
    for name, scores in arms.items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * scores.get(task, float('nan')):.1f}" for task in ("all", *tasks)) + " |")
    return lines


def verdict(result: Mapping[str, Any]) -> str:
    """What to train on, in sentences."""
    sentences = []
    base = " and the base" if result["base"] else ""
    if add := result.get("add"):
        kept = _listed(add["kept"])
        sentences.append(
            f"Added one at a time, {kept} {'are' if len(add['kept']) != 1 else 'is'} kept{base if add['kept'] else ''}."
        )
    if out := result.get("leave_one_out"):
        free = [row["set"] for row in out["steps"] if row["verdict"] != "helps"]
        costs = f"Leaving out {_listed(out['kept'], 'or')} costs." if out["kept"] else "No set is shown to cost if it is left out."
        sentences.append(costs + (f" {_listed(free)} can be left out as far as this shows." if free else ""))
    if add and out:
        sure = [name for name in add["kept"] if name in out["kept"]]
        sentences.append(f"Both searches agree on {_listed(sure)}." if sure else "The two searches agree on no set.")
    sentences.append("No difference shown is not the same as no difference: a larger budget, or more seeds, can show one.")
    return " ".join(sentences)


def _listed(names: list[str], word: str = "and") -> str:
    if not names:
        return "no set"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
