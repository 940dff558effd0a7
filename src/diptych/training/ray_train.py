"""Ray Train as the engine that starts the processes of a run: ``diptych train --runner ray --processes N``.

Ray starts N workers, on this machine or on the cluster that ``RAY_ADDRESS`` names, and sets up torch's process group; what each
worker computes is what it computes under ``torchrun``, so the numbers are the same. When a worker dies, Ray starts all of them
again, and the run goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.core.errors import DiptychError, Interrupted
from diptych.core.extras import need

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.training.loop import Progress, Run

RESTARTS = 3  # after so many deaths of workers the run is given up


def train_by_ray(
    recipe: Recipe, out: Path, processes: int, resume: bool = False, progress: Progress | None = None, restarts: int = RESTARTS
) -> Run:
    """Trains a recipe in ``processes`` workers of Ray into the directory ``out``, and returns the run.

    out: on a cluster of machines, a directory that all of them share. restarts: how many times dead workers are started again.
    Raises DiptychError if Ray is not installed, if ``out`` holds a run already and ``resume`` is false, and for what the run itself
    raises; Interrupted on Ctrl-C, when the last checkpoint is kept. progress: called with each new line of the run's metrics.
    """
    ray, ray_train, of_torch = (
        need(name, extra="ray", what="train --runner ray") for name in ("ray", "ray.train", "ray.train.torch")
    )
    from diptych.training.checkpoint import checkpoints
    from diptych.training.loop import Run
    from diptych.training.run_files import RunFiles

    out = Path(out).absolute()
    if checkpoints(out / "checkpoints") and not resume:
        raise DiptychError(f"{out} holds a run already; continue with --resume, or choose another --out")
    started = not ray.is_initialized()
    if started:
        _start(ray, processes)
    shown = Follower(out / "metrics.jsonl", progress)
    job = {"recipe": recipe.model_dump(mode="json"), "out": str(out), "folder": os.getcwd(), "resume": resume}
    try:
        with tempfile.TemporaryDirectory(prefix="diptych-ray-") as notes:  # Ray's own records of the attempts
            trainer = of_torch.TorchTrainer(
                _worker,
                train_loop_config=job,
                torch_config=of_torch.TorchConfig(backend="nccl" if _gpus(ray) >= processes else "gloo"),
                scaling_config=ray_train.ScalingConfig(num_workers=processes, use_gpu=_gpus(ray) >= processes),
                run_config=ray_train.RunConfig(
                    storage_path=notes, name="run", failure_config=ray_train.FailureConfig(max_failures=restarts)
                ),
            )
            trainer.fit()
    except ray_train.TrainingFailedError as error:
        raise DiptychError(f"{out}: {_reason(error)}; what was saved is kept: continue with --resume") from error
    except (KeyboardInterrupt, SystemExit):  # Ray ends the process on Ctrl-C, with status 1 and without a word
        raise Interrupted(f"{out}: stopped; its last checkpoint is kept: continue with --resume") from None
    finally:
        shown.stop()
        if started:
            ray.shutdown()
    files = RunFiles(out)
    return Run(out, files.recipe(), files.spent())


class Follower:
    """Reads what is added to a file of JSON lines, once a second, in a thread of its own."""

    def __init__(self, path: Path, progress: Progress | None):
        self.path, self.progress, self.stopped = path, progress, threading.Event()
        self.place = path.stat().st_size if path.is_file() else 0  # what an earlier attempt wrote is not shown again
        self.thread = threading.Thread(target=self._follow, daemon=True)
        if progress:
            self.thread.start()

    def _follow(self) -> None:
        while not self.stopped.wait(1):
            self.read()

    def read(self) -> None:
        """Passes on the lines that are whole by now. A file that became shorter was cut to a checkpoint, and is read on from its
        end.
        """
        if self.progress is None or not self.path.is_file():
            return
        with self.path.open("rb") as file:
            self.place = min(self.place, file.seek(0, os.SEEK_END))
            file.seek(self.place)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self.place += len(whole)
        for line in whole.splitlines():
            self.progress(json.loads(line))

    def stop(self) -> None:
        """Ends the thread, and passes on the rest."""
        self.stopped.set()
        if self.thread.is_alive():
            self.thread.join()
        self.read()


def _start(ray: Any, processes: int) -> None:
    """Connects to the cluster of ``RAY_ADDRESS``, or starts one on this machine with a place for each process."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    variables = {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: behind everything else on the machine
    own: dict[str, Any] = {}
    if not os.environ.get("RAY_ADDRESS"):
        own = {"num_cpus": max(processes + 1, os.cpu_count() or 1), "include_dashboard": False}
    ray.init(runtime_env={"env_vars": variables}, log_to_driver=False, logging_level="WARNING", **own)


def _gpus(ray: Any) -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def _worker(job: dict[str, Any]) -> None:
    """One process of the run. Relative addresses of data are those of the folder in which the command was given."""
    from diptych.config.recipe import Recipe
    from diptych.training.checkpoint import checkpoints
    from diptych.training.loop import train

    os.chdir(job["folder"])
    out = Path(job["out"])
    train(Recipe.model_validate(job["recipe"]), out, resume=job["resume"] or bool(checkpoints(out / "checkpoints")))


def _reason(error: BaseException) -> str:
    """The first line of what a worker raised, without Ray's account of where."""
    failures = list(getattr(error, "worker_failures", {}).values())
    first: BaseException = failures[0] if failures else error
    while (cause := getattr(first, "cause", None) or first.__cause__) is not None and cause is not first:
        first = cause
    return str(first).strip().splitlines()[0] if str(first).strip() else type(first).__name__
