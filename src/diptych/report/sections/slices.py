"""A metric on parts of the items, each with its n and its interval."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diptych.benchmarks.statistics import Interval, mean_interval
from diptych.report.columns import is_share, number
from diptych.report.drawing.marks import COLOURS, dot, escape, figure, header, key, line, scroller, svg
from diptych.report.pages.cards import is_private
from diptych.report.sections.answers import Answers, TaskAnswers
from diptych.report.sections.warnings import FEW
from diptych.training.run_files import Record

NAMES = (
    "skill", "slice", "class", "label", "group", "attribute", "kind", "type", "category", "subtask", "split", "relation",
    "strategy", "question_type", "answer_type", "sampling", "harm", "subject", "topic", "level", "source", "language",
)  # fmt: skip
MOST = 40  # values of one field: more are names, not slices
SHOWN = 4  # fields


def slice_tables(gathered: TaskAnswers) -> str:
    """A table for each field of the records, HTML."""
    if is_private(gathered.task):
        return ""  # kinds of harm have their own table
    parts = [t for name in fields(gathered)[:SHOWN] if (t := _table(gathered, name))]
    if not parts:
        return ""
    caption = (
        "Per cent for shares, with the 95 % interval (bootstrap over clusters). n: items. "
        f"Parts of fewer than {FEW} items are grey: too few to compare. The intervals are not corrected for the number of parts: "
        "one part in twenty differs by chance."
    )
    return figure("".join(parts), caption, "wide")


def values_of(record: Record) -> Iterator[tuple[str, str]]:
    """(field, value) pairs that group a record."""
    for name in NAMES:
        if isinstance(record.get(name), (str, bool, int)):
            yield name, str(record[name])
    more: Any = record.get("slices")
    if isinstance(more, dict):
        yield from ((str(k), str(v)) for k, v in more.items() if isinstance(v, (str, bool, int)))


def fields(gathered: TaskAnswers) -> list[str]:
    """Fields with several values, except those with a separate metric for each value."""
    values_by_field: dict[str, set[str]] = {}
    for a in gathered.answers:
        for record in a.records:
            for name, value in values_of(record):
                values_by_field.setdefault(name, set()).add(value)
    return [name for name, values in values_by_field.items() if 2 <= len(values) <= MOST and _cuts(gathered, name)]


def _cuts(gathered: TaskAnswers, name: str) -> bool:
    return any(len(parts(a, metric, name)) > 1 for a in gathered.answers for metric in gathered.heads)


def parts(a: Answers, metric: str, name: str) -> dict[str, list[str]]:
    """{value of the field: items with this metric}."""
    items_by_value: dict[str, list[str]] = {}
    for record in a.records:
        value = dict(values_of(record)).get(name)
        if value is not None and (item := str(record["item"])) in a.credits.get(metric, {}):
            items_by_value.setdefault(value, []).append(item)
    return items_by_value


def interval_of(a: Answers, metric: str, items: list[str]) -> Interval:
    """The mean with its interval over items."""
    credits = a.credits[metric]
    return mean_interval([credits[i] for i in items], [a.cluster[i] for i in items], share=is_share(metric))


def _table(gathered: TaskAnswers, name: str) -> str:
    rows = []
    for metric in gathered.heads:
        by_answers = [(a, parts(a, metric, name)) for a in gathered.answers]
        values = sorted({v for _, by in by_answers for v in by})
        if len(values) < 2:
            continue
        for value in values:
            n = max(len(by.get(value, ())) for _, by in by_answers)
            cells = "".join(_cell(a, metric, by.get(value, [])) for a, by in by_answers)
            first = f"{escape(value)}" + (f'<span class="note">{escape(metric)}</span>' if len(gathered.heads) > 1 else "")
            rows.append(f'<tr><th scope="row">{first}</th><td class="num" data-v="{n}">{n:,}</td>{cells}</tr>')
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{key(a.index, a.recipe.label)}</th>' for a in gathered.answers)
    title = name.replace("_", " ").capitalize()
    table = (
        f'<table class="sortable"><thead><tr>{header(title, first=True)}{header("n")}{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return f"<h3>By {escape(title.lower())}</h3>{scroller(table, f'Results by {title}, scrolls sideways')}"


def _cell(a: Answers, metric: str, items: list[str]) -> str:
    if not items:
        return '<td class="none">—</td>'
    share = is_share(metric)
    v = interval_of(a, metric, items)
    grey = " few" if len({a.cluster[i] for i in items}) < FEW else ""
    strip = _strip(v, a.index) if share else ""
    around = f"{number(v.low, share)}–{number(v.high, share)}"
    return (
        f'<td class="num{grey}" data-v="{v.value:.6g}"><span class="value">{number(v.value, share)}</span>'
        f'<span class="ci">{around}</span>{strip}</td>'
    )


def _strip(v: Interval, index: int) -> str:
    width, y, colour = 64, 5, f"c{index % COLOURS}"

    def x(value: float) -> float:
        """The pixel of a share, from the left."""
        return 3 + (width - 6) * min(max(value, 0), 1)

    body = [line(3, y, width - 3, y, "base"), line(x(v.low), y, x(v.high), y, f"range {colour}")]
    return svg(width, 10, [*body, dot(x(v.value), y, f"point {colour}", 2.2)], "", "strip").replace(
        'role="img" aria-label=""', 'aria-hidden="true"'
    )
