"""Jobs in their own processes, some in parallel, with a live display; finished jobs are kept when the work is interrupted.

A job of a comparison or a study is ``python -m MODULE ARGUMENTS``. It sends its progress on standard output, one JSON object per
line (``send``); any other line that it prints goes into ``log.txt``. On SIGTERM it saves and ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from diptych.config.budget import Budget
from diptych.core.errors import DiptychError, Interrupted, counted
from diptych.core.signals import terminated_like_interrupted


@dataclass
class Job:
    """A process to run. Subclasses define its ``module``, its ``arguments`` and when it is ``done``."""

    label: str
    path: Path  # its directory
    threads: int
    state: dict[str, Any] = field(default_factory=lambda: {"phase": "waiting", "share": 0.0}, kw_only=True)
    process: subprocess.Popen[str] | None = field(default=None, kw_only=True)
    module = "diptych.comparison.job"

    def arguments(self) -> dict[str, Any]:
        """The JSON arguments of the process."""
        raise NotImplementedError

    def done(self) -> bool:
        """Whether all of its results exist."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Writes the files that the process reads."""


Events = Queue[tuple[Job, dict[str, Any]]]


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(wanted: int | None, runs: int) -> tuple[int, int]:
    """How many jobs run at a time (``wanted``; None: one for each core), and the threads of each."""
    side_by_side = max(1, min(wanted or cores(), runs))
    return side_by_side, max(1, cores() // side_by_side)


def budget_each(budget: Budget, side_by_side: int) -> Budget:
    """The budget of one job. Seconds count for the whole machine, so one of n parallel jobs gets n times the seconds."""
    return replace(budget, seconds=budget.seconds * side_by_side if budget.seconds else None)


def send(**event: Any) -> None:
    """Sends the progress of this job: its ``phase``, the ``share`` that is done, the ``error`` if it failed."""
    print(json.dumps(event), flush=True)


def event_of(line: str) -> dict[str, Any] | None:
    """The progress in a line that a job printed; None for any other line, such as a number that a library prints."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("phase"), str) else None


def main_of_job(run: Callable[[dict[str, Any]], None]) -> int:
    """The exit status of ``run(arguments)``, the main function of a job's module; a DiptychError is sent to the parent."""
    try:
        run(json.loads(sys.argv[1]))
    except DiptychError as error:
        send(phase="failed", error=str(error))
        print(error, file=sys.stderr)
        return 1
    return 0


def run_jobs(
    planned: Sequence[Job],
    side_by_side: int,
    *,
    seconds: float | None = None,
    finished: Callable[[Job], None] = lambda job: None,
) -> list[Job]:
    """The jobs that failed, after all that were not done have run, in this order. Ctrl-C and SIGTERM save every job and stop.

    seconds: after this time every job is saved and stopped too. finished: called with each job that has just been done.
    """
    from diptych.core.progress import JobsDisplay

    waiting = [job for job in planned if not job.done()]
    for job in planned:
        if job not in waiting:
            job.state = {"phase": "done", "share": 1.0}
    running: list[Job] = []
    failed: list[Job] = []
    events: Events = Queue()
    end = None if seconds is None else time.monotonic() + seconds
    try:
        with terminated_like_interrupted(), JobsDisplay([(job.label, job.state) for job in planned]) as display:
            while waiting or running:
                if end is not None and time.monotonic() > end:
                    raise KeyboardInterrupt
                while waiting and len(running) < side_by_side:
                    job = waiting.pop(0)
                    running.append(job)  # first: an interruption may come while it starts
                    _start(job, events)
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
                    else:
                        finished(job)
                display.update()
    except BaseException as error:  # no job runs on after its parent
        _stop(running)
        if not isinstance(error, KeyboardInterrupt):
            raise
        raise Interrupted("interrupted: every run was saved; the same command continues where it stopped") from None
    return failed


def why_failed(failed: Sequence[Job], planned: Sequence[Job]) -> str:
    """A message with the error and the log of each failed job."""
    lines = "\n".join(f"  {job.label}: {job.state.get('error', 'failed')} (log: {job.path / 'log.txt'})" for job in failed)
    return f"{len(failed)} of {counted(len(planned), 'run')} failed:\n{lines}"


def _stop(running: Sequence[Job]) -> None:
    """Asks every job to save and end, then waits for all of them."""
    started = [job.process for job in running if job.process is not None]
    for process in started:
        process.send_signal(signal.SIGTERM)
    for process in started:
        process.wait()


def _drain(events: Events) -> None:
    time.sleep(0.05)  # the reader thread may hold a last line
    while not events.empty():
        job, event = events.get()
        job.state.update(event)


def _start(job: Job, events: Events) -> None:
    job.path.mkdir(parents=True, exist_ok=True)
    job.prepare()
    threads = str(job.threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    log = (job.path / "log.txt").open("w", encoding="utf-8")
    # In its own session: Ctrl-C reaches this process only, which then stops the jobs in order.
    job.process = subprocess.Popen(
        [sys.executable, "-m", job.module, json.dumps(job.arguments())],
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        text=True,
        start_new_session=True,
    )
    job.state["phase"] = "starting"

    def read() -> None:
        """Puts the events that the job prints into the queue, and its other lines into the log."""
        assert job.process is not None and job.process.stdout is not None
        with log:
            for line in job.process.stdout:
                event = event_of(line)
                if event is None:
                    log.write(line)
                    log.flush()  # in order with what the job writes to standard error
                else:
                    events.put((job, event))

    threading.Thread(target=read, daemon=True).start()
