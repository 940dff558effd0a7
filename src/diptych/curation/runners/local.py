"""Local processes. One that dies is replaced; ``deaths`` says what becomes of its shard."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from diptych.core.errors import DiptychError
from diptych.curation.engine.scoring import Outcome
from diptych.curation.engine.work import Task, Worker
from diptych.curation.runners.deaths import Deaths


class Local:
    def __init__(self, workers: int | None, plan: dict[str, Any], store: str):
        self.limit = workers or os.cpu_count() or 1
        self.plan, self.store = plan, store
        self.context = multiprocessing.get_context("spawn")  # forking a process with threads may lock it up
        self.running: list[_Process] = []

    def map(self, tasks: Sequence[Task], model: bool = False) -> Iterator[tuple[Task, Outcome]]:
        waiting = deque(tasks)
        deaths = Deaths(self.store)
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
                    waiting.appendleft(deaths.again(task, process.how_it_ended()))
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

    def how_it_ended(self) -> str:
        code = self.process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

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
