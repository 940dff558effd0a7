"""``diptych demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.options import BUDGET


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The comparison's directory.")] = Path("runs/demo"),
    budget: Annotated[str | None, typer.Option("--budget", "-b", help=BUDGET + " Default: enough to learn composition.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeats of each recipe.")] = 1,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default one for each core.")] = None,
) -> None:
    """Compare recipes of several paradigms on the built-in scenes under one budget, with a report.

    About ten minutes on two recent cores that do nothing else; the expected time on this machine is printed first, from a
    measurement of two seconds. Interrupted? The same command continues where it stopped.
    """
    from diptych.cli.compare import run_and_show
    from diptych.comparison.demo import BUDGET as OWN
    from diptych.comparison.demo import SET, comparison, in_words, measure, waiting
    from diptych.comparison.run import check_same, plan, weights_of
    from diptych.models.pretrained import licences, require

    c = comparison(out, budget or OWN, seeds, jobs)
    planned, side_by_side = plan(c)
    check_same(c, planned)
    names = sorted({name for job in planned for name in weights_of(job.recipe)} | {"openmoji"})
    for name in names:
        require(name)
    typer.echo("The demo uses, besides our own code:")
    for name, terms in licences(names).items():
        typer.echo(f"  {name}: {terms}")
    typer.echo(f"\nTrains {', '.join(c.recipes)} on {c.data}, each with a budget of {planned[0].recipe.budget}.")
    if SET:
        typer.echo(f"Settings for all of them: {' '.join(f'--set {each}' for each in SET)}")
    if waiting(planned):
        typer.echo(in_words(planned, side_by_side, measure(side_by_side, planned[0].threads)))
    typer.echo("")
    run_and_show(c)
