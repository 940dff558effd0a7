"""``diptych recipes``, ``diptych compare`` and ``diptych demo``: recipes side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.options import BUDGET, DATA, SetOption, TasksOption


def recipes() -> None:
    """List the built-in recipes, each with its variants: NAME@VARIANT is a recipe with other settings."""
    from rich.console import Console
    from rich.table import Table

    from diptych.config.recipe import load_recipe, recipe_names, recipe_variants

    table = Table("recipe", "paradigm", "what it is", "scored by", box=None, header_style="bold")
    for name in recipe_names():
        r = load_recipe(name)
        table.add_row(f"[bold]{name}[/]", r.paradigm, f"{r.about}\n[dim]{r.cite}[/]", r.score)
        for variant, about in recipe_variants().items():
            if variant.startswith(f"{name}@"):
                table.add_row(f"  {variant}", "", about, "")
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
    from diptych.comparison.run import Comparison, every_system, run_comparison
    from diptych.report import build_report, print_table

    if not recipes and not all_systems:
        raise typer.BadParameter("name recipes to compare, or give --all-systems", param_hint="recipes")
    names = addresses(tasks)
    c = Comparison(
        every_system(recipes) if all_systems else recipes or [], data, budget, seeds, out, jobs, set_ or [], names, eval_data, title
    )
    for name in names:
        task(name)  # a wrong name is refused before training
    results = out / "results.json"
    before = results.stat().st_mtime_ns if results.is_file() else None
    try:
        run_comparison(c, build_report)
    finally:
        if results.is_file() and results.stat().st_mtime_ns != before:
            print_table(out)
            typer.echo(f"\nreport: {out / 'report.html'}")


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The comparison's directory.")] = Path("runs/demo"),
    budget: Annotated[str, typer.Option("--budget", "-b", help=BUDGET)] = "88s",
) -> None:
    """Compare the four paradigms on the built-in scenes under one budget in ten minutes, with a report."""
    from diptych.models.pretrained import licences, require

    names = ["efficientnet-lite0", "gemma-3-270m", "openmoji"]
    for name in names:
        require(name)
    typer.echo("The demo uses, besides our own code:")
    for name, terms in licences(names).items():
        typer.echo(f"  {name}: {terms}")
    typer.echo("")
    compare(DEMO, budget=budget, out=out, tasks=DEMO_TASKS, title="Four paradigms, one budget")


# A language model on a CPU scores about a hundred pairs a second, so the demo uses fewer items than by default.
DEMO_TASKS = "retrieval?n=50,retrieval-1000,zeroshot,controlled?n=50,captions?n=32,embedding"
DEMO = ["llava", "maskvlm", "coca", "clip", "negclip"]
