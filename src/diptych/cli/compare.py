"""``diptych recipes`` and ``diptych compare``: recipes side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diptych.cli.options import BUDGET, DATA, SetOption, TasksOption

if TYPE_CHECKING:
    from diptych.comparison.run import Comparison


def recipes() -> None:
    """List the built-in recipes, each with its variants: NAME@VARIANT is a recipe with other settings. Models that need no
    training come last.
    """
    from rich.console import Console
    from rich.table import Table

    from diptych.config.recipe import load_recipe, recipe_names, recipe_variants
    from diptych.config.untrained import UNTRAINED

    table = Table("recipe", "paradigm", "what it is", "scored by", box=None, header_style="bold")
    for name in recipe_names():
        r = load_recipe(name)
        table.add_row(f"[bold]{name}[/]", r.paradigm, f"{r.about}\n[dim]{r.cite}[/]", r.score)
        for variant, about in recipe_variants().items():
            if variant.startswith(f"{name}@"):
                table.add_row(f"  {variant}", "", about, "")
    for name in UNTRAINED.names():
        model = UNTRAINED.load(name)
        table.add_row(f"[bold]{name}[/]", model.paradigm, f"{model.about}\n[dim]{model.cite}[/]", model.score)
    Console().print(table)


def compare(
    recipes: Annotated[list[str] | None, typer.Argument(help="Two or more recipes: names or YAML files.")] = None,
    all_systems: Annotated[
        bool,
        typer.Option("--all-systems", help="Every built-in recipe, except those with weights that are not installed."),
    ] = False,
    data: Annotated[str, typer.Option("--data", "-d", help=DATA)] = "scenes:small",
    budget: Annotated[str, typer.Option("--budget", "-b", help=BUDGET + " Seconds count on the whole machine.")] = "10m",
    seeds: Annotated[int, typer.Option(min=1, help="Repeats of each recipe.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="The comparison's directory.")] = Path("runs/compare"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; default one for each core. Each gets its share of the cores.")
    ] = None,
    tasks: TasksOption = None,
    eval_data: Annotated[str | None, typer.Option(help="Evaluate on all of this instead of the test part of --data.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "Comparison",
    set_: SetOption = None,
) -> None:
    """Train recipes on the same data under the same budget and evaluate them on the same items.

    Writes a table and one self-contained report.html. Interrupted? The same command continues where it stopped.
    """
    from diptych.benchmarks.tasks import addresses, task
    from diptych.comparison.run import Comparison, every_system

    if not recipes and not all_systems:
        raise typer.BadParameter("name recipes to compare, or give --all-systems", param_hint="recipes")
    names = addresses(tasks)
    c = Comparison(
        every_system(recipes) if all_systems else recipes or [], data, budget, seeds, out, jobs, set_ or [], names, eval_data, title
    )
    for name in names:
        task(name)  # a wrong name is refused before training
    run_and_show(c)


def run_and_show(c: Comparison) -> None:
    """Run a comparison; its table is printed even if it is interrupted or a run fails."""
    from diptych.comparison.run import run_comparison
    from diptych.report import build_report, print_table

    results = c.out / "results.json"
    before = results.stat().st_mtime_ns if results.is_file() else None
    try:
        run_comparison(c, build_report)
    finally:
        if results.is_file() and results.stat().st_mtime_ns != before:
            print_table(c.out)
            typer.echo(f"\nreport: {c.out / 'report.html'}")
