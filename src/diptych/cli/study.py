"""``diptych study``: tests claims about ways to train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.options import BudgetOption, DataOption
from diptych.core.errors import DiptychError


def study(
    name: Annotated[str | None, typer.Argument(help="A study's name (see --list) or a YAML file.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The study's directory; default runs/<study>.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The smallest version of the study; its verdicts mean little.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default one for each core.")] = None,
    data: DataOption = None,
    budget: BudgetOption = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Repeats of each arm.")] = None,
    arms: Annotated[
        str | None, typer.Option(help="Only some of the arms, comma-separated; claims on the others are left out.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="Override any key of the study: `--set arms.plain.recipe=my.yaml`, as often as you like."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the built-in studies.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print results.json instead of tables.")] = False,
) -> None:
    """Train every arm of a study over several seeds, measure, and report which of its claims hold here.

    Writes results.json, table.md and one self-contained report.html. Interrupted? The same command continues where it
    stopped.

    Example: `diptych study memorization`, or on your own data `diptych study memorization --data jsonl:mine.jsonl`.
    """
    from diptych.study import load_study, run_study, study_names

    if list_:
        _list(study_names())
        return
    if name is None:
        raise DiptychError(f"name a study ({', '.join(study_names())}) or a YAML file")
    short = [f"{k}={v}" for k, v in (("data", data), ("budget", budget), ("seeds", seeds)) if v is not None]
    chosen = load_study(name, [*short, *(set_ or [])], quick)
    if arms:
        chosen = chosen.only([name.strip() for name in arms.split(",")])
    folder = out or Path("runs") / (f"{chosen.name}-quick" if quick else chosen.name)
    results = folder / "results.json"
    before = results.stat().st_mtime_ns if results.is_file() else None
    try:
        run_study(chosen, folder, jobs)
    finally:
        if results.is_file() and results.stat().st_mtime_ns != before:
            if json_:
                typer.echo(results.read_text(encoding="utf-8"), nl=False)
            else:
                _print(folder)


def _list(names: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from diptych.study import load_study

    table = Table("study", "question", "arms × seeds", "budget each", box=None, header_style="bold")
    for name in names:
        s = load_study(name)
        table.add_row(f"[bold]{name}[/]", f"{s.title}\n[dim]{s.cite}[/]", f"{len(s.arms)} × {s.seeds}", str(s.budget))
    Console().print(table)


def _print(folder: Path) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown((folder / "table.md").read_text(encoding="utf-8")))
    typer.echo(f"\nreport: {folder / 'report.html'}")
