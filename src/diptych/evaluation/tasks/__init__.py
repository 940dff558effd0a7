"""The tasks, each one short file. A task of your own: ``package.module:Class``."""

from __future__ import annotations

from diptych.evaluation.tasks.base import NotApplicable, Task
from diptych.evaluation.tasks.captions import Captions
from diptych.evaluation.tasks.controlled import Controlled
from diptych.evaluation.tasks.embedding import Embedding
from diptych.evaluation.tasks.retrieval import LargeRetrieval, Retrieval
from diptych.evaluation.tasks.zeroshot import ZeroShot

TASKS: dict[str, type] = {
    "retrieval": Retrieval,
    "retrieval-1000": LargeRetrieval,
    "zeroshot": ZeroShot,
    "controlled": Controlled,
    "captions": Captions,
    "embedding": Embedding,
}


def task(name: str) -> Task:
    """A task with its default settings, by its name here or as ``package.module:Class``."""
    from diptych.registry import resolve

    return resolve(name, TASKS, "task")()


__all__ = ["TASKS", "NotApplicable", "Task", "task"]
