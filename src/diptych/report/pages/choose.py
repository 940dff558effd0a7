"""The report of ``diptych choose``: the recommendation, the table of models and ways, learning curves, new classes, the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.crossed import Measured, estimate
from diptych.core.errors import counted
from diptych.core.files import write_text
from diptych.report.drawing.charts import Series, chart
from diptych.report.drawing.document import Page, Section, document
from diptych.report.drawing.marks import COLOURS, dot, escape, figure, header, scroller
from diptych.report.drawing.plots import legend
from diptych.report.pages.choose_captions import (
    again,
    answer,
    build_captions_report,
    markdown_table,
    not_tried,
    percent,
    problems_of,
    short_p,
    table_of,
)

_READING = """<p><b>Cross-validation</b> is the balanced accuracy on training pictures that were left out; it chose every
setting, and it names the winner. <b>Test</b> is the accuracy on the test part, which was opened once, after all settings
were chosen; its interval covers other pictures and, from three seeds on, other draws of the training pictures. <b>Lead of
the best</b> is the winner's accuracy minus this row's on the same pictures, with p after Holm's correction over the rows.
<b>If chosen on the test</b> is by how much the number would be higher if the settings were chosen on the test part: that is
what is gained by looking. <b>Calibration error</b>: how far probabilities are from the share that is right. <b>New
classes</b>: half of the classes are learned, the others are known by name only; accuracies among the learned and among the
new classes alone look better than in one list of all classes, which is what a user has.</p>"""

_OF_LABELS = """<p>A picture may have any number of labels. <b>Cross-validation</b> and <b>Test</b> are mean average
precision: for each label, pictures are put in the order of their scores, and the share with the label among the first
ones is averaged; labels that all or none of the pictures have do not count. <b>F1</b> is of the labels that were given:
macro is the mean over labels, micro counts all decisions alike. Probabilities and thresholds were chosen on training
pictures that were left out; settings and the winner by cross-validation there too; the test part was opened once.
Intervals and tests use, for each picture, by how much it moves the measure (infinitesimal jackknife). <b>Lead of the
best</b> is the winner's test value minus this row's, with p after Holm's correction. <b>If chosen on the test</b> is what
is gained by looking.</p>"""


def build_choose_report(folder: Path, results: Mapping[str, Any]) -> Path:
    """Writes ``table.md`` and ``report.html`` from the content of ``results.json``; returns the report's path."""
    if results.get("kind") == "captions":
        return build_captions_report(folder, results)
    write_text(folder / "table.md", markdown(results))
    sections = [
        Section("answer", "Which one to take", answer(results)),
        Section("table", "Models and ways", _table(results)),
        Section("curves", "More pictures", _curves(results)),
        Section("open", "New classes", _open(results)),
        Section("data", "The pictures", _data(results)),
        Section("labels", "Labels to check", _doubtful(results)),
        Section("not-tried", "Not tried", not_tried(results)),
        Section("reading", "How to read this page", _OF_LABELS if results["data"].get("kind") == "labels" else _READING),
        Section("again", "Do it again", again(results)),
    ]
    data = results["data"]
    facts = [
        ("Data", data["address"]),
        ("Training pictures", f"{data['train']:,}"),
        ("Test pictures", f"{data['test']:,}"),
        ("Labels" if data.get("kind") == "labels" else "Classes", str(len(data["classes"]))),
        ("Seeds", str(results["request"]["seeds"])),
        ("Date", results["environment"]["date"][:10]),
    ]
    page = document("Which model, which way", facts, [Page("choose", "Choose", sections)])
    write_text(folder / "report.html", page)
    return folder / "report.html"


def rows_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table as plain data, best by cross-validation first: model, way, and each column as text."""
    cells = [c for c in results["cells"] if c.get("test") and c["shots"] == results["verdict"].get("shots")]
    rows = []
    for row in results["verdict"]["rows"]:
        own = [c for c in cells if (c["model"], c["way"]) == (row["model"], row["way"])]
        interval = "" if row["low"] is None or math.isnan(row["low"]) else f" [{percent(row['low'])}, {percent(row['high'])}]"
        against = row["against"]
        lead = "best" if against is None else f"{100 * against['difference']:+.1f}, p {short_p(against['p_holm'])}"
        rows.append(
            {
                "model": row["model"],
                "way": row["way"],
                "cross-validation": percent(row["cross_validation"]),
                "test": percent(row["mean"]) + interval,
                **_further(own),
                "lead of the best": lead,
                "calibration error": percent(_mean(c["test"]["ece"] for c in own)),
                "if chosen on the test": _plus(_mean(c["test"].get("inflation") for c in own)),
                "seconds": f"{_mean(c['seconds'] + c['test']['learning_seconds'] for c in own) or 0:.1f}",
                "settings": ", ".join(f"{k}={v}" for k, v in own[0]["settings"].items()) if own else "",
                "low": row["low"],
                "high": row["high"],
                "mean": row["mean"],
            }
        )
    return rows


def columns_of(results: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the columns that are texts."""
    further = ("F1 macro", "F1 micro") if results["data"].get("kind") == "labels" else ("balanced",)
    return ("cross-validation", "test", *further, "lead of the best", "calibration error", "if chosen on the test", "seconds")


def _further(own: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Balanced accuracy, or of several labels both F1 with their intervals, by the columns' names."""
    if not own or "values" not in own[0]["test"]:
        return {"balanced": percent(_mean(c["test"]["balanced"] for c in own))}
    return {name: _with_interval([c["test"]["credits"][name] for c in own]) for name in ("F1 macro", "F1 micro")}


def _with_interval(credits: Sequence[Sequence[float]]) -> str:
    """A measure and its interval over pictures and seeds, from the numbers of the pictures of each seed."""
    e = estimate([Measured(float(np.mean(run)), {str(i): c for i, c in enumerate(run)}, range=(0.0, 1.0)) for run in credits])
    return percent(e.value) + ("" if math.isnan(e.low) else f" [{percent(e.low)}, {percent(e.high)}]")


def markdown(results: Mapping[str, Any]) -> str:
    """The recommendation and the table, Markdown."""
    rows, columns = rows_of(results), columns_of(results)
    unit = "Mean average precision and F1 in per cent." if results["data"].get("kind") == "labels" else "Accuracies in per cent."
    lines = ["## Which model, which way", "", *results["sentences"], "", unit, ""]
    lines += markdown_table(rows, columns)
    lines += ["", *(f"- {note}" for note in results["data"]["notes"])]
    lines += [f"- not tried: {entry.get('way', '')} {entry['model']}: {entry['why']}" for entry in results["not_tried"]]
    return "\n".join(lines) + "\n"


def _table(results: Mapping[str, Any]) -> str:
    rows = rows_of(results)
    return table_of(rows, columns_of(results), "test") if rows else ""


def _curves(results: Mapping[str, Any]) -> str:
    """Accuracy over shots for the five best ways."""
    tested = [c for c in results["cells"] if c.get("test")]
    counts = sorted({c["shots"] for c in tested} - {0})
    if len(counts) < 2:
        return ""
    shown = [(r["model"], r["way"]) for r in results["verdict"]["rows"] if r["way"] != "majority"][:6]
    series, entries = [], []
    for i, (model, way) in enumerate(shown):
        values = [
            _mean(c["test"]["accuracy"] for c in tested if (c["model"], c["way"], c["shots"]) == (model, way, k)) for k in counts
        ]
        points = [(k, v) for k, v in zip(counts, values, strict=True) if v is not None]
        series.append(Series(f"{way} on {model}", [k for k, _ in points], [v for _, v in points], i, "both"))
        entries.append(([dot(13, 8, f"point c{i % COLOURS}")], f"{way} on {model}"))
    labels = results["data"].get("kind") == "labels"
    of, measure = ("label", "mean average precision") if labels else ("class", "accuracy")
    words = f"Test {measure} over training pictures of each {of}"
    drawn = chart(series, f"pictures of each {of}", f"{measure}, %", label=words, log_x=True, percent=(False, True))
    return figure(drawn + legend(*entries), f"{words}, mean over seeds.")


def _open(results: Mapping[str, Any]) -> str:
    most = results["verdict"].get("shots")
    rows = []
    for row in results["verdict"]["rows"]:
        own = [
            c["test"] for c in results["cells"]
            if c.get("test") and (c["model"], c["way"], c["shots"]) == (row["model"], row["way"], most) and "joint" in c["test"]
        ]  # fmt: skip
        if own:
            values = [percent(_mean(t[k] for t in own)) for k in ("base", "new", "base_joint", "new_joint", "joint")]
            name = f'<th scope="row">{escape(row["way"])}<span class="note">{escape(row["model"])}</span></th>'
            rows.append(f"<tr>{name}{''.join(f'<td>{v}</td>' for v in values)}</tr>")
    if not rows:
        return ""
    names = ("learned, alone", "new, alone", "learned, among all", "new, among all", "all, among all")
    heads = header("way", first=True) + "".join(header(n) for n in names)
    lead = "<p>Learned on half of the classes; the others are known by their names only. Per cent.</p>"
    return lead + scroller(f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>", "New classes")


def _data(results: Mapping[str, Any]) -> str:
    data = results["data"]
    notes = "".join(f"<li>{escape(note)}</li>" for note in data["notes"])
    opened = results["opened"]
    times = f"The test part was opened {counted(len(opened), 'time')}" + (
        ": " + ", ".join(o["time"] for o in opened) if opened else ""
    )
    more = " More than once: if ways were added after the first results were seen, the later numbers are not untouched." * (
        len(opened) > 1
    )
    counts = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{n}</td><td>{m}</td></tr>' for name, (n, m) in data["classes"].items()
    )
    of = "label" if data.get("kind") == "labels" else "class"
    heads = header(of, first=True) + header("training") + header("test")
    table = scroller(f"<table><thead><tr>{heads}</tr></thead><tbody>{counts}</tbody></table>", f"Pictures of each {of}")
    left = problems_of(data["problems"])
    return f"<p>{escape(times)}.{more}</p><ul>{notes}</ul>{left}{table}"


def _doubtful(results: Mapping[str, Any]) -> str:
    rows = results.get("doubtful", [])
    if not rows:
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(r["picture"])}</th><td>{escape(r["label"])}</td><td>{escape(r["likelier"])}</td>'
        f"<td>{percent(r['confidence'])}</td></tr>"
        for r in rows[:100]
    )
    heads = header("picture", first=True) + header("label") + header("likelier") + header("probability of the label, %")
    lead = "<p>Training pictures with a label that is probably wrong: the best way, out of fold, is surer of another class.</p>"
    return lead + scroller(f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>", "Labels to check")


def _mean(values: Any) -> float | None:
    known: Sequence[float] = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _plus(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:+.1f}"
