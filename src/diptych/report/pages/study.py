"""The report of a study: claims with their verdicts, every measure by arm, the study's own figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych.core.errors import counted
from diptych.core.files import write_text
from diptych.report.columns import p_value
from diptych.report.drawing.document import Page, Section, document
from diptych.report.drawing.marks import dot, escape, header, key, line, link, scroller, svg

MARKS = {"holds here": "✓", "does not hold": "✗", "cannot tell": "?"}
_READING = """<p>A claim states that an arm is higher than, lower than or the same as another on a measure. It <b>holds here</b> if
the whole 95 % interval of the difference agrees with the claim, <b>does not hold</b> if none of it does; otherwise the verdict is
<b>cannot tell</b>. The interval covers the choice of items and, with at least two seeds, of the training seed; both count as random. With one
seed it covers the items only. p is that of the claim's own test, two-sided; Holm's correction is over the claims of this page. The
effect size is the difference divided by its spread over items. The verdicts do not extend to other data or larger budgets.</p>"""


def build_study_report(folder: Path, study: dict[str, Any], results: dict[str, Any], figures: Sequence[tuple[str, str]]) -> None:
    """Writes ``table.md`` and ``report.html`` from the content of ``results.json``. figures: (title, HTML)."""
    write_text(folder / "table.md", markdown(results))
    sections = [
        Section("claims", "Claims", _about(study) + _claims(results)),
        Section("measures", "What was measured", _measures(results)),
        *(Section(f"figure-{i}", title, body) for i, (title, body) in enumerate(figures)),
        Section("arms", "Arms, and what they spent", _arms(results)),
        Section("reading", "How to read this page", _READING),
        Section("again", "Do it again", f"<pre><code>{escape(results['command'])}</code></pre>{_environment(results)}"),
    ]
    facts = [
        ("Study", results["study"]),
        ("Data", study["data"]),
        ("Judged on", study.get("eval_data") or "the test part of each arm's data"),
        ("Budget", f"{results['budget']} each"),
        ("Seeds", str(results["seeds"])),
        ("Date", results["created"]),
    ]
    page = document(results["title"] or results["study"], facts, [Page("study", "Study", sections)])
    write_text(folder / "report.html", page)


def number(value: float | None, share: bool) -> str:
    """A number as text, in per cent if it is a share."""
    if value is None or not math.isfinite(value):
        return "—"
    return f"{100 * value:.1f}" if share else f"{value:.3g}"


def interval(entry: dict[str, Any], share: bool, name: str = "value") -> str:
    """A value with its interval: "12.3 [10.0, 14.6]", in per cent if it is a share."""
    value = number(entry.get(name), share)
    if entry.get("low") is None or entry.get("high") is None:
        return value
    return f"{value} [{number(entry['low'], share)}, {number(entry['high'], share)}]"


def expectation(claim: dict[str, Any], share: bool) -> str:
    """A claim as a formula."""
    by = f" by {number(claim['by'], share)}" if claim["by"] else ""
    of = f" (its {claim['measure_b']})" if claim.get("measure_b") else ""
    words = {"higher": "higher than", "lower": "lower than", "same": "the same as"}[claim["expect"]]
    b = claim["b"] if isinstance(claim["b"], str) else number(claim["b"], share)
    within = f", within {number(claim['by'], share)}" if claim["expect"] == "same" else by
    return f"{claim['measure']}: {claim['a']} {words} {b}{of}{within}"


def markdown(results: dict[str, Any]) -> str:
    """The tables of a study, Markdown."""
    lines = [
        f"## {results['title'] or results['study']}",
        "",
        f"Budget {results['budget']} each, {counted(results['seeds'], 'seed')}.",
        "",
    ]
    lines += ["| claim | difference [95 %] | effect size | p (Holm) | verdict |", "|---|---:|---:|---:|---|"]
    for claim in results["claims"]:
        share = results["measures"][claim["measure"]]["share"]
        reason = f" ({claim['reason']})" if claim["reason"] else ""
        cells = [
            f"{claim['claim']} ({expectation(claim, share)})",
            interval(claim, share, "difference") if "difference" in claim else "—",
            _two(claim.get("effect")),
            p_value(claim.get("p_holm")),
            f"**{claim['verdict']}**{reason}",
        ]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    arms = list(results["arms"])
    lines += ["", "| measure | " + " | ".join(arms) + " |", "|---|" + "---:|" * len(arms)]
    for name, measure in results["measures"].items():
        cells = [interval(measure["arms"].get(arm, {}), measure["share"]) for arm in arms]
        lines.append(f"| {name}{', %' if measure['share'] else ''} | " + " | ".join(cells) + " |")
    reasons: dict[str, list[str]] = {}  # {reason: measures}
    for name, measure in results["measures"].items():
        for arm, entry in measure["arms"].items():
            if "reason" in entry:
                reasons.setdefault(entry["reason"], []).append(f"{name} of {arm}")
    lines += ["", *(f"Not measured: {', '.join(where)}: {reason}." for reason, where in reasons.items())] if reasons else []
    return "\n".join(lines) + "\n"


def _two(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def _about(study: dict[str, Any]) -> str:
    cite = f'<p class="note">{link(study["cite"])}</p>' if study.get("cite") else ""
    return (f"<p>{escape(study['about'])}</p>" if study.get("about") else "") + cite


def _claims(results: dict[str, Any]) -> str:
    if not results["claims"]:
        return ""
    rows = []
    for claim in results["claims"]:
        share = results["measures"][claim["measure"]]["share"]
        reason = f'<span class="note">{escape(claim["reason"])}</span>' if claim["reason"] else ""
        rows.append(
            f'<tr><th scope="row">{escape(claim["claim"])}<span class="note">{escape(expectation(claim, share))}</span></th>'
            f"<td>{MARKS[claim['verdict']]} <b>{claim['verdict']}</b>{reason}</td>"
            f"<td>{escape(interval(claim, share, 'difference') if 'difference' in claim else '—')}{_forest(claim)}</td>"
            f"<td>{_two(claim.get('effect'))}</td><td>{p_value(claim.get('p'))}</td><td>{p_value(claim.get('p_holm'))}</td></tr>"
        )
    names = ("verdict", "difference, 95 % interval", "effect size", "p", "p, Holm")
    heads = header("claim", sortable=False, first=True) + "".join(header(name, sortable=False) for name in names)
    return scroller(f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>", "Claims and verdicts")


def _forest(claim: dict[str, Any]) -> str:
    """An SVG of the interval on a line, with zero or the claimed difference marked."""
    low, high, value = (claim.get(k) for k in ("low", "high", "difference"))
    if low is None or high is None or value is None:
        return ""
    bounds = [-claim["by"], claim["by"]] if claim["expect"] == "same" else [claim["by"] * (-1 if claim["expect"] == "lower" else 1)]
    ends: list[float] = [low, high, 0.0, *bounds]
    left, right = min(ends), max(ends)
    width, scale = 160, (right - left) or 1.0

    def x(v: float) -> float:
        """The pixel of a difference, from the left."""
        return 8 + (width - 16) * (v - left) / scale

    body = [line(x(b), 2, x(b), 20, "ideal") for b in (0.0, *bounds)]
    body += [line(x(low), 11, x(high), 11, "range c0"), dot(x(value), 11, "point c0", 4)]
    return "<br>" + svg(width, 22, body, f"difference {value:.3g}, interval {low:.3g} to {high:.3g}")


def _measures(results: dict[str, Any]) -> str:
    arms = list(results["arms"])
    rows = []
    for name, measure in results["measures"].items():
        cells = []
        for arm in arms:
            entry = measure["arms"].get(arm, {})
            note = entry.get("reason") or ", ".join(number(v, measure["share"]) for v in entry.get("by_seed", [])[:9])
            cells.append(f'<td>{escape(interval(entry, measure["share"]))}<span class="note">{escape(note)}</span></td>')
        unit = ", %" if measure["share"] else ""
        rows.append(
            f'<tr><th scope="row">{escape(name)}{unit}<span class="note">{escape(measure["about"])}</span></th>'
            f"{''.join(cells)}</tr>"
        )
    heads = header("measure", sortable=False, first=True) + "".join(header(arm, sortable=False) for arm in arms)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return (
        scroller(table, "Measures by arm") + '<p class="note">Means over the seeds with 95 % intervals; below them, each seed.</p>'
    )


def _pretraining(spent: dict[str, Any]) -> str:
    """What the backbones cost, which arms may share; empty without any."""
    return f" (backbones: {spent['pretraining_flops'] / 1e12:.3g} TFLOP)" if "pretraining_flops" in spent else ""


def _arms(results: dict[str, Any]) -> str:
    rows = []
    for i, (name, arm) in enumerate(results["arms"].items()):
        changed = ", ".join(f"{k}={v}" for k, v in arm["set"].items())
        steps = "; ".join(f"{k} {v}" for k, v in arm["derive"].items())
        spent = arm["spent"]
        cost = (
            f"{counted(spent['samples'], 'sample')}, {spent['seconds']:,.0f} s, {spent['flops'] / 1e12:.3g} TFLOP{_pretraining(spent)}"
            if spent
            else "—",
        )
        cells = [arm["recipe"], changed, arm["data"] or "", steps, *cost, arm["about"]]
        rows.append(f'<tr><th scope="row">{key(i, name)}</th>{"".join(f"<td>{escape(c)}</td>" for c in cells)}</tr>')
    names = ("recipe", "changed", "data", "derived by", "spent, mean of a run", "")
    heads = header("arm", sortable=False, first=True) + "".join(header(n, sortable=False) for n in names)
    return scroller(f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>", "Arms")


def _environment(results: dict[str, Any]) -> str:
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in results["environment"].items())
    return f'<dl class="facts">{rows}</dl>'
