"""``diptych export``: a run in the format of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    to: Annotated[str, typer.Option("--to", help="The library that will load it: transformers or open_clip.")] = "transformers",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The directory; default RUN/export/FORMAT.")] = None,
    checkpoint: Annotated[str, typer.Option(help="last, best (by validation loss) or a name such as step-00000500.")] = "last",
    architecture: Annotated[
        str, typer.Option("--class", help="The class, if several fit the run, such as BlipForConditionalGeneration.")
    ] = "",
    adapters: Annotated[
        bool,
        typer.Option(
            "--adapters", help="Write a language model's adapters separately, for peft, to OUT/adapter; otherwise they are merged."
        ),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a run as a directory that another library loads without our code: weights, tokenizer, image processor, model card.

    Example: `diptych train clip --set parts.vision.kind=clip --set parts.text.kind=clip`, then
    `diptych export runs/clip --to transformers`
    and `AutoModel.from_pretrained("runs/clip/export/transformers")`.
    """
    from dataclasses import asdict

    from diptych.cli.results import print_json
    from diptych.inference.export import export as write

    made = write(run, to, out, checkpoint, architecture, adapters)
    if json_:
        print_json({**asdict(made), "path": str(made.path)})
        return
    typer.echo(f"{made.path}: {made.architecture} of {made.format}, weights {made.key} ({made.checkpoint})")
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    if made.format == "transformers":
        typer.echo(f"evaluate it: diptych evaluate hf:{made.path} --data …")
