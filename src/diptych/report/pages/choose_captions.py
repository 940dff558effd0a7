"""The report of ``diptych choose`` for pictures with captions, and what it shares with that for classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.core.errors import counted
from diptych.core.files import write_text
from diptych.report.drawing.document import Page, Section, document
from diptych.report.drawing.marks import dot, escape, header, line, scroller, svg

_READING = """<p>Every picture is tested once: in each of five folds, what was learned from the other pictures is tested on the
pictures of the fold, and a caption is looked for among these, of which training saw none. Settings are chosen by another
cross-validation within the training pictures, whose score (<b>inner</b>, the mean of R@1 and R@5) also names the winner. <b>Lead of
the best</b> is the winner's first number minus this row's on the same captions, with p after Holm's correction over the rows;
captions of one picture go together in it. A larger collection is harder: compare numbers only for equally many pictures.</p>"""


def build_captions_report(folder: Path, results: Mapping[str, Any]) -> Path:
    """Writes ``table.md`` and ``report.html`` from the content of ``results.json``; returns the report's path."""
    write_text(folder / "table.md", markdown(results))
    data = results["data"]
    sections = [
        Section("answer", "Which one to take", answer(results)),
        Section("table", "Models and ways", _table(results)),
        Section("data", "The pictures", _data(data)),
        Section("not-tried", "Not tried", not_tried(results)),
        Section("reading", "How to read this page", _READING),
        Section("again", "Made with", again(results)),
    ]
    facts = [
        ("Data", data["address"]),
        ("Pictures", f"{data['pictures']:,}"),
        ("Captions", f"{data['captions']:,}"),
        ("Seeds", str(results["request"]["seeds"])),
        ("Date", results["environment"]["date"][:10]),
    ]
    write_text(folder / "report.html", document("Which model, which way", facts, [Page("choose", "Choose", sections)]))
    return folder / "report.html"


def caption_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table as plain data: model, way, and each column as text."""
    rows = []
    for row in results["verdict"]["rows"]:
        against = row["against"]
        values = {name: f"{percent(m['mean'])} [{percent(m['low'])}, {percent(m['high'])}]" for name, m in row["metrics"].items()}
        lead = "best" if against is None else f"{100 * against['difference']:+.1f}, p {short_p(against['p_holm'])}"
        first = next(iter(row["metrics"].values()))
        settings = {", ".join(f"{k}={v}" for k, v in s.items()) for s in row["settings"]}
        rows.append(
            {
                "model": row["model"],
                "way": row["way"],
                **values,
                "inner": percent(row["inner"]),
                "lead of the best": lead,
                "seconds": f"{row['seconds']:.1f}",
                "settings": "; ".join(sorted(settings)),
                **first,
            }
        )
    return rows


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """The names of the columns that are texts."""
    return [k for k in rows[0] if k not in ("model", "way", "mean", "low", "high", "settings")] if rows else []


def markdown(results: Mapping[str, Any]) -> str:
    """The recommendation and the table, Markdown."""
    rows = caption_rows(results)
    names = columns_of(rows)
    low, high = results["verdict"].get("among", (0, 0))
    lines = ["## Which model, which way", "", *results["sentences"], ""]
    lines += [f"Per cent, each caption among {low} to {high} pictures.", ""]
    lines += markdown_table(rows, names)
    lines += ["", *(f"- {note}" for note in results["data"]["notes"])]
    lines += [f"- not tried: {entry.get('way', '')} {entry['model']}: {entry['why']}" for entry in results["not_tried"]]
    return "\n".join(lines) + "\n"


def _table(results: Mapping[str, Any]) -> str:
    rows = caption_rows(results)
    names = columns_of(rows)
    return table_of(rows, names, names[0]) if rows else ""


def _data(data: Mapping[str, Any]) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in data["notes"])
    return (f"<ul>{notes}</ul>" if notes else "") + problems_of(data["problems"])


# --- shared with the report for classes ---


def table_of(rows: Sequence[Mapping[str, Any]], names: Sequence[str], drawn: str) -> str:
    """The table of models and ways, HTML. names: of the columns; drawn: the one of which the interval is drawn."""
    low, high = min(r["low"] or 0 for r in rows), max(r["high"] or 1 for r in rows)
    body = "".join(
        f'<tr><th scope="row">{escape(r["way"])}<span class="note">{escape(r["model"])}</span></th>'
        + "".join(f"<td>{escape(r[c])}{forest(r, low, high) if c == drawn else ''}</td>" for c in names)
        + f"<td>{escape(r['settings'])}</td></tr>"
        for r in rows
    )
    heads = header("way", first=True) + "".join(header(c) for c in (*names, "settings"))
    return scroller(f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>", "Models and ways")


def markdown_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """The same, lines of Markdown."""
    lines = ["| model | way | " + " | ".join(names) + " | settings |", "|---|---|" + "---:|" * len(names) + "---|"]
    return lines + ["| " + " | ".join([r["model"], r["way"], *(r[c] for c in names), r["settings"]]) + " |" for r in rows]


def problems_of(problems: list[dict[str, str]]) -> str:
    """What could not be used, and why, HTML."""
    if not problems:
        return ""
    listed = "".join(f"<li>{escape(p['item'])}: {escape(p['reason'])}</li>" for p in problems[:50])
    more = f"<li>and {len(problems) - 50} more</li>" if len(problems) > 50 else ""
    return f"<p>{counted(len(problems), 'item')} could not be used:</p><ul>{listed}{more}</ul>"


def answer(results: Mapping[str, Any]) -> str:
    """The verdict and the command that makes the recommended model, HTML."""
    command = results.get("command")
    ship = f"<pre><code>{escape(command)}</code></pre>" if command else ""
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in results["sentences"]) + ship


def not_tried(results: Mapping[str, Any]) -> str:
    """What was not tried, and why, HTML."""
    skipped = {(c["model"], c["way"], c["skipped"]) for c in results["cells"] if "skipped" in c}
    entries = [f"{w} on {m}: {why}" for m, w, why in sorted(skipped)]
    entries += [f"{e.get('way', '')} {e['model']}: {e['why']}".strip() for e in results["not_tried"]]
    return f"<ul>{''.join(f'<li>{escape(e)}</li>' for e in entries)}</ul>" if entries else ""


def again(results: Mapping[str, Any]) -> str:
    """Where and with which packages it was made, HTML."""
    made = results["environment"]
    packages = ", ".join(f"{k} {v}" for k, v in made["packages"].items())
    return f"<p class='note'>{escape(made['platform'])}, Python {escape(made['python'])}, {escape(packages)}</p>"


def forest(row: Mapping[str, Any], low: float, high: float) -> str:
    """The interval of a row on the scale of all rows, SVG."""
    if row["low"] is None or math.isnan(row["low"]) or high <= low:
        return ""
    at = {k: 6 + 108 * (row[k] - low) / (high - low) for k in ("low", "mean", "high")}
    marks = [line(at["low"], 8, at["high"], 8, "range c0"), dot(at["mean"], 8, "point c0", 3.5)]
    return svg(120, 16, marks, f"{percent(row['mean'])} per cent", "forest")


def percent(value: float | None, digits: int = 1) -> str:
    """A share in per cent, without the sign; a dash for none."""
    return "—" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}"


def short_p(value: float) -> str:
    """A p-value as text: ``.012``, ``< .001``."""
    return "< .001" if value < 0.001 else f"{value:.3f}".replace("0.", ".", 1)
