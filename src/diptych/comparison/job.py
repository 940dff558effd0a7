"""One run of a comparison or a study, in a process of its own: train, then judge. Started by ``diptych.comparison.jobs``.

``python -m diptych.comparison.job '{"path": …, "name": …, "judgements": [{"data": …, "tasks": […], "out": …}]}'``
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diptych.comparison.jobs import main_of_job, tell


def run_job(given: dict[str, Any]) -> None:
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
        tell(phase="setting up")
        train(recipe, path, resume=True, progress=lambda row: tell(phase="training", **row))
    tell(phase="judging", share=1.0)
    model = TrainedModel.load(path)
    model.name = given["name"]
    for judgement in given["judgements"]:
        data = judgement["data"]
        source = open_source(data) if data else open_source(recipe.data.train).split("test")
        folder = path / judgement["out"]
        said = lambda task: tell(phase=f"judging {task}")  # noqa: E731
        # the folder is the comparison's own: what an earlier one left there may go
        evaluate(model, source, judgement["tasks"], folder, said, key=model.key, overwrite=True)
    tell(phase="done")


if __name__ == "__main__":
    raise SystemExit(main_of_job(run_job))
