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
CONTROLS = (*ALWAYS, "constant", "shortest", "longest", "one_frame", "shuffled_frames", "reversed")


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
