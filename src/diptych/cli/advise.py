"""``diptych advise``: what fits your data."""

from __future__ import annotations

from typing import Annotated, cast, get_args

import typer

from diptych.cli.options import DATA, JsonOption
from diptych.core.errors import DiptychError


def advise(
    data: Annotated[str, typer.Option("--data", "-d", help=DATA)],
    want: Annotated[str, typer.Option(help="What for: search, classes, captions, answers, boxes or any.")] = "any",
    limit: Annotated[int | None, typer.Option(min=1, help="Look at so many items, spread over all.")] = 2000,
    as_json: JsonOption = False,
) -> None:
    """Say which paradigm fits your data, and what to do first: each advice with a command, the reason, and where it is shown."""
    from dataclasses import asdict

    from diptych.cli.results import print_json
    from diptych.data.inspect import inspect
    from diptych.plan.advise import Want
    from diptych.plan.advise import advise as advised

    if want not in get_args(Want):
        raise DiptychError(f"--want {want}: expected one of {', '.join(get_args(Want))}")
    found = advised(inspect(data, limit=limit, progress=not as_json), cast(Want, want))
    if as_json:
        print_json([asdict(a) for a in found])
        return
    if not found:
        raise DiptychError(f"{data}: nothing can be said; diptych data inspect {data} shows what is there")
    for number, advice in enumerate(found, 1):
        typer.echo(f"{number}. {advice.what}")
        if advice.command:
            typer.echo(f"     {advice.command}")
        typer.echo(f"   because: {advice.because}\n   shown in: {advice.source}")
