"""Results as a table on the terminal, or as JSON for a script."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.benchmarks.records import Result


WIDE = 160  # characters of a line in a file or a pipe, where no terminal sets the width
FEW_CLUSTERS = 10  # with fewer, intervals are too narrow (docs/metrics.md)


def number(value: float | None) -> str:
    """A number as text."""
    if value is None or math.isnan(value):
        return "—"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.2f}"


def _range(low: float | None, high: float | None) -> str:
    return "—" if low is None or high is None or math.isnan(low) else f"{number(low)} – {number(high)}"


def show_results(results: Sequence[Result], *, json_: bool, notes: Sequence[str] = (), **more: Any) -> None:
    """Prints results with intervals, controls and counts. more: further lists of rows, each a separate table."""
    if json_:
        print_json({"results": list(results), **more, "notes": list(notes)})
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    controls = list(dict.fromkeys(name for r in results for name in r.controls))
    columns = {
        "chance": [number(r.chance) if r.chance is not None else "" for r in results],
        **{c: [number(r.controls[c]) if c in r.controls else "" for r in results] for c in controls},
        "unparsed": [str(r.unparsed) if r.unparsed else "" for r in results],
        "band": [_range(*r.band) if r.band else "" for r in results],
        "ties": [str(r.ties) if r.ties else "" for r in results],
        "NaNs": [str(r.nans) if r.nans else "" for r in results],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("metric", overflow="fold")
    for name in ("value", "95 %", *columns, "n", "clusters"):
        table.add_column(name, justify="right")
    for i, r in enumerate(results):
        cells = [cells[i] for cells in columns.values()]
        arrow = "" if r.higher_is_better else " ↓"
        table.add_row(escape(r.metric) + arrow, number(r.value), _range(r.low, r.high), *cells, f"{r.n:,}", f"{r.clusters:,}")
        for part in r.slices:
            counts = (f"{part['n']:,}", f"{part['clusters']:,}")
            table.add_row(
                "  " + escape(part["slice"]),
                number(part["value"]),
                _range(part["low"], part["high"]),
                *[""] * len(columns),
                *counts,
            )
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(table)
    for name, rows in more.items():
        _rows(console, name, rows)
    silent = [what for what in ("ties", "NaNs", "unparsed") if what not in columns]
    lines = [f"no {', no '.join(silent)}"] if silent else []
    if any(0 < r.clusters < FEW_CLUSTERS for r in results):
        lines.append(f"fewer than {FEW_CLUSTERS} clusters: the interval is rough")
    for line in [*lines, *notes]:
        console.print(line, style="dim", markup=False, highlight=False)


def _rows(console: Any, title: str, rows: Sequence[Any]) -> None:
    """Prints dataclasses as a table with a column for each field."""
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    if not rows:
        return
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for name in asdict(rows[0]):
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(number(v) if isinstance(v, float) else escape(str(v)) for v in asdict(row).values()))
    console.print(table)


def show_rows(title: str, rows: Sequence[Any], json_: bool) -> None:
    """Prints rows as a table or as JSON."""
    if json_:
        print_json({title: list(rows)})
        return
    from rich.console import Console

    _rows(Console(width=None if sys.stdout.isatty() else WIDE), title, rows)


def print_json(value: Any) -> None:
    """Prints a value as strict JSON; what JSON has no form for, such as a date, as text."""
    import json

    from diptych.benchmarks.records import plain

    print(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False, default=str))
