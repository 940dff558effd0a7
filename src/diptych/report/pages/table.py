"""The main table as HTML, Markdown and data, and the table of what was spent."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import Any

from diptych.report.columns import Column, amount, columns, interval, number, seconds, seeds, standing
from diptych.report.drawing.marks import dot, escape, figure, header, key, line, scroller
from diptych.report.read import Comparison, Measure, Recipe, parse_budget
from diptych.report.words import plain_words

AT_CHANCE = "≈ chance"
TIED = "="
SPENT = (
    ("seconds", "Training time", seconds),
    ("samples", "Samples", amount),
    ("samples_per_second", "Samples/s", amount),
    ("flops", "FLOPs", amount),
    ("pretraining_flops", "Pretraining FLOPs", amount),
    ("parameters", "Parameters", amount),
    ("trainable_parameters", "Trainable", amount),
    ("peak_memory_bytes", "Peak memory", lambda v: f"{amount(v)}B" if v is not None else "—"),
)


def main_table(comparison: Comparison) -> str:
    """The main table, HTML."""
    shown = columns(comparison)
    if not shown:
        return ""
    groups = [(name, list(members)) for name, members in groupby(shown, key=lambda c: c.group)]
    spans = "".join(f'<th scope="colgroup" colspan="{len(members)}">{escape(name)}</th>' for name, members in groups)
    starts = {members[0].key for _, members in groups}
    heads = "".join(header(c.label, _head_note(c)) for c in shown)
    marks = {c.key: marks_of(comparison, c) for c in shown}
    tops = {c.key: _top(comparison, c) for c in shown}
    rows = []
    for index, recipe in enumerate(comparison.recipes):
        cells = "".join(
            _cell(c, recipe.measures.get(c.key), marks[c.key].get(recipe.name, ""), tops[c.key], c.key in starts) for c in shown
        )
        rows.append(f'<tr><th scope="row">{key(index, recipe.label, recipe.paradigm)}</th>{cells}</tr>')
    table = (
        f'<table class="sortable main"><thead><tr><td class="first"></td>{spans}</tr>'
        f"<tr>{header('Recipe', first=True)}{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    many = " Small figures below: each seed’s own value." if any(len(r.runs) > 1 for r in comparison.recipes) else ""
    caption = (
        "Per cent (CIDEr: points) with the 95 % interval below and as a bar from 0 to 100, on which the upright tick is chance. "
        f"<b>Bold</b>: the column’s best. <b>{TIED}</b>: not significantly different from the best (paired test, Holm; where none "
        "is stored, overlapping intervals). "
        f"<b>{AT_CHANCE}</b>: the interval includes chance. —: not measured.{many} Press a heading to sort."
    )
    return figure(scroller(table, "Results of each recipe, scrolls sideways"), caption, "wide")


def _head_note(column: Column) -> str:
    return f"chance {number(column.chance)}" if column.chance is not None and column.share else ""


def marks_of(comparison: Comparison, column: Column) -> dict[str, str]:
    """``best`` for the best recipe, ``=`` for those that do not differ significantly from it."""
    s = standing(comparison, column.key)
    if len(s.ranked) < 2:
        return {}
    best = s.tied[0].measures[column.key].value
    marks = {r.name: TIED for r in s.tied}
    return marks | {r.name: "best" for r in s.ranked if r.measures[column.key].value == best}


def _top(comparison: Comparison, column: Column) -> float:
    if column.share:
        return 1.0
    return max(max(r.measures[column.key].high for r in comparison.recipes if column.key in r.measures), 1e-9)


def _cell(column: Column, measure: Measure | None, mark: str, top: float, start: bool) -> str:
    edge = " start" if start else ""
    if measure is None:
        return f'<td class="none{edge}" data-v=""><span aria-hidden="true">—</span><span class="hear">not measured</span></td>'
    value = number(measure.value, column.share)
    shown = f"<b>{value}</b>" if mark == "best" else value
    tied = f'<span class="tied"><span aria-hidden="true">{TIED}</span><span class="hear">tied with the best</span></span>'
    near = f'<span class="near">{AT_CHANCE}</span>' if measure.at_chance else ""
    spread = f'<span class="seeds">{seeds(measure, column.share)}</span>' if len(measure.seeds) > 1 else ""
    best = " best" if mark == "best" else ""
    return (
        f'<td class="num{best}{edge}" data-v="{measure.value:.6g}"><span class="value">{shown}{tied if mark == TIED else ""}</span>'
        f'<span class="ci">{interval(measure, column.share)}</span>{_strip(measure, top)}{near}{spread}</td>'
    )


def _strip(m: Measure, top: float) -> str:
    """An SVG of value and interval on a line from 0 to 100 %."""
    width, y = 64, 5

    def x(value: float) -> float:
        """The pixel of a value, from the left; values above the top are drawn at the edge."""
        return 3 + (width - 6) * min(max(value / top, 0), 1)

    chance = [line(x(m.chance), 1, x(m.chance), 9, "chance")] if m.chance is not None else []
    body = [line(3, y, width - 3, y, "base"), *chance, line(x(m.low), y, x(m.high), y, "range"), dot(x(m.value), y, "point", 2.2)]
    return f'<svg class="strip" viewBox="0 0 {width} 10" width="{width}" height="10" aria-hidden="true">{"".join(body)}</svg>'


def spent_table(comparison: Comparison) -> str:
    """What each recipe spent, HTML."""
    shown = [s for s in SPENT if any(s[0] in r.spent for r in comparison.recipes)]
    if not shown:
        return ""
    rows = []
    for index, recipe in enumerate(comparison.recipes):
        cells = "".join(
            f'<td class="num" data-v="{recipe.spent.get(name, "")}">{escape(write(recipe.spent.get(name)))}</td>'
            for name, _, write in shown
        )
        state = {True: "yes", False: "no", None: "—"}[recipe.spent.get("finished")]
        last = f'<td>{state}</td><td class="num">{len(recipe.runs)}</td>'
        rows.append(f'<tr><th scope="row">{key(index, recipe.label)}</th>{cells}{last}</tr>')
    heads = "".join(header(label) for _, label, _ in shown)
    table = (
        f'<table class="sortable"><thead><tr>{header("Recipe", first=True)}{heads}{header("Finished", sortable=False)}'
        f"{header('Runs', sortable=False)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    limit = parse_budget(comparison.budget)
    longest = max(r.spent.get("seconds", 0) for r in comparison.recipes)
    caption = (
        "Means over runs. Time: training only, without evaluation and set-up; FLOPs: forward and backward, as torch counts them."
    )
    if limit and limit.seconds and longest > 1.3 * limit.seconds:
        caption += (
            " Runs were in parallel: a second of budget is one of the whole machine, so each run had more seconds of its own."
        )
    return figure(scroller(table, "What each recipe spent, scrolls sideways"), caption, "wide")


def markdown(comparison: Comparison) -> str:
    """The main table, Markdown."""
    shown = columns(comparison)
    heads = ["Recipe", *(c.name + (f" (chance {number(c.chance)})" if _head_note(c) else "") for c in shown)]
    lines = [f"# {comparison.title}", "", plain_words(comparison), ""]
    lines += [_row(heads), _row(["---", *("---:" for _ in shown)])]
    marks = {c.key: marks_of(comparison, c) for c in shown}
    for recipe in comparison.recipes:
        lines.append(_row([recipe.label, *(text_cell(c, recipe, marks[c.key]) for c in shown)]))
    note = f"Per cent [95 % interval]; **bold**: best; {TIED}: not significantly behind it; {AT_CHANCE}: interval includes chance."
    return "\n".join([*lines, "", note, ""])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def text_cell(column: Column, recipe: Recipe, marks: dict[str, str], bold: str = "**") -> str:
    """A value with interval and mark, text."""
    measure = recipe.measures.get(column.key)
    if measure is None:
        return "—"
    mark = marks.get(recipe.name, "")
    value = number(measure.value, column.share)
    value = f"{bold}{value}{bold}" if mark == "best" else value + (f" {TIED}" if mark == TIED else "")
    return f"{value} [{interval(measure, column.share)}]" + (f" {AT_CHANCE}" if measure.at_chance else "")


def data(comparison: Comparison) -> dict[str, Any]:
    """The content of ``results.json``."""

    def measure(m: Measure) -> dict[str, Any]:
        """A measure as plain data, with what is computed of it."""
        return asdict(m) | {"at_chance": m.at_chance, "seeds": {str(k): v for k, v in m.seeds.items()}}

    return {
        "title": comparison.title,
        "created": comparison.created,
        "data": comparison.data,
        "data_fingerprint": comparison.data_fingerprint,
        "budget": comparison.budget,
        "seeds": comparison.seeds,
        "words": plain_words(comparison).replace("**", ""),
        "columns": [{"task": c.key[0], "metric": c.key[1], "name": c.name, "chance": c.chance} for c in columns(comparison)],
        "recipes": [
            {"name": r.name, "label": r.label, "paradigm": r.paradigm, "error": r.error, "spent": r.spent,
             "results": [measure(m) for m in r.measures.values()]}
            for r in comparison.recipes
        ],
        "tests": [asdict(t) for t in comparison.tests],
        "notes": comparison.notes,
    }  # fmt: skip
