"""Tasks run in this process, which is easy to debug."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from diptych.curation.engine.scoring import Outcome
from diptych.curation.engine.work import Task, Worker


class Inline:
    """Runs tasks in this process."""

    def __init__(self, plan: dict[str, Any], store: str):
        self.worker = Worker(plan, store)

    def map(self, tasks: Sequence[Task], model: bool = False) -> Iterator[tuple[Task, Outcome]]:
        """See ``Runner``."""
        for task in tasks:
            yield task, self.worker.do(task)

    def close(self) -> None:
        """Does nothing."""
        pass
