"""``diptych evaluate``: models, ours or others, on tasks."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.options import DataOption, FewerOption, TasksOption
from diptych.cli.results import print_json
from diptych.core.errors import DiptychError

MODELS = (
    "Run directories, or other models: `hf:NAME_OR_PATH`, `open_clip:NAME?pretrained=TAG`, "
    "`openai:http://HOST/v1?model=NAME`, `package.module:Class`."
)


def evaluate(
    models: Annotated[list[str] | None, typer.Argument(help=MODELS)] = None,
    data: DataOption = None,
    tasks: TasksOption = None,
    split: Annotated[str, typer.Option(help="The part of the data to evaluate on; `all`: everything at --data.")] = "test",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: evaluation/ in the run directory, or in runs/<address>/.")
    ] = None,
    fewer: FewerOption = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    from_records: Annotated[
        Path | None, typer.Option(help="Compute the numbers again from the records in this folder, without the model.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete records of another model or of other data in the folder.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate models on held-out items, each number with its interval, chance and controls.

    Interrupted? The same command continues where it stopped. Example: `diptych evaluate runs/clip hf:models/siglip --data
    coco:captions.json --tasks retrieval,pope`
    """
    from diptych.benchmarks.run import recompute
    from diptych.inference.fewer.open import address_of

    if (from_records is None) == (not models):
        raise DiptychError("name models to evaluate, or a folder of records with --from-records")
    if out and models and len(models) > 1:
        raise DiptychError("--out takes one model; omit it to write evaluation/ for each")
    if from_records is not None:
        _show(recompute(from_records), json_)
        return
    for address in models or []:
        _evaluate_one(address_of(address, fewer), data, tasks, split, out, device, overwrite, json_)


def _evaluate_one(
    address: str, data: str | None, tasks: str | None, split: str, out: Path | None, device: str, overwrite: bool, json_: bool
) -> None:
    from diptych.api import load, run_directory
    from diptych.benchmarks.run import evaluate as evaluate_model
    from diptych.benchmarks.run import missing_in
    from diptych.benchmarks.tasks import TASKS, chosen
    from diptych.data.sources import open_source

    wanted = chosen(tasks)  # a wrong name is refused before the model is loaded
    model = load(address, device)
    if not tasks and "classify" in model.capabilities:
        wanted += chosen("classification")
    data = data or getattr(getattr(getattr(model, "recipe", None), "data", None), "train", None)
    if data is None and any(getattr(task, "file", "") == "" for task in wanted):
        raise DiptychError(f"{address}: name the data: --data ADDRESS, or tasks with their own files (?file=…)")
    source = open_source(data) if data else None
    source = source.split(split) if source is not None and split != "all" else source

    last_report = 0.0

    def report_progress(task: str) -> None:
        """Prints each task as it starts, and progress within a task at most every five seconds."""
        nonlocal last_report
        if not re.search(r"\d/\d", task) or time.monotonic() - last_report > 5:  # progress within a task every five seconds
            typer.echo(f"{address}: {task} …", err=True)
            last_report = time.monotonic()

    folder = out or run_directory(address) / "evaluation"
    key = getattr(model, "key", None)
    summary = evaluate_model(model, source, wanted, folder, progress=report_progress, key=key, own=out is None, overwrite=overwrite)
    answered = any((folder / "records" / f"{each.name}.jsonl").is_file() for each in wanted)
    if summary.results or answered or json_:  # answers without references are kept to be read
        _show(summary, json_)
    if not summary.results and not answered:
        why: dict[str, list[str]] = {}  # the tasks of each reason
        for skipped in summary.skipped:
            why.setdefault(skipped["reason"], []).append(skipped["task"])
        reasons = "".join(f"\n  {', '.join(names)}: {reason}" for reason, names in why.items())
        able = [name for name, cls in TASKS.items() if not missing_in(model, cls)]
        lacks = all(missing_in(model, each) for each in wanted)
        hint = f"\n  tasks that this model can do: --tasks {','.join(able[:6])}" if able and lacks else ""
        raise DiptychError(f"{address}: nothing could be evaluated on {data or 'the files'}:{reasons}{hint}")


def _show(summary: object, json_: bool) -> None:
    from diptych.report import print_summary

    if json_:
        print_json(summary)
    else:
        print_summary(summary)  # type: ignore[arg-type]
