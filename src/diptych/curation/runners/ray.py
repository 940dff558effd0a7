"""Tasks run on Ray: as remote tasks, or as actors if they load a model. All nodes must share the store."""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.curation.engine.scoring import Outcome
from diptych.curation.engine.work import Answer, Task, Worker, answer_to
from diptych.curation.runners.deaths import Deaths


class Ray:
    """Runs tasks on the cluster at ``RAY_ADDRESS``, or on a local one that it starts."""

    def __init__(self, workers: int | None, plan: dict[str, Any], store: str):
        ray = need("ray", extra="ray", what="the runner 'ray'")
        self.ray = ray
        self.own = not ray.is_initialized()
        if self.own:
            paths = {"env_vars": {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}}  # the user's own operators
            where: dict[str, Any] = {"address": os.environ["RAY_ADDRESS"]} if os.environ.get("RAY_ADDRESS") else {}
            if not where:
                where = {"num_cpus": workers or os.cpu_count() or 1, "include_dashboard": False}
            try:
                ray.init(logging_level=logging.WARNING, log_to_driver=False, runtime_env=paths, **where)
            except ConnectionError as error:
                raise DiptychError(f"no Ray cluster at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: {error}") from error
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.plan, self.store = plan, os.path.abspath(store)
        self.task = ray.remote(num_cpus=1, max_retries=0)(_do)
        self.actor = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Actor)
        self.actors: list[Any] = []
        errors = ray.exceptions
        self.deadly = (errors.WorkerCrashedError, errors.RayActorError, errors.OutOfMemoryError)

    def map(self, tasks: Sequence[Task], model: bool = False) -> Iterator[tuple[Task, Outcome]]:
        """See ``Runner``."""
        waiting, deaths = deque(tasks), Deaths(self.store)
        running: dict[Any, tuple[Task, Any]] = {}
        if model:
            while len(self.actors) < min(self.workers, len(tasks)):
                self._actor()
        elif self.actors:  # free their cores and memory for the tasks
            for actor in self.actors:
                self.ray.kill(actor)
            self.actors = []
        idle: deque[Any] = deque(self.actors if model else [None] * self.workers)
        while waiting or running:
            while waiting and idle:
                task, actor = waiting.popleft(), idle.popleft()
                started = actor.do.remote(task) if actor is not None else self.task.remote(self.plan, self.store, task)
                running[started] = (task, actor)
            done, _ = self.ray.wait(list(running), num_returns=1)
            task, actor = running.pop(done[0])
            try:
                error, outcome = self.ray.get(done[0])
            except self.deadly as crash:
                waiting.appendleft(deaths.again(task, type(crash).__name__))
                if actor is not None:
                    self.actors.remove(actor)
                    actor = self._actor()
                idle.append(actor)
                continue
            if error:
                raise DiptychError(f"{task.label}: {error}")
            idle.append(actor)
            yield task, outcome

    def _actor(self) -> Any:
        self.actors.append(self.actor.remote(self.plan, self.store))
        return self.actors[-1]

    def close(self) -> None:
        """Ends the actors, and the cluster if it was started here."""
        for actor in self.actors:
            self.ray.kill(actor)
        if self.own:
            self.ray.shutdown()


@lru_cache(maxsize=2)
def _worker(plan: str, store: str) -> Worker:
    import yaml

    return Worker(yaml.safe_load(plan), store)


def _do(plan: dict[str, Any], store: str, task: Task) -> Answer:
    """The outcome of a task; the process keeps its worker for the next one."""
    import yaml

    return answer_to(task, lambda: _worker(yaml.safe_dump(plan), store))


class _Actor:
    def __init__(self, plan: dict[str, Any], store: str):
        self.plan, self.store = plan, store

    def do(self, task: Task) -> Answer:
        """The outcome of a task, as ``_do`` returns it."""
        return _do(self.plan, self.store, task)
