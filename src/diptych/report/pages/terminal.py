"""The main table on a terminal: recipes are columns, measures are rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.report.columns import columns, is_share, number
from diptych.report.pages.table import AT_CHANCE, TIED, marks_of, text_cell
from diptych.report.read import Comparison
from diptych.report.words import plain_words

if TYPE_CHECKING:
    from diptych.benchmarks.run import Summary


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
    """Prints every result of one model with its interval, chance and controls."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    caption = f"shares in per cent   {AT_CHANCE}: interval includes chance"
    table = Table(title=escape(f"{summary.model} on {summary.data}"), caption=caption, box=None, header_style="bold")
    table.add_column("")
    for name in ("", "value", "95 %", "chance", "blind", "shuffled", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for r in summary.results:
        share = is_share(r.metric)
        around = f"{number(r.low, share)}–{number(r.high, share)}" if r.low is not None and r.high is not None else "—"
        near = r.chance is not None and r.low is not None and r.high is not None and r.low <= r.chance <= r.high
        controls = [number(r.controls.get(c), share) for c in ("blind", "shuffled")]
        if r.task != last:
            table.add_row(f"[bold]{escape(r.task)}[/bold]")
            last = r.task
        mark = AT_CHANCE[0] if near else ""
        table.add_row(f"  {escape(r.metric)}", mark, number(r.value, share), around, number(r.chance, share), *controls, str(r.n))
    console = Console()
    console.print(table)
    for note in summary.notes:
        console.print(f"{note['task']}: {note['note']}", markup=False, highlight=False)
    for skipped in summary.skipped:
        console.print(f"{skipped['task']}: skipped, {skipped['reason']}", markup=False, highlight=False)
