"""``diptych data``: look at data before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.options import DATA
from diptych.errors import DiptychError

app = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")


@app.command()
def show(
    address: Annotated[str, typer.Argument(help=DATA)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write.")] = Path("contact-sheet.png"),
    n: Annotated[int, typer.Option("-n", min=1, help="How many samples.")] = 24,
    split: Annotated[
        str | None, typer.Option(help="train, validation, test; for scenes also heldout-combinations, heldout-concepts.")
    ] = None,
) -> None:
    """Draw samples with their captions into one picture."""
    from diptych.data.sheet import contact_sheet
    from diptych.data.source import usable_samples
    from diptych.data.sources import open_source

    source = open_source(address)
    source = source.split(split) if split else source
    samples = usable_samples(source, n)
    if not samples:
        raise DiptychError(f"{address}: no usable sample")
    contact_sheet(samples, out)
    typer.echo(str(out))


@app.command()
def inspect(
    address: Annotated[str, typer.Argument(help=DATA)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write inspection.json and a contact sheet.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Look at the first so many items only.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count, measure and decode everything: sizes, caption lengths, duplicates, broken items with reasons."""
    import json

    from diptych.data.inspect import inspect as look
    from diptych.data.inspect import print_inspection

    found = look(address, out, limit=limit, progress=not json_)
    if json_:
        typer.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        print_inspection(found)
    if not found.good:
        raise DiptychError(f"{address}: no usable item")
