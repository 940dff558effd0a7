"""Results on disk, and docs/benchmarks.md made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.harness import ROOT, Bench
from diptych.core.files import read_json, write_json, write_text

RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
FIGURES = ROOT / "docs" / "figures"
HEAD = """# Benchmarks

Written by `make bench` (see `bench/README.md`); raw numbers are in `bench/results/`. The contestants alternate within one run. A rate is the median over its rounds, and a ratio
is the median of the ratios of each round, with the interquartile range in brackets. Memory is measured in separate processes. Other machines give other numbers.
"""


def save(bench: Bench, case: dict[str, str], environment: dict[str, str], command: str) -> None:
    """Write a case's result and figures, replacing what it said before."""
    figures = {}
    for i, (caption, svg) in enumerate(bench.figures.items()):
        path = FIGURES / f"bench-{bench.name}-{i}.svg"
        write_text(path, svg)
        figures[caption] = path.relative_to(PAGE.parent).as_posix()
    result = {**case, **bench.as_json(), "figures": figures, "environment": environment, "command": command}
    write_json(RESULTS / f"{bench.name}.json", result)


def write_page(order: list[str]) -> None:
    """The page from every result there is, in the order of the cases."""
    found = [read_json(path) for name in order if (path := RESULTS / f"{name}.json").is_file()]
    goals = [[r["name"], g["text"], g["measured"], "met" if g["met"] else "**not met**"] for r in found for g in r["goals"]]
    summary = table(["case", "goal", "measured", ""], [[f"[{n}](#{n})", *rest] for n, *rest in goals])
    write_text(PAGE, "\n".join([HEAD, summary, *map(section, found)]))


def section(result: dict[str, Any]) -> str:
    e = result["environment"]
    lines = [f"## {result['name']}", result["about"], ""]
    for t in result["tables"]:
        lines += [*([f"**{t['title']}**", ""] if t["title"] else []), table(t["columns"], t["rows"])]
    for caption, path in result["figures"].items():
        lines += [f"![{caption}]({path})", "", caption, ""]
    for goal in result["goals"]:
        lines += [f"- Goal {'met' if goal['met'] else '**not met**'}: {goal['text']}: {goal['measured']}"]
    lines += [f"- {note}" for note in result["notes"]]
    where = "; ".join([e["hardware"], e["software"], e["threads"], e["load"], e["date"]])
    return "\n".join([*lines, "", f"`{result['command']}` · {where}", ""])


def table(columns: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    head = f"| {' | '.join(columns)} |\n|{'|'.join(['---', *['---:'] * (len(columns) - 1)])}|\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def case_names() -> list[str]:
    return sorted(p.stem.replace("_", "-") for p in (Path(__file__).parent / "cases").glob("[a-z]*.py"))
