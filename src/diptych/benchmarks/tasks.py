"""The registered tasks by name. A task of your own: ``package.module:Class``."""

from __future__ import annotations

import inspect

from pydantic import TypeAdapter, ValidationError

from diptych.benchmarks.answers.choices import Choices
from diptych.benchmarks.answers.mme import Mme
from diptych.benchmarks.answers.open_answers import OpenAnswers
from diptych.benchmarks.answers.pope import Pope
from diptych.benchmarks.answers.vqa import Vqa
from diptych.benchmarks.answers.vqascore import VqaScore
from diptych.benchmarks.base import Task
from diptych.benchmarks.drawings.drawing import Drawing
from diptych.benchmarks.instructions.task import INSTRUCTIONS
from diptych.benchmarks.matching.classification import Classification
from diptych.benchmarks.matching.controlled import Controlled
from diptych.benchmarks.matching.pairs import Pairs
from diptych.benchmarks.matching.retrieval import LargeRetrieval, Retrieval
from diptych.benchmarks.matching.spec import Spec
from diptych.benchmarks.matching.winoground import Winoground
from diptych.benchmarks.matching.zeroshot import ZeroShot
from diptych.benchmarks.probes.bias import Bias
from diptych.benchmarks.probes.bias_table import BiasTable
from diptych.benchmarks.probes.embedding import Embedding
from diptych.benchmarks.probes.frequency import Frequency
from diptych.benchmarks.probes.memorization import Memorization
from diptych.benchmarks.probes.preferences import Preferences
from diptych.benchmarks.probes.priors import Priors
from diptych.benchmarks.reading.published import PUBLISHED as READING
from diptych.benchmarks.reading.read import Read
from diptych.benchmarks.redteam.task import RedTeam
from diptych.benchmarks.regions.cards import BoxConvention
from diptych.benchmarks.regions.crops import Crops
from diptych.benchmarks.regions.detection import OpenVocabulary
from diptych.benchmarks.regions.pointing import Pointing
from diptych.benchmarks.regions.published import Cola, InpaintCoco, Mmhal
from diptych.benchmarks.regions.refer import Phrase, Refer
from diptych.benchmarks.regions.segmentation import ReferMasks, Segmentation
from diptych.benchmarks.texts.captions import Captions
from diptych.benchmarks.texts.chair import Chair
from diptych.benchmarks.texts.completion import Completion
from diptych.benchmarks.texts.facts import Facts
from diptych.benchmarks.video.actions import Actions
from diptych.benchmarks.video.asked import ClipQuestions
from diptych.benchmarks.video.moments import Moments
from diptych.benchmarks.video.published import PUBLISHED
from diptych.benchmarks.video.retrieval import VideoRetrieval
from diptych.benchmarks.video.temporal import Temporal
from diptych.core.errors import DiptychError, nearest

TASKS: dict[str, type] = {
    "retrieval": Retrieval,
    "retrieval-1000": LargeRetrieval,
    "zeroshot": ZeroShot,
    "classification": Classification,
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
    "preferences": Preferences,
    "priors": Priors,
    "bias": Bias,
    "bias-table": BiasTable,
    "redteam": RedTeam,
    "open": OpenAnswers,
    "chair": Chair,
    "facts": Facts,
    "completion": Completion,
    "drawing": Drawing,
    "vqascore": VqaScore,
    "memorization": Memorization,
    "frequency": Frequency,
    "video-retrieval": VideoRetrieval,
    "temporal": Temporal,
    "moments": Moments,
    "actions": Actions,
    "refer": Refer,
    "phrase": Phrase,
    "pointing": Pointing,
    "refer-masks": ReferMasks,
    "segmentation": Segmentation,
    "open-vocabulary": OpenVocabulary,
    "crops": Crops,
    "box-convention": BoxConvention,
    "cola": Cola,
    "inpaint-coco": InpaintCoco,
    "mmhal": Mmhal,
    "video-questions": ClipQuestions,
    **PUBLISHED,
    **INSTRUCTIONS,
    "read": Read,
    **READING,
}
# Run if no task is named; the others test one thing in more detail.
DEFAULT = ("retrieval", "retrieval-1000", "zeroshot", "controlled", "captions", "embedding")


def chosen(text: str | None) -> list[Task]:
    """The tasks of a comma-separated list of names with settings; None: ``DEFAULT``; ``all``: every registered one."""
    return [task(name) for name in addresses(text)]


def addresses(text: str | None) -> list[str]:
    """The addresses of a comma-separated list, unchecked; None: ``DEFAULT``; ``all``: every registered one."""
    if not text:
        return list(DEFAULT)
    return list(TASKS) if text.strip() == "all" else [name.strip() for name in text.split(",")]


def task(text: str) -> Task:
    """The task of a name here or ``package.module:Class``, perhaps with settings: ``controlled?n=200&seed=1``.

    Raises DiptychError for an unknown task or setting, or an invalid value.
    """
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
    settings = {k: v if _is_tuple(cls, k) else v[-1] for k, v in given.items()}
    try:
        made: Task = TypeAdapter(cls).validate_python(settings) if settings else cls()
        return made
    except ValidationError as error:
        problem = error.errors()[0]
        raise DiptychError(
            f"task '{name}': {'.'.join(map(str, problem['loc']))}: {problem['msg']}, got {problem['input']!r}"
        ) from None


def _is_tuple(cls: type, setting: str) -> bool:
    """Whether a setting is given once for each value: ``skills=colour&skills=size``."""
    return isinstance(getattr(cls, setting, None), tuple)
