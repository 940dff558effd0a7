"""One run of a comparison or a study, in its own process: train, then evaluate. Started by ``diptych.comparison.jobs``.

``python -m diptych.comparison.job '{"path": …, "name": …, "backbones": …, "evaluations": [{"data": …, "tasks": […], "out": …}]}'``
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diptych.comparison.jobs import main_of_job, send


def run_job(given: dict[str, Any]) -> None:
    """Trains a run, unless it is finished, and evaluates it."""
    import torch

    from diptych.benchmarks.run import evaluate
    from diptych.config.recipe import load_recipe
    from diptych.data.sources import open_source
    from diptych.inference.run import TrainedModel
    from diptych.training.loop import train
    from diptych.training.run_files import RunFiles

    path = Path(given["path"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    recipe = load_recipe(str(path / "job.yaml"))
    if not RunFiles(path).finished():
        send(phase="setting up")
        folder = Path(given["backbones"]) if given.get("backbones") else None
        train(recipe, path, resume=True, progress=lambda row: send(**{"phase": "training", **row}), backbones=folder)
    if not given["evaluations"]:
        return send(phase="done", share=1.0)
    send(phase="evaluating", share=1.0)
    model = TrainedModel.load(path)
    model.name = given["name"]
    for evaluation in given["evaluations"]:
        data = evaluation["data"]
        source = open_source(data) if data else open_source(recipe.data.train).split("test")
        folder = path / evaluation["out"]

        def progress(task: str) -> None:
            """Reports the task that is evaluated."""
            send(phase=f"evaluating {task}")

        # The folder belongs to the comparison, so results of an earlier one may be overwritten.
        evaluate(model, source, evaluation["tasks"], folder, progress, key=model.key, overwrite=True)
    send(phase="done")


if __name__ == "__main__":
    raise SystemExit(main_of_job(run_job))
