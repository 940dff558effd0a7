"""Where tasks run: in this process, in local processes, or with Ray. The result is the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from diptych.core.errors import DiptychError, nearest
from diptych.curation.engine.scoring import Outcome
from diptych.curation.engine.work import Task

RUNNERS = ("local", "inline", "ray")


class Runner(Protocol):
    """Runs independent tasks."""

    def map(self, tasks: Sequence[Task], model: bool = False) -> Iterator[tuple[Task, Outcome]]:
        """Tasks with their outcomes, in the order in which they finish. Raises DiptychError if a task cannot be done.

        model: the tasks load a model, so workers should live long.
        """
        ...

    def close(self) -> None:
        """Ends all workers."""
        ...


def runner(name: str, workers: int | None, plan: dict[str, Any], store: str) -> Runner:
    """The runner ``name`` with this number of workers (default: one for each core)."""
    if name == "local":
        from diptych.curation.runners.local import Local

        return Local(workers, plan, store)
    if name == "inline":
        from diptych.curation.runners.inline import Inline

        return Inline(plan, store)
    if name == "ray":
        from diptych.curation.runners.ray import Ray

        return Ray(workers, plan, store)
    raise DiptychError(f"there is no runner '{name}'{nearest(name, RUNNERS)}")
