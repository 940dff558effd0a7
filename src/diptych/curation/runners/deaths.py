"""Recovery when a worker dies: try the shard again row by row, skip a row that kills a worker twice, in the end fail.

A worker that goes row by row notes its current row in a file, so that the parent knows which row killed it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from diptych.core.errors import DiptychError
from diptych.curation.engine.store import Store
from diptych.curation.engine.work import Task, crumb

TRIES = 3  # deaths without a responsible row


@dataclass
class _History:
    deaths: int = 0
    last: tuple[int, int] | None = None  # the row and step at which the last careful try died
    blamed: tuple[tuple[int, int], ...] = ()


@dataclass
class Deaths:
    """The deaths so far, by task."""

    store: str
    histories: dict[str, _History] = field(default_factory=dict)

    def again(self, task: Task, how: str) -> Task:
        """The task to try next, after a worker died in ``task``. Raises DiptychError after too many deaths; ``how``: the cause."""
        history = self.histories.setdefault(f"{task.kind} {task.label} {task.steps}", _History())
        history.deaths += 1
        at = self._crumb(task) if task.careful else None
        if at is not None and at == history.last:
            history.blamed += (at,)
            at = None
        history.last = at
        if history.deaths - 2 * len(history.blamed) >= TRIES:
            raise DiptychError(
                f"{task.label}: the worker died {history.deaths} times ({how}), perhaps because memory ran out "
                "(--workers 1, a smaller pool.shard). Finished work is kept: run again to resume"
            )
        return replace(task, careful=task.kind == "score", blamed=history.blamed)

    def _crumb(self, task: Task) -> tuple[int, int] | None:
        path = crumb(Store(Path(self.store)), task)
        text = path.read_text() if path.is_file() else ""
        path.unlink(missing_ok=True)
        row, _, step = text.partition(" ")
        return (int(row), int(step)) if row and step else None
