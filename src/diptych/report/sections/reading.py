"""Accuracy against the height of print, of the task ``read``."""

from __future__ import annotations

from diptych.benchmarks.reading.read import curve
from diptych.report.columns import number
from diptych.report.drawing.charts import Series, chart
from diptych.report.drawing.marks import escape, figure
from diptych.report.sections.answers import TaskAnswers


def print_sizes(g: TaskAnswers) -> str:
    """One chart with a curve for each model and a table of its points, HTML; empty without records that have heights."""
    series, rows, told = [], [], []
    for a in g.answers:
        if not a.records or any("height" not in r or "anls" not in r.get("correct", {}) for r in a.records):
            continue
        points = curve(a.records)
        low, high = ([p.low if end else p.high for p in points] for end in (1, 0))
        known = None not in low and None not in high
        series.append(
            Series(
                a.recipe.label,
                [p.height for p in points],
                [p.accuracy for p in points],
                a.index,
                "both",
                [v or 0.0 for v in low] if known else None,
                [v or 0.0 for v in high] if known else None,
            )
        )
        first, last = points[0], points[-1]
        told.append(f"{a.recipe.label}: {number(first.accuracy)} at {first.height} px, {number(last.accuracy)} at {last.height} px")
        rows += [
            f"<tr><th>{escape(a.recipe.label)}</th><td>{p.height}</td><td>{p.n}</td><td>{number(p.accuracy)}</td>"
            f"<td>{number(p.anls)}</td></tr>"
            for p in points
        ]
    if not series:
        return ""
    drawn = chart(
        series, "height of print, pixels", "read, %", label="; ".join(told), y_range=(0, 1), percent=(False, True)
    )  # fmt: skip
    table = (
        "<details><summary>The points</summary><table><thead><tr><th>model</th><th>pixels</th><th>n</th><th>read, %</th>"
        f"<th>ANLS, %</th></tr></thead><tbody>{''.join(rows)}</tbody></table></details>"
    )
    caption = (
        "The share of texts that are read without a mistake, by the height of their capitals in pixels of the picture, with 95 % "
        "intervals. A model that reads smaller pictures than these sees smaller print."
    )
    return figure(drawn + table, caption)
