"""``diptych adapt`` for whole models of transformers that talk about images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from diptych.core.errors import DiptychError


def tunes(model: str, way: str) -> bool:
    """Whether a way is asked of a model that talks. DiptychError for a way that is not for such models."""
    from diptych.choose.talk import CHAT_WAYS, talks

    return model.startswith("hf:") and way in CHAT_WAYS and talks(model)


def tune_and_tell(
    model: str,
    way: str,
    data: str,
    folder: Path,
    other: Sequence[str],
    seed: int,
    budget: str | None,
    settings: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Tune the model; print the table and what to do next, or JSON."""
    from diptych.choose.talk import chat_way, tune
    from diptych.choose.talk.tune import ADAPTER, TABLE, next_commands
    from diptych.cli.choose.display import StepsDisplay
    from diptych.cli.results import print_json
    from diptych.core.progress import TrainingDisplay
    from diptych.inference.adapted import FILE

    if (folder / FILE).is_file():
        raise DiptychError(f"{folder} holds an adapted model already; choose another --out")
    with TrainingDisplay(way) as training, StepsDisplay() as display:
        result = tune(
            model, chat_way(way), data, folder, other=other, seed=seed, budget=budget, settings=settings,
            steps=training, progress=display,
        )  # fmt: skip
    if as_json:
        print_json(result)
        return
    share = result["trainable_parameters"] / result["parameters"]
    typer.echo(f"{folder}: {result['steps']} steps, {share:.2%} of the weights learned")
    if (folder / ADAPTER).is_dir():
        typer.echo(f"the adapter, for peft: {folder / ADAPTER}")
    table = folder / f"{TABLE}.md"
    if table.is_file():
        typer.echo(table.read_text(encoding="utf-8").partition("\n\n")[2].rstrip())
    for command in next_commands(folder, data):
        typer.echo(f"  {command}")
