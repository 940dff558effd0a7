"""The tasks, each one short file. A task of your own: ``package.module:Class``."""

from __future__ import annotations

import inspect

from pydantic import TypeAdapter, ValidationError

from diptych.errors import DiptychError, nearest
from diptych.evaluation.tasks.base import NotApplicable, Task
from diptych.evaluation.tasks.bias import Bias
from diptych.evaluation.tasks.bias_table import BiasTable
from diptych.evaluation.tasks.captions import Captions
from diptych.evaluation.tasks.chair import Chair
from diptych.evaluation.tasks.choices import Choices, Mme
from diptych.evaluation.tasks.controlled import Controlled
from diptych.evaluation.tasks.drawing import Drawing
from diptych.evaluation.tasks.embedding import Embedding
from diptych.evaluation.tasks.facts import Facts
from diptych.evaluation.tasks.frequency import Frequency
from diptych.evaluation.tasks.memorization import Memorization
from diptych.evaluation.tasks.pairs import Pairs
from diptych.evaluation.tasks.pope import Pope
from diptych.evaluation.tasks.priors import Priors
from diptych.evaluation.tasks.redteam import RedTeam
from diptych.evaluation.tasks.retrieval import LargeRetrieval, Retrieval
from diptych.evaluation.tasks.spec import Spec
from diptych.evaluation.tasks.vqa import OpenAnswers, Vqa
from diptych.evaluation.tasks.vqascore import VqaScore
from diptych.evaluation.tasks.winoground import Winoground
from diptych.evaluation.tasks.zeroshot import ZeroShot

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

    from diptych.registry import resolve

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
