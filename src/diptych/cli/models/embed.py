"""``diptych embed``: the vectors of pictures, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.models.predict import ADDRESS
from diptych.core.errors import DiptychError, counted


def embed(
    model: Annotated[str, typer.Argument(help="A model with vectors: `runs/clip`, `hf:NAME_OR_PATH`, an adapted model.")],
    address: Annotated[str, typer.Argument(help=ADDRESS)],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The file to write: .parquet, or .npy, with the ids in NAME.ids.jsonl."),
    ],
    text: Annotated[
        bool, typer.Option("--text", help="Also the vectors of the captions, a row each; the data must have captions.")
    ] = False,
    split: Annotated[str, typer.Option(help="A part of the data: train, validation, test; `all`: everything.")] = "all",
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most this many pictures.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there already, and unfinished work.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Write the unit vector of each picture: columns id, vector (float32, one length) and the reason where there is none.

    The file's metadata names the model and its weights. With --text, the column `kind` says image or text. Interrupted or killed?
    The same command continues. Examples:

    `diptych embed hf:openai/clip-vit-base-patch32 photos/ --out vectors.parquet`;
    `diptych embed runs/clip csv:table.csv --text --out vectors.npy`
    """
    from diptych.cli.results import print_json
    from diptych.inference.load import load
    from diptych.inference.predict.embed import ENDINGS
    from diptych.inference.predict.embed import embed as run
    from diptych.inference.predict.pictures import pictures_of
    from diptych.inference.predict.table import check_place, form_of

    form_of(out, ENDINGS)
    check_place(out)
    pictures = pictures_of(address, split, limit, captions=text)

    def note(text: str) -> None:
        """A line that is not part of the result."""
        typer.echo(f"note: {text}", err=True)

    done = run(load(model, device), model, pictures, out, text=text, overwrite=overwrite, batch=batch, quiet=json_, note=note)
    if json_:
        print_json({"out": str(out), **done})
    else:
        typer.echo(f"{out}: {counted(done['pictures'], 'picture')}, vectors of width {done['width']}")
    if done["broken"]:
        raise DiptychError(
            f"{counted(done['broken'], 'picture')} of {done['pictures']:,} could not be read: the reasons are in the file, column "
            "'reason'"
        )
