"""``diptych recipes`` and ``diptych compare``: recipes side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from diptych.cli.options import BUDGET, DATA, JsonOption, SetOption, TasksOption

if TYPE_CHECKING:
    from diptych.comparison.run import Comparison


def recipes(as_json: JsonOption = False) -> None:
    """List the built-in recipes, each with its variants: NAME@VARIANT is a recipe with other settings. Models that need no
    training come last.
    """
    from diptych.config.recipe import load_recipe, recipe_names, recipe_variants
    from diptych.config.untrained import UNTRAINED

    rows = []
    for name in recipe_names():
        r = load_recipe(name)
        variants = {v: about for v, about in recipe_variants().items() if v.startswith(f"{name}@")}
        rows.append(Row(name, r.paradigm, r.about, r.cite, r.score, variants))
    for name in UNTRAINED.names():
        model = UNTRAINED.load(name)
        rows.append(Row(name, model.paradigm, model.about, model.cite, model.score, {}))
    if as_json:
        from diptych.cli.results import print_json

        print_json([row._asdict() for row in rows])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("recipe", "paradigm", "what it is", "scored by", box=None, header_style="bold")
    for row in rows:
        table.add_row(f"[bold]{row.name}[/]", row.paradigm, f"{row.about}\n[dim]{row.cite}[/]", row.score)
        for variant, about in row.variants.items():
            table.add_row(f"  {variant}", "", about, "")
    Console().print(table)


class Row(NamedTuple):
    """A recipe in the list. variants: {name: what is different}."""

    name: str
    paradigm: str
    about: str
    cite: str
    score: str
    variants: dict[str, str]


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
    as_json: JsonOption = False,
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
    run_and_show(c, as_json)


def run_and_show(c: Comparison, as_json: bool = False) -> None:
    """Run a comparison; its table, or its results as JSON, are printed even if it is interrupted or a run fails."""
    from diptych.cli.results import print_json
    from diptych.comparison.run import run_comparison
    from diptych.core.files import read_json
    from diptych.report import build_report, print_table

    results = c.out / "results.json"
    before = results.stat().st_mtime_ns if results.is_file() else None
    try:
        run_comparison(c, build_report)
    finally:
        if results.is_file() and results.stat().st_mtime_ns != before:
            if as_json:
                print_json({**read_json(results), "report": str(c.out / "report.html")})
            else:
                print_table(c.out)
                typer.echo(f"\nreport: {c.out / 'report.html'}")
