"""The main table on a terminal: recipes are columns, measures are rows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from diptych.report.columns import columns, is_share, number
from diptych.report.pages.table import AT_CHANCE, TIED, marks_of, text_cell
from diptych.report.read import Comparison
from diptych.report.words import plain_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diptych.benchmarks.records import Result
    from diptych.benchmarks.run import Summary

WIDE = 160  # characters of a line in a file or a pipe, where no terminal sets the width
ALWAYS = ("blind", "shuffled")  # controls with a column in every table; the others where a result has them
CONTROLS = (*ALWAYS, "constant", "shortest", "longest")


def print_comparison(comparison: Comparison) -> None:
    """Prints the main table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(comparison.title), caption=f"{TIED} tied with the best   {AT_CHANCE}: interval includes chance")
    table.add_column("%")
    for recipe in comparison.recipes:
        table.add_column(escape(recipe.label), justify="right")
    for column in columns(comparison):
        marks = marks_of(comparison, column)
        cells = []
        for recipe in comparison.recipes:
            cell = escape(text_cell(column, recipe, marks, bold=""))
            cells.append(f"[bold]{cell}[/bold]" if marks.get(recipe.name) == "best" else cell)
        table.add_row(escape(column.name), *cells)
    console = Console()
    console.print(table)
    console.print(plain_words(comparison).replace("**", ""), markup=False, highlight=False)


def print_summary(summary: Summary) -> None:
    """Prints every result of one model with its interval, chance and controls, and below them what could not be read, ties and
    scores that are not numbers.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    controls = [c for c in CONTROLS if c in ALWAYS or any(r.controls.get(c) is not None for r in summary.results)]
    caption = f"shares in per cent   {AT_CHANCE}: interval includes chance"
    table = Table(title=escape(f"{summary.model} on {summary.data}"), caption=caption, box=None, header_style="bold")
    table.add_column("", min_width=2 + max((len(r.metric) for r in summary.results), default=0))
    for name in ("", "value", "95 %", "chance", *controls, "n"):
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for r in summary.results:
        share = is_share(r.metric)
        around = f"{number(r.low, share)}–{number(r.high, share)}" if r.low is not None and r.high is not None else "—"
        near = r.chance is not None and r.low is not None and r.high is not None and r.low <= r.chance <= r.high
        cells = [number(r.controls.get(c), share) if c in ALWAYS or c in r.controls else "" for c in controls]
        if r.task != last:
            table.add_row(f"[bold]{escape(r.task)}[/bold]")
            last = r.task
        mark = AT_CHANCE[0] if near else ""
        table.add_row(f"  {escape(r.metric)}", mark, number(r.value, share), around, number(r.chance, share), *cells, str(r.n))
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(table)
    for task in dict.fromkeys(r.task for r in summary.results):
        for line in _doubts([r for r in summary.results if r.task == task]):
            console.print(f"{task}: {line}", markup=False, highlight=False)
    for note in summary.notes:
        console.print(f"{note['task']}: {note['note']}", markup=False, highlight=False)
    for skipped in summary.skipped:
        console.print(f"{skipped['task']}: skipped, {skipped['reason']}", markup=False, highlight=False)


def _doubts(results: Sequence[Result]) -> list[str]:
    """Lines about a task: unread answers with the range that they leave open, ties, scores that are not numbers."""
    lines = []
    unread = max(results, key=lambda r: r.unparsed)
    if unread.unparsed:
        ranges = [
            f"{r.metric} {number(r.band[0], is_share(r.metric))}–{number(r.band[1], is_share(r.metric))}" for r in results if r.band
        ]
        between = f"; from all of them wrong to all of them right: {', '.join(ranges)}" if ranges else ""
        lines.append(f"{unread.unparsed:,} of {unread.n:,} answers could not be read{between}")
    for count, what in (
        (max(r.ties for r in results), "items with a tie, which is shared"),
        (max(r.nans for r in results), "scores that are not numbers, which count as the lowest"),
    ):
        if count:
            lines.append(f"{count:,} {what}")
    return lines
