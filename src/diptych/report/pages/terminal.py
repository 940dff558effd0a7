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
    """Prints the main table. Recipes that do not fit next to each other are printed in further tables below, so that no number is
    cut off.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = columns(comparison)
    marks = [marks_of(comparison, column) for column in shown]
    cells = [[text_cell(c, r, m, bold="") for c, m in zip(shown, marks, strict=True)] for r in comparison.recipes]
    console = Console()
    first = max([cell_len(column.name) for column in shown], default=0) + 4
    widths = [max(map(cell_len, [r.label, *own])) + 3 for r, own in zip(comparison.recipes, cells, strict=True)]
    blocks: list[list[int]] = []
    for i, width in enumerate(widths):
        if blocks and first + sum(widths[k] for k in blocks[-1]) + width <= console.width:
            blocks[-1].append(i)
        else:
            blocks.append([i])
    caption = f"{TIED} tied with the best   {AT_CHANCE}: interval includes chance"
    for n, block in enumerate(blocks, 1):
        table = Table(
            title=escape(comparison.title) if n == 1 else None,
            caption=caption if n == len(blocks) else None,
        )
        table.add_column("%", overflow="fold")
        for i in block:
            table.add_column(escape(comparison.recipes[i].label), justify="right", no_wrap=True)
        for row, column in enumerate(shown):
            texts = [escape(cells[i][row]) for i in block]
            best = [marks[row].get(comparison.recipes[i].name) == "best" for i in block]
            table.add_row(escape(column.name), *(f"[bold]{t}[/bold]" if b else t for t, b in zip(texts, best, strict=True)))
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
    for skipped in summary.skipped:
        console.print(f"{skipped['task']}: skipped, {skipped['reason']}", markup=False, highlight=False)
