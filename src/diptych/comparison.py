"""The main job: recipes trained on the same stream under the same budget and judged on the same items.

Each recipe and seed is a job in a process of its own. With ``jobs`` side by side on a machine of C cores each gets C / jobs threads and
``jobs`` times the seconds, so a second of budget is always a second of the whole machine. Finished parts are kept: a comparison
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from diptych.budget import Budget, parse_budget
from diptych.data.sources import open_source
from diptych.errors import DiptychError
from diptych.files import read_json, write_json, write_text
from diptych.recipe import Recipe, load_recipe
from diptych.training.loop import Interrupted

ITEMS = 100  # pictures kept for the report


@dataclass
class Comparison:
    recipes: list[str]
    data: str
    budget: str
    seeds: int = 1
    out: Path = Path("runs/compare")
    jobs: int | None = None  # None: one a core, up to the number of runs
    set: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    eval_data: str | None = None  # None: the test part of ``data``
    title: str = "Comparison"


@dataclass
class Job:
    label: str
    path: Path
    recipe: Recipe
    eval_data: str | None
    tasks: list[str]
    threads: int
    state: dict[str, Any] = field(default_factory=lambda: {"phase": "waiting", "share": 0.0})
    process: subprocess.Popen | None = None

    def done(self) -> bool:
        """Trained and judged by these tasks already? More tasks cost only themselves: evaluation keeps what it has."""
        from diptych.evaluation.tasks import task

        summary = self.path / "evaluation" / "summary.json"
        if not summary.is_file():
            return False
        judged = read_json(summary)
        return {task(name).name for name in self.tasks} <= {r["task"] for r in (*judged["results"], *judged["skipped"])}


def plan(c: Comparison) -> tuple[list[Job], int]:
    """Every job, checked before any starts, and how many run side by side."""
    from diptych.evaluation.tasks import task

    if not c.recipes:
        raise DiptychError("compare: name at least one recipe")
    if len(set(c.recipes)) < len(c.recipes):
        raise DiptychError("compare: a recipe is named twice; for repeats use --seeds")
    for name in c.tasks:
        task(name)  # a wrong name shall not cost a training first
    budget = parse_budget(c.budget)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = max(1, min(c.jobs or cores, len(c.recipes) * c.seeds))
    each = Budget(**{**asdict(budget), "seconds": budget.seconds * jobs if budget.seconds else None})
    planned = []
    for seed in range(c.seeds):
        for name in c.recipes:
            recipe = load_recipe(name, [f"data.train={c.data}", f"seed={seed}", *c.set]).model_copy(update={"budget": each})
            path = c.out / f"{recipe.name}-s{seed}"
            planned.append(
                Job(
                    f"{recipe.name} s{seed}" if c.seeds > 1 else recipe.name,
                    path,
                    recipe,
                    c.eval_data,
                    c.tasks,
                    max(1, cores // jobs),
                )
            )
    paths = [job.path for job in planned]
    twice = next((job for job in planned if paths.count(job.path) > 1), None)
    if twice:
        raise DiptychError(f"compare: two recipes have the name '{twice.recipe.name}'; give yours another `name:`")
    return planned, jobs


def run_comparison(c: Comparison) -> Path:
    """Run what is not done yet; returns the report. Raises DiptychError if no recipe came through, or some did not."""
    from diptych.evaluation.run import compare_runs, save_items
    from diptych.report import build_report

    planned, jobs = plan(c)
    _check_same(c, planned)
    source = open_source(c.eval_data) if c.eval_data else open_source(c.data).split("test")
    if len(source) < 2:
        raise DiptychError(
            f"{source.address} holds {len(source)} items: nothing to judge on; take more data, or name some with --eval-data"
        )
    describe(c, planned, source)
    save_items(source, c.out / "items", ITEMS)
    failed = _run_jobs(planned, jobs)
    if failed:
        _note_failures(c.out / "compare.json", failed)
    finished = [job.path for job in planned if job.done()]
    if finished:
        write_json(c.out / "tests.json", compare_runs([path / "evaluation" for path in finished]))
        build_report(c.out)
    if failed:
        lines = "\n".join(f"  {job.label}: {job.state.get('error', 'failed')} (log: {job.path / 'log.txt'})" for job in failed)
        raise DiptychError(f"{len(failed)} of {len(planned)} runs failed:\n{lines}")
    return c.out / "report.html"


def _note_failures(path: Path, failed: list[Job]) -> None:
    """Why a recipe has no results, for the report."""
    told = read_json(path)
    for recipe in told["recipes"]:
        reasons = [job.state.get("error", "stopped without a word") for job in failed if job.recipe.name == recipe["name"]]
        if reasons:
            recipe["error"] = reasons[0]
    write_json(path, told)


def _check_same(c: Comparison, planned: list[Job]) -> None:
    """An earlier comparison in the same directory is continued only if it asked for the same."""
    old = c.out / "compare.json"
    if not old.is_file():
        return
    before = read_json(old)
    for key, now in (("data", c.data), ("eval_data", c.eval_data), ("budget", c.budget), ("set", c.set)):
        if before.get(key) != now:
            raise DiptychError(
                f"{c.out} holds a comparison with {key} = {before.get(key)!r}, not {now!r}; choose another --out or delete it"
            )

    for job in planned:
        asked = job.path / "job.yaml"
        if asked.is_file() and load_recipe(str(asked)) != job.recipe:
            raise DiptychError(f"{job.path} holds a run of another recipe under this name; choose another --out or delete it")


def describe(c: Comparison, planned: list[Job], source: Any) -> None:
    from diptych.models.pretrained import WEIGHTS

    used = {"efficientnet": "efficientnet-{variant}", "minilm": "minilm", "gemma": "gemma-3-270m"}
    parts = [part for job in planned for part in job.recipe.parts.values() if part.kind in used]
    names = sorted({used[part.kind].format(**{"variant": "lite0", **part.options}) for part in parts}) + (
        ["openmoji"] if c.data.startswith("scenes:") else []
    )
    first = {job.recipe.name: job for job in reversed(planned)}
    write_json(
        c.out / "compare.json",
        {
            "title": c.title,
            "created": time.strftime("%Y-%m-%d %H:%M"),
            "command": shlex.join(["diptych", *sys.argv[1:]]),
            "data": c.data,
            "eval_data": c.eval_data,
            "data_fingerprint": source.fingerprint(),
            "budget": c.budget,
            "seeds": c.seeds,
            "set": c.set,
            "jobs": len(planned),
            "recipes": [
                {"label": name, **first[name].recipe.model_dump(include={"name", "paradigm", "about", "cite", "score"})}
                for name in dict.fromkeys(job.recipe.name for job in planned)
            ],
            "environment": {"cores": os.cpu_count(), "python": sys.version.split()[0]},
            "licences": [{"part": n, "licence": WEIGHTS[n].licence, "source": WEIGHTS[n].source} for n in names],
        },
    )


# --- running jobs ---


def _run_jobs(planned: list[Job], jobs: int) -> list[Job]:
    """Run them ``jobs`` at a time with a live display; returns those that failed. Ctrl-C saves every run and stops."""
    from diptych.progress import JobsDisplay

    waiting = [job for job in planned if not job.done()]
    for job in planned:
        if job not in waiting:
            job.state = {"phase": "done", "share": 1.0}
    running: list[Job] = []
    failed: list[Job] = []
    events: Queue[tuple[Job, dict[str, Any]]] = Queue()
    try:
        with _terminated_like_interrupted(), JobsDisplay([(job.label, job.state) for job in planned]) as display:
            while waiting or running:
                while waiting and len(running) < jobs:
                    job = waiting.pop(0)
                    _start(job, events)
                    running.append(job)
                try:
                    job, event = events.get(timeout=0.5)
                    job.state.update(event)
                except Empty:
                    pass
                for job in [j for j in running if j.process is not None and j.process.poll() is not None]:
                    running.remove(job)
                    assert job.process is not None
                    _drain(events)
                    ok = job.process.returncode == 0 and job.done()
                    job.state["phase"] = "done" if ok else "failed"
                    if not ok:
                        failed.append(job)
                display.update()
    except KeyboardInterrupt:
        for job in running:
            assert job.process is not None
            job.process.send_signal(signal.SIGTERM)
        for job in running:
            assert job.process is not None
            job.process.wait()
        raise Interrupted("interrupted: every run was saved; the same command goes on where it stopped") from None
    return failed


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM (``timeout``, a container that stops) saves the runs as Ctrl-C does; their processes would not hear of it."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not in the main thread: whoever owns it handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _drain(events: Queue[tuple[Job, dict[str, Any]]]) -> None:
    time.sleep(0.05)  # the reader thread may hold a last line
    while not events.empty():
        job, event = events.get()
        job.state.update(event)


def _start(job: Job, events: Queue[tuple[Job, dict[str, Any]]]) -> None:
    job.path.mkdir(parents=True, exist_ok=True)
    write_text(job.path / "job.yaml", job.recipe.to_yaml())
    threads = str(job.threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    arguments = json.dumps({"path": str(job.path), "eval_data": job.eval_data, "tasks": job.tasks, "name": job.recipe.name})
    log = (job.path / "log.txt").open("w", encoding="utf-8")
    # A session of its own: Ctrl-C reaches this process, which then asks the runs to save.
    job.process = subprocess.Popen(
        [sys.executable, "-m", "diptych.job", arguments],
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        text=True,
        start_new_session=True,
    )
    job.state["phase"] = "starting"

    def read() -> None:
        assert job.process is not None and job.process.stdout is not None
        for line in job.process.stdout:
            try:
                events.put((job, json.loads(line)))
            except json.JSONDecodeError:
                log.write(line)

    threading.Thread(target=read, daemon=True).start()
