"""One run of a comparison, in a process of its own: train, then judge. Progress goes to standard output, a JSON object a line.

``python -m diptych.job '{"path": …, "eval_data": …, "tasks": …, "name": …}'``; started by ``diptych.comparison``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def tell(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def run_job(path: Path, eval_data: str | None, tasks: list[str], name: str) -> None:
    import torch

    from diptych.data.sources import open_source
    from diptych.evaluation.run import evaluate
    from diptych.files import read_json
    from diptych.recipe import load_recipe
    from diptych.trained import TrainedModel
    from diptych.training.loop import train

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    recipe = load_recipe(str(path / "job.yaml"))
    spent = path / "spent.json"
    if not (spent.is_file() and read_json(spent).get("finished")):
        tell(phase="setting up")
        train(recipe, path, resume=True, progress=lambda row: tell(phase="training", **row))
    tell(phase="judging", share=1.0)
    source = open_source(eval_data) if eval_data else open_source(recipe.data.train).split("test")
    model = TrainedModel.load(path)
    model.name = name
    evaluate(model, source, tasks, path / "evaluation", progress=lambda task: tell(phase=f"judging {task}"), key=model.key)
    tell(phase="done")


def main() -> int:
    from diptych.errors import DiptychError

    try:
        given = json.loads(sys.argv[1])
        run_job(Path(given["path"]), given["eval_data"], given["tasks"], given["name"])
    except DiptychError as error:
        tell(phase="failed", error=str(error))
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
