"""Tasks run in local processes. One that dies is replaced; ``deaths`` decides about its shard."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.signals import how_it_ended
from diptych.curation.engine.scoring import Outcome
from diptych.curation.engine.work import Task, Worker, answer_to
from diptych.curation.runners.deaths import Deaths


class Local:
    """Runs tasks in processes on this machine."""

    def __init__(self, workers: int | None, plan: dict[str, Any], store: str):
        self.limit = workers or os.cpu_count() or 1
        self.plan, self.store = plan, store
        self.context = multiprocessing.get_context("spawn")  # forking a process with threads may deadlock
        self.running: list[_Process] = []

    def map(self, tasks: Sequence[Task], model: bool = False) -> Iterator[tuple[Task, Outcome]]:
        """See ``Runner``."""
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
                    waiting.appendleft(deaths.again(task, how_it_ended(process.process.exitcode or 0)))
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
            except (BrokenPipeError, ConnectionError):  # died while idle
                idle.join()
                self.running.remove(idle)
                continue
            idle.task = waiting.popleft()

    def _ready(self) -> list[_Process]:
        busy = {p.connection: p for p in self.running if p.task}
        return [busy[c] for c in wait(list(busy)) if isinstance(c, Connection)]

    def close(self) -> None:
        """Ends the processes."""
        for process in self.running:
            process.stop()
        self.running = []


class _Process:
    def __init__(self, context: Any, plan: dict[str, Any], store: str):
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(other_end, plan, store), daemon=True)
        self.process.start()
        other_end.close()
        self.task: Task | None = None

    def join(self) -> None:
        """Closes the pipe, which ends the worker, and waits for its end."""
        self.connection.close()
        self.process.join()

    def stop(self) -> None:
        """Terminates the worker and waits for its end."""
        self.process.terminate()
        self.join()


def _serve(connection: Connection, plan: dict[str, Any], store: str) -> None:
    """The main loop of a worker, until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    worker = Worker(plan, store)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        answer = answer_to(task, lambda: worker)
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionError):
            return
