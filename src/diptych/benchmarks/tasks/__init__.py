"""The tasks, each one short file. A task of your own: ``package.module:Class``."""

from __future__ import annotations

import inspect

from pydantic import TypeAdapter, ValidationError

from diptych.benchmarks.tasks.base import NotApplicable, Task
from diptych.benchmarks.tasks.bias import Bias
from diptych.benchmarks.tasks.bias_table import BiasTable
from diptych.benchmarks.tasks.captions import Captions
from diptych.benchmarks.tasks.chair import Chair
from diptych.benchmarks.tasks.choices import Choices, Mme
from diptych.benchmarks.tasks.controlled import Controlled
from diptych.benchmarks.tasks.drawing import Drawing
from diptych.benchmarks.tasks.embedding import Embedding
from diptych.benchmarks.tasks.facts import Facts
from diptych.benchmarks.tasks.frequency import Frequency
from diptych.benchmarks.tasks.memorization import Memorization
from diptych.benchmarks.tasks.pairs import Pairs
from diptych.benchmarks.tasks.pope import Pope
from diptych.benchmarks.tasks.priors import Priors
from diptych.benchmarks.tasks.redteam import RedTeam
from diptych.benchmarks.tasks.retrieval import LargeRetrieval, Retrieval
from diptych.benchmarks.tasks.spec import Spec
from diptych.benchmarks.tasks.vqa import OpenAnswers, Vqa
from diptych.benchmarks.tasks.vqascore import VqaScore
from diptych.benchmarks.tasks.winoground import Winoground
from diptych.benchmarks.tasks.zeroshot import ZeroShot
from diptych.core.errors import DiptychError, nearest

TASKS: dict[str, type] = {
    "retrieval": Retrieval,
    "retrieval-1000": LargeRetrieval,
    "zeroshot": ZeroShot,
    "controlled": Controlled,
    "captions": Captions,
    "embedding": Embedding,
    "winoground": Winoground,
    "pairs": Pairs,
    "spec": Spec,
    "vqa": Vqa,
    "choices": Choices,
    "mme": Mme,
    "pope": Pope,
    "priors": Priors,
    "bias": Bias,
    "bias-table": BiasTable,
    "redteam": RedTeam,
    "open": OpenAnswers,
    "chair": Chair,
    "facts": Facts,
    "drawing": Drawing,
    "vqascore": VqaScore,
    "memorization": Memorization,
    "frequency": Frequency,
}
# What every model is asked; the others test one thing more deeply.
DEFAULT = ("retrieval", "retrieval-1000", "zeroshot", "controlled", "captions", "embedding")


def chosen(text: str | None) -> list[Task]:
    """Tasks by their names and settings, comma-separated; None: the usual ones; ``all``: every one."""
    names = list(DEFAULT) if not text else list(TASKS) if text.strip() == "all" else text.split(",")
    return [task(name.strip()) for name in names]


def task(text: str) -> Task:
    """A task by its name here or as ``package.module:Class``; with settings: ``controlled?n=200&seed=1``."""
    from urllib.parse import parse_qsl

    from diptych.core.registry import resolve

    name, _, query = text.partition("?")
    cls = resolve(name, TASKS, "task")
    known = [n for n, p in inspect.signature(cls).parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    given: dict[str, list[str]] = {}
    for setting, value in parse_qsl(query, keep_blank_values=True):
        given.setdefault(setting, []).append(value)
        if setting not in known:
            raise DiptychError(f"task '{name}': unknown setting '{setting}'{nearest(setting, known)}")
    settings = {k: v if _takes_several(cls, k) else v[-1] for k, v in given.items()}
    try:
        return TypeAdapter(cls).validate_python(settings) if settings else cls()
    except ValidationError as error:
        problem = error.errors()[0]
        raise DiptychError(
            f"task '{name}': {'.'.join(map(str, problem['loc']))}: {problem['msg']}, got {problem['input']!r}"
        ) from None


def _takes_several(cls: type, setting: str) -> bool:
    """Settings that are tuples are given once for each value: ``skills=colour&skills=size``."""
    return isinstance(getattr(cls, setting, None), tuple)


__all__ = ["DEFAULT", "TASKS", "NotApplicable", "Task", "chosen", "task"]
