"""``diptych card``: the model card of a run or an export, or the data sheet of a curated set, written from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.core.errors import DiptychError


def card(
    directory: Annotated[Path, typer.Argument(help="A run, an export of `diptych export`, or a result of `diptych curate`.")],
    licence: Annotated[
        str,
        typer.Option("--licence", "--license", help="Of the weights or the set, as you give it: an SPDX name such as cc-by-4.0."),
    ] = "",
    watts: Annotated[float | None, typer.Option(help="Of a busy core, for the estimate of carbon; default 10.")] = None,
    gpu_watts: Annotated[float | None, typer.Option(help="Of a busy GPU; default 400.")] = None,
    overhead: Annotated[float | None, typer.Option(help="Cooling and supply, as a factor; default 1.5.")] = None,
    intensity: Annotated[float | None, typer.Option(help="kg CO2e for a kWh of your electricity; default 0.48.")] = None,
    checkpoint: Annotated[str, typer.Option(help="Of a run: last, best or a name such as step-00000500.")] = "last",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Of a run: the file; default RUN/card.md.")] = None,
) -> None:
    """Write the model card or the data sheet again: parts, data and hashes, scores, terms, and an estimate of carbon.

    `diptych card runs/clip/export/transformers --licence cc-by-4.0 --intensity 0.05`. The assumptions can also be set for good:
    DIPTYCH_WATTS, DIPTYCH_GPU_WATTS, DIPTYCH_OVERHEAD, DIPTYCH_INTENSITY.
    """
    from diptych.data.provenance.carbon import Assumptions

    assumed = Assumptions.stated(watts=watts, gpu_watts=gpu_watts, overhead=overhead, intensity=intensity)
    if not directory.is_dir():
        raise DiptychError(f"no such directory: {directory}")
    if (directory / "manifest.json").is_file() and (directory / "plan.yaml").is_file():
        from diptych.curation.sheet import write_sheet

        typer.echo(f"data sheet: {write_sheet(directory, assumed, licence)}")
        return
    from diptych.core.files import write_text
    from diptych.inference.export.rewrite import rewrite, run_card
    from diptych.training.run_files import RunFiles

    if RunFiles(directory).exists():
        path = out or directory / "card.md"
        write_text(path, run_card(directory, assumed, licence, checkpoint))
    else:
        path = rewrite(directory, assumed, licence)
    typer.echo(f"model card: {path}")
