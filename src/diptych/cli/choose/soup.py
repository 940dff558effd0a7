"""``diptych soup``: the mean of several runs' weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.options import JsonOption

DATA = "The data of which the validation part is held out; default: the training data of the first run."


def soup(
    runs: Annotated[list[Path], typer.Argument(help="Runs that began from the same weights.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory of the run that is made.")],
    data: Annotated[str | None, typer.Option("--data", "-d", help=DATA)] = None,
    pictures: Annotated[int, typer.Option(min=1, help="At most this many held-out pictures are scored.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """Average the weights of runs, one after the other from the best on, as long as the score on held-out pictures of the training
    data does not get worse (Wortsman et al. 2022). The result is a run.

    The score is balanced accuracy by class names, or recall at 1 in both directions where pictures have captions. Test pictures are
    not used. Example: `diptych soup runs/full-a runs/full-b runs/full-c --out runs/soup`, of runs that were adapted with
    `--set hold=0.25`, so that a quarter of the few pictures is held out.
    """
    from diptych.choose.towers.average import soup as make
    from diptych.choose.towers.held import held_out, scorer

    def note(words: str) -> None:
        """Progress, apart from the result."""
        typer.echo(words, err=as_json)

    made = make(runs, scorer(held_out(runs[0], data), pictures), out, note)
    if as_json:
        from diptych.cli.results import print_json

        print_json({"run": str(out), "members": [str(runs[i]) for i in made.members], "score": made.score})
        return
    typer.echo(f"{out}: the mean of {len(made.members)} of {len(runs)} runs, {made.score:.4f}")
    typer.echo(f"evaluate it: diptych evaluate {out}")
