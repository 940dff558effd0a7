"""Who does the work: this process, local processes, or Ray. The result is the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from diptych.core.errors import DiptychError, nearest
from diptych.curation.engine.scoring import Outcome
from diptych.curation.engine.work import Task

RUNNERS = ("local", "inline", "ray")


class Runner(Protocol):
    """Runs tasks that do not depend on each other and gives their outcomes as they come, in any order.

    ``model``: the tasks load a model, so workers should live long. DiptychError: a task cannot be done.
    """

    def map(self, tasks: Sequence[Task], model: bool = False) -> Iterator[tuple[Task, Outcome]]: ...

    def close(self) -> None: ...


def runner(name: str, workers: int | None, plan: dict[str, Any], store: str) -> Runner:
    """The runner called ``name``, with so many workers (default: one a core)."""
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
