"""What to do when a worker dies over a shard: try again, row by row; leave out a row that kills twice; in the end, give up by name.

While a worker goes row by row it leaves a crumb, the place of the row it is at, so that whoever finds it dead knows which one it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from diptych.core.errors import DiptychError
from diptych.curation.engine.store import Store
from diptych.curation.engine.work import Task, crumb

TRIES = 3  # deaths that no row explains


@dataclass
class _History:
    deaths: int = 0
    last: tuple[int, int] | None = None  # the row and step at which the last careful try died
    blamed: tuple[tuple[int, int], ...] = ()


@dataclass
class Deaths:
    """The deaths so far, task by task."""

    store: str
    histories: dict[str, _History] = field(default_factory=dict)

    def again(self, task: Task, how: str) -> Task:
        """The task to be tried next, after a worker died over ``task``. DiptychError if there is no hope; ``how``: it died."""
        history = self.histories.setdefault(f"{task.kind} {task.label} {task.steps}", _History())
        history.deaths += 1
        at = self._crumb(task) if task.careful else None
        if at is not None and at == history.last:
            history.blamed += (at,)
            at = None
        history.last = at
        if history.deaths - 2 * len(history.blamed) >= TRIES:
            raise DiptychError(
                f"{task.label}: the worker died {history.deaths} times ({how}); was memory short? (--workers 1, a smaller pool.shard). "
                "What is done is kept: run again to go on"
            )
        return replace(task, careful=task.kind == "score", blamed=history.blamed)

    def _crumb(self, task: Task) -> tuple[int, int] | None:
        path = crumb(Store(Path(self.store)), task)
        text = path.read_text() if path.is_file() else ""
        path.unlink(missing_ok=True)
        row, _, step = text.partition(" ")
        return (int(row), int(step)) if row and step else None
