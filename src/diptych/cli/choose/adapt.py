"""``diptych adapt``: one model, one way, on your pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.core.errors import DiptychError

MODEL = "A run, `hf:NAME_OR_PATH`, `open_clip:NAME?pretrained=TAG` or `package.module:Class`."
CLASSES = "Pictures with classes: `classes:DIRECTORY` with a folder for each class, or `classes:TABLE.csv`."
DESCRIPTIONS = "Sentences that describe the classes, a JSON file {class: [sentence, …]}."


def adapt(
    model: Annotated[str | None, typer.Argument(help=MODEL)] = None,
    way: Annotated[str, typer.Option("--way", "-w", help="How (see --list).")] = "probe",
    data: Annotated[str | None, typer.Option("--data", "-d", help=CLASSES)] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Pictures of each class to learn from; default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Draws these pictures, and the folds.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: runs/adapted-WAY.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Fix a setting of the way, `--set c=10`; others are chosen.")
    ] = None,
    descriptions: Annotated[Path | None, typer.Option(help=DESCRIPTIONS)] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the adapted model in the folder.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the ways.")] = False,
) -> None:
    """Adapt a model to classes of your own. The folder that it writes is a model: evaluate it, or use it to name pictures.

    Settings are chosen by cross-validation on the training part of the data; near-duplicates stay in one fold. The test part is not
    used. Example: `diptych adapt runs/clip --way probe --data classes:my/parts`, then `diptych evaluate runs/adapted-probe --data
    classes:my/parts --tasks zeroshot`.
    """
    if list_:
        _list()
        return
    if model is None or data is None:
        raise DiptychError("name a model and the data: diptych adapt MODEL --way WAY --data classes:DIRECTORY")
    from diptych.api import load
    from diptych.choose.adapt import adapt as adapt_model
    from diptych.choose.adapt import checked_settings, summary
    from diptych.choose.support import read_descriptions
    from diptych.choose.ways import way_named
    from diptych.cli.choose.display import StepsDisplay
    from diptych.config.overrides import parse_overrides

    settings = checked_settings(way_named(way), parse_overrides(set_ or []))  # wrong names are refused before anything is loaded
    sentences = read_descriptions(descriptions) if descriptions else None
    folder = out or Path("runs") / f"adapted-{way.rpartition(':')[2]}"
    opened = load(model, device)
    with StepsDisplay() as display:
        adapted = adapt_model(
            model, opened, way, data, folder, shots=shots, seed=seed, settings=settings, descriptions=sentences,
            overwrite=overwrite, progress=display,
        )  # fmt: skip
    typer.echo(f"{folder}: {summary(adapted.about)}")


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    from diptych.choose.ways import WAYS

    table = Table("way", "what it does", box=None, header_style="bold")
    for name, cls in WAYS.items():
        table.add_row(f"[bold]{name}[/]", f"{cls.about}\n[dim]{cls.cite}[/]" if cls.cite else cls.about)
    Console().print(table)
