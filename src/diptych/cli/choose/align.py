"""``diptych align``: a run that learns from right and wrong answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.options import BudgetOption, JsonOption
from diptych.core.errors import DiptychError

DATA = "Pairs of answers: `preferences:scenes:small`, or `preferences:FILE.jsonl` with image, prompt, chosen, rejected."
SET = (
    "An option of the method (`--set beta=0.3`) or a key of the recipe (`--set stages.0.lr=1e-4`); with `--through trl`: samples, "
    "epochs, steps, batch_size, lr, beta, seed, generations, clip, kl, max_tokens."
)


def align(
    run: Annotated[Path | None, typer.Argument(help="A run that follows prompts, such as one of llava-instruct.")] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="How (see --list).")] = "dpo",
    data: Annotated[str, typer.Option("--data", "-d", help=DATA)] = "preferences:scenes:small",
    budget: BudgetOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: next to the run, RUN-METHOD.")] = None,
    through: Annotated[
        str, typer.Option(help="diptych: the engine here; trl: Hugging Face's trainers, on the run's export.")
    ] = "diptych",
    pairs: Annotated[int, typer.Option(min=2, help="Test pairs on which both runs are measured.")] = 200,
    set_: Annotated[list[str] | None, typer.Option("--set", "-s", help=SET)] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the methods.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Align a run with pairs of a right and a wrong answer. The result is a run.

    Afterwards both runs are measured on test pairs: how much likelier right answers are (margin), and by how much that falls when
    pictures are exchanged (swap): a margin that comes from words alone does not fall. Example: `diptych align runs/llava-instruct
    --method dpo --data preferences:scenes:small --budget 5m`, then `diptych evaluate runs/llava-instruct runs/llava-instruct-dpo
    --tasks pope,facts,captions,preferences`.
    """
    from diptych.choose.align.recipe import METHODS

    if list_:
        for each in METHODS.values():
            where = " and ".join([*(["diptych"] if each.objective else []), *(["trl"] if each.trl else [])])
            typer.echo(f"{each.name:10} {each.about} ({each.source}); through {where}")
        return
    if run is None:
        raise DiptychError("name a run: diptych align RUN --method dpo --data preferences:scenes:small")
    from diptych.choose.align.run import align as align_run
    from diptych.core.progress import TrainingDisplay

    with TrainingDisplay(f"{run.name}-{method}") as display:
        made = align_run(run, method, data, out, budget, set_, through, pairs, display)
    if as_json:
        from diptych.cli.results import print_json

        print_json(made.plain())
        return
    typer.echo(str(made.run))
    for row in made.plain()["preferences"]:
        change = row["change"]
        typer.echo(
            f"  {row['metric']:9} {row['before']:8.3f} → {row['after']:8.3f}   "
            f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
        )
    for name, value in made.judged.items():
        typer.echo(f"  {name:28} {value:8.3f}")
    if made.skipped:
        typer.echo(f"  not measured: {made.skipped}")
    typer.echo(f"evaluate it: diptych evaluate {made.run}")
