"""``diptych sets``: which training sets are worth having."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.options import BUDGET, JsonOption, SetOption
from diptych.core.errors import DiptychError


def sets(
    recipe: Annotated[str, typer.Argument(help="What to train, such as llava-instruct@mini.")],
    source: Annotated[list[str], typer.Option("--source", help="A set: NAME=ADDRESS; as often as you have sets, in their order.")],
    eval_data: Annotated[str, typer.Option(help="What every arm is evaluated on, such as `scenes:small?split=test`.")],
    tasks: Annotated[str, typer.Option(help="Tasks, comma-separated. The score is the mean of their first metric.")],
    budget: Annotated[str, typer.Option("--budget", "-b", help=f"Of each arm, in operations. {BUDGET}")] = "2T flops",
    base: Annotated[str, typer.Option(help="An address that every arm has. Without it, the first set is what others add to.")] = "",
    weights: Annotated[str, typer.Option(help="Weights by size, such as `T=2;cap=20000;`. Default: all sets alike.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Repeats of each arm. From three on, intervals cover other seeds.")] = 3,
    ways: Annotated[str, typer.Option(help="add, leave-one-out, or both.")] = "add,leave-one-out",
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of all runs and of the results.")] = Path("runs/sets"),
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default one for each core.")] = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find out which of several training sets help: sets added one at a time, and each left out of all.

    Every arm has the same recipe and the same number of operations, and is evaluated on the same items; a set is kept if it helps
    (added), or if leaving it out costs. Writes results.json and table.md. Interrupted? The same command continues; sets can be
    added behind the others.

    Example: `diptych sets llava-instruct@mini --source count=instruct:scenes:small?kinds=count
    --source yes=instruct:scenes:small?kinds=yes-no --eval-data scenes:small?split=test --tasks instruct-count,instruct-yes-no`
    """
    from diptych.choose.sets.plan import Selection
    from diptych.choose.sets.run import select_sets
    from diptych.cli.results import print_json

    named: dict[str, str] = {}
    for given in source:
        name, mark, address = given.partition("=")
        if not mark or not name or not address or name in named:
            raise DiptychError(f"--source {given}: expected NAME=ADDRESS, each name once")
        named[name] = address
    asked = [name.strip() for name in tasks.split(",") if name.strip()]
    searches = [way.strip() for way in ways.split(",") if way.strip()]
    selection = Selection(recipe, named, eval_data, asked, budget, base, weights, seeds, out, jobs, set_ or [], searches)
    result = select_sets(selection)
    if as_json:
        print_json(result)
    else:
        typer.echo((out / "table.md").read_text("utf-8"), nl=False)
