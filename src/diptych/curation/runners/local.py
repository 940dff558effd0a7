"""Local processes. One that dies costs its shard another try; a shard that kills its worker again and again is named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from diptych.curation.work import Outcome, Task, Worker
from diptych.errors import DiptychError

TRIES = 3  # of a task whose worker dies


class Local:
    def __init__(self, workers: int | None, plan: dict[str, Any], store: str):
        self.limit = workers or os.cpu_count() or 1
        self.plan, self.store = plan, store
        self.context = multiprocessing.get_context("spawn")  # forking a process with threads may lock it up
        self.running: list[_Process] = []

    def map(self, tasks: Sequence[Task], model: bool = False) -> Iterator[tuple[Task, Outcome]]:
        waiting = deque(tasks)
        tries: dict[Task, int] = {}
        while waiting or any(p.task for p in self.running):
            self._assign(waiting)
            for process in self._ready():
                task = process.task
                assert task
                try:
                    error, outcome = process.connection.recv()
                except (EOFError, ConnectionError):
                    process.join()
                    self.running.remove(process)
                    tries[task] = tries.get(task, 0) + 1
                    if tries[task] >= TRIES:
                        raise DiptychError(self._obituary(task, process)) from None
                    waiting.appendleft(task)
                    continue
                process.task = None
                if error:
                    raise DiptychError(f"{task.label}: {error}")
                yield task, outcome

    def _assign(self, waiting: deque[Task]) -> None:
        while waiting:
            idle = next((p for p in self.running if p.task is None), None)
            if idle is None and len(self.running) < self.limit:
                idle = _Process(self.context, self.plan, self.store)
                self.running.append(idle)
            if idle is None:
                return
            try:
                idle.connection.send(waiting[0])
            except (BrokenPipeError, ConnectionError):  # died while it had nothing to do
                idle.join()
                self.running.remove(idle)
                continue
            idle.task = waiting.popleft()

    def _ready(self) -> list[_Process]:
        busy = {p.connection: p for p in self.running if p.task}
        return [busy[c] for c in wait(list(busy)) if isinstance(c, Connection)]

    def _obituary(self, task: Task, process: _Process) -> str:
        code = process.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        remedy = (
            "was memory short? (--workers 1, a smaller pool.shard)"
            if code == -signal.SIGKILL
            else "its rows break an operator's library"
        )
        return f"{task.label}: the worker died {TRIES} times ({how}); {remedy}. What is done is kept: run again to go on"

    def close(self) -> None:
        for process in self.running:
            process.stop()
        self.running = []


class _Process:
    def __init__(self, context: Any, plan: dict[str, Any], store: str):
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, plan, store), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Task | None = None

    def join(self) -> None:
        self.connection.close()
        self.process.join()

    def stop(self) -> None:
        self.process.terminate()
        self.join()


def _serve(connection: Connection, plan: dict[str, Any], store: str) -> None:
    """The life of a worker: until whoever started it closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    worker = Worker(plan, store)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[str, Outcome | None] = ("", worker.do(task))
        except (DiptychError, OSError) as error:
            answer = (explained(error), None)
        except MemoryError:
            answer = ("out of memory; fewer --workers or a smaller pool.shard need less", None)
        except Exception as error:  # a fault of ours or of an operator's: its place is worth seeing
            traceback.print_exc()
            answer = (f"{type(error).__name__}: {error}", None)
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionError):
            return


def explained(error: Exception) -> str:
    """What went wrong and the remedy, of errors that are the surroundings' fault."""
    import errno

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error}: nothing was half-written; make room and run again to go on"
    return str(error)
