"""``diptych data``: inspect data before training, and pack it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.options import DATA
from diptych.cli.results import print_json
from diptych.core.errors import DiptychError, counted

app = typer.Typer(no_args_is_help=True, help="Inspect data before training, and pack it so that training reads it fast.")


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
    limit: Annotated[int | None, typer.Option(min=1, help="Look at the first N items only.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count, measure and decode everything: sizes, caption lengths, duplicates, broken items with reasons."""
    from diptych.data.inspect import inspect as inspect_source
    from diptych.data.inspect import print_inspection

    inspection = inspect_source(address, out, limit=limit, progress=not json_)
    if json_:
        print_json(inspection.to_dict())
    else:
        print_inspection(inspection)
    if not inspection.good:
        raise DiptychError(f"{address}: no usable item")


@app.command()
def pack(
    address: Annotated[str, typer.Argument(help=DATA)],
    out: Annotated[Path, typer.Argument(help="The directory to write; an unfinished one is completed.")],
    size: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="Pixels of the shorter side; smaller images keep their size. Default: that of the scenes, else 256.",
        ),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="`jpeg`; `webp`, which takes less space and more time to decode; or `raw`, which takes ten times the space and "
            "needs no decoding.",
        ),
    ] = "jpeg",
    quality: Annotated[int, typer.Option(min=1, max=100, help="Quality of pictures that are encoded anew.")] = 90,
    split: Annotated[
        str, typer.Option(help="`all`, or one part: train, validation, test. Splitting after packing gives the same parts.")
    ] = "all",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N items; needed for `scenes:`, which has no end.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
) -> None:
    """Resize images once and store them in memory-mapped Arrow, with captions, labels and boxes.

    Read it as `packed:OUT`. Killed, interrupted or out of disk? The same command does what is missing. Example:

    `diptych data pack coco:captions.json packed/coco --format raw`
    """
    from typing import Any, cast

    from diptych.data.packing import pack as run

    done = run(address, out, size, cast(Any, format_), quality, split, limit, workers, progress=not json_)
    if json_:
        print_json(done)
        return
    broken = f", {counted(done['broken'], 'broken one')} left out (reasons in problems.jsonl)" if done["broken"] else ""
    shards, size_ = len(done["shards"]), done["bytes"] / 1e6
    typer.echo(f"{out}: {counted(done['items'], 'item')}{broken}, {counted(shards, 'shard')}, {size_:,.1f} MB")
    typer.echo(f"train on it: diptych train clip --data packed:{out}")


@app.command()
def verify(address: Annotated[str, typer.Argument(help="`packed:DIRECTORY`, or the directory.")]) -> None:
    """Read every byte of packed data and compare with the hashes of its manifest."""
    from diptych.core.progress import CountDisplay
    from diptych.data.sources.packed import Packed

    packed = Packed(address.removeprefix("packed:"))
    with CountDisplay("verifying", len(packed.manifest["shards"]), unit="shards") as display:
        wrong = packed.verify(display)
    if wrong:
        raise DiptychError(
            "\n".join([*wrong, "delete these and run the same `diptych data pack` again: it writes only what is missing"])
        )
    typer.echo(f"{address}: {counted(len(packed), 'item')} in {counted(len(packed.manifest['shards']), 'shard')}, all as packed")
