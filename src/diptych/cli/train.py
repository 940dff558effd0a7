"""``diptych train``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.options import BudgetOption, DataOption, JsonOption, SetOption
from diptych.core.errors import DiptychError, counted


def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's name (see `diptych recipes`), a YAML file, or a run directory to repeat.")
    ],
    data: DataOption = None,
    budget: BudgetOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run's directory; default runs/<recipe>.")] = None,
    size: Annotated[str | None, typer.Option(help="tiny, small or base.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes initial weights and the order of samples.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in --out.")] = False,
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes on this machine that share every batch; on several machines: `torchrun … -m diptych.cli train`.",
        ),
    ] = 1,
    runner: Annotated[
        str,
        typer.Option(
            help="Who starts the processes: `local` (torchrun), or `ray` (Ray Train: this machine, or the cluster of RAY_ADDRESS; "
            "dead processes are started again, and the run goes on from its last checkpoint)."
        ),
    ] = "local",
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train one recipe. Ctrl-C saves; `--resume` continues exactly where it stopped.

    Batches larger than memory: `--set stages.0.batch_size=4096 --set stages.0.micro_batch=64` gives the exact gradient of 4,096
    samples in the memory of 64.
    """
    if runner not in ("local", "ray"):
        raise DiptychError(f"--runner {runner}: valid are local and ray")
    if processes > 1 and runner == "local":
        _in_processes(processes)
    from diptych.api import recipe_of, with_common
    from diptych.core.progress import TrainingDisplay
    from diptych.training.loop import train as run_training

    short = [f"{k}={v}" for k, v in (("size", size), ("seed", seed)) if v is not None]
    overrides = with_common([*short, *(set_ or [])], data, budget)
    checked, out = recipe_of(recipe, overrides, out, resume)
    if int(os.environ.get("RANK", "0")):  # only the first process prints
        run_training(checked, out, resume=resume)
        return
    with TrainingDisplay(checked.name) as display:
        if runner == "ray":
            from diptych.training.ray_train import train_by_ray

            run = train_by_ray(checked, out, processes, resume, display)
        else:
            run = run_training(checked, out, resume=resume, progress=display)
    from diptych.plan.audit import note

    spent = run.spent
    note(run.recipe, spent)
    if as_json:
        from diptych.cli.results import print_json

        print_json({"run": str(run.path), **spent})
        return
    before = f" (its backbones: {spent['pretraining_flops'] / 1e12:.2f} TFLOP)" if "pretraining_flops" in spent else ""
    typer.echo(
        f"{run.path}: {counted(spent['steps'], 'step')}, {counted(spent['samples'], 'sample')}, "
        f"{spent['seconds']:.1f} s of training, "
        f"{spent['flops'] / 1e12:.2f} TFLOP{before}, {spent['trainable_parameters'] / 1e6:.2f} M trainable parameters"
    )
    typer.echo(f"evaluate it: diptych evaluate {run.path}")


def _in_processes(n: int) -> None:
    """Runs the same command in n processes by torchrun; this process becomes the launcher and exits with their status."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    words = sys.argv[1:]
    at = next(i for i, word in enumerate(words) if word.startswith("--processes"))
    del words[at : at + (1 if "=" in words[at] else 2)]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n)))
    try:
        main(["--standalone", f"--nproc-per-node={n}", "-m", "diptych.cli", *words])
    except SignalException:  # passed on to all processes, which have saved
        raise SystemExit(130) from None
    except ChildFailedError as error:  # the process has printed why
        raise SystemExit(error.get_first_failure()[1].exitcode) from None
    raise SystemExit(0)
