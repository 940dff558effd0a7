"""The metrics of each registered task by name, so that a misspelt one is refused before a model is trained for it.

A task of your own declares them as ``metrics: ClassVar[tuple[str, ...]]``; without it, its metrics are not checked.
``*`` stands for a part that depends on the items, such as the name of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from diptych.benchmarks.answers.pope import METRICS as POPE
from diptych.benchmarks.base import Task
from diptych.benchmarks.drawings.drawing import METRICS as DRAWING
from diptych.benchmarks.drawings.drawing import VERSIONS
from diptych.benchmarks.matching.classification import METRICS as CLASSIFICATION
from diptych.benchmarks.matching.controlled import Controlled
from diptych.benchmarks.probes.preferences import METRICS as PREFERENCES
from diptych.benchmarks.tasks import TASKS
from diptych.benchmarks.texts.captions import METRICS as CAPTIONS
from diptych.benchmarks.texts.chair import METRICS as CHAIR
from diptych.benchmarks.texts.facts import METRICS as FACTS
from diptych.benchmarks.video.published import PUBLISHED
from diptych.core.errors import DiptychError, nearest
from diptych.data.scenes.controlled import SKILLS
from diptych.data.scenes.texts.source import SKILLS as OF_TEXT

SELECTIVE = ("risk_coverage_area", "coverage@*_risk", "ece", "brier")
QUESTIONS = ("accuracy", "accuracy/lowest_prompt", "accuracy/highest_prompt", *SELECTIVE)
WAYS = ("image-to-text", "text-to-image")
FREQUENCY = ("correlation", "binned_correlation", "rank_correlation", "slope")
MEMORIZATION = ("precision", "recall", "precision_gap", "recall_gap", "area")
ZEROSHOT = ("top1", "top5", "per_class_recall")
HARMS = ("refused", "harmful", "over_refusal")


def _retrieval(task: Any) -> list[str]:
    return [f"{way}/recall@{k}" for way in WAYS for k in task.ks]


def _video_retrieval(task: Any) -> list[str]:
    return [f"{metric}{end}" for metric in _retrieval(task) for end in ("", "/gain")]


def _temporal(task: Any) -> list[str]:
    ends = [f"{way}{end}" for way in ("", "/text-to-image", "/group") for end in ("", "/gain")]
    return [f"{skill}{end}" for skill in task.skills or ("*",) for end in ends]


def _controlled(task: Any) -> list[str]:
    return [f"{skill}{way}" for skill in task.skills or (*SKILLS, *OF_TEXT) for way in ("", "/text-to-image", "/group")]


NAMES: dict[str, tuple[str, ...] | Callable[[Any], Iterable[str]]] = {
    "retrieval": _retrieval,
    "retrieval-1000": _retrieval,
    "controlled": _controlled,
    "zeroshot": ZEROSHOT,
    "classification": CLASSIFICATION,
    "captions": CAPTIONS,
    "embedding": ("modality_gap", "separability", "matched_cosine"),
    "winoground": ("text", "image", "group"),
    "cola": ("text", "image", "group"),
    "inpaint-coco": ("text", "image", "group"),
    "mmhal": QUESTIONS,
    "pairs": ("accuracy", "macro"),
    "spec": (*WAYS, *(f"*/{way}" for way in WAYS)),
    "vqa": (*QUESTIONS, "accuracy_normalised", "anls"),
    "open": QUESTIONS,
    "read": (*QUESTIONS, "anls", "half_height"),
    "textvqa": QUESTIONS,
    "docvqa": (*QUESTIONS, "anls"),
    "chartqa": (*QUESTIONS, "relaxed_accuracy"),
    "ocrbench": QUESTIONS,
    "choices": (*QUESTIONS, "circular"),
    "mme": (*QUESTIONS, "circular", "* (of 200)"),
    "pope": (*QUESTIONS, *POPE[1:], "auc"),
    "preferences": PREFERENCES,
    "priors": ("accuracy", "corrected"),
    "bias": ("naming", "group_difference", "consistency", "preference/*", "max_skew"),
    "bias-table": ("max_skew@*", "association/*"),
    "redteam": (*HARMS, "harmful_or_unclear", *(f"{harm}/*" for harm in HARMS)),
    "chair": tuple(CHAIR),
    "facts": (*FACTS, "precision", "unread"),
    "drawing": (*(f"{version}{name}" for version in VERSIONS.values() for name in DRAWING), "codes/psnr"),
    "vqascore": ("vqascore", "accuracy"),
    "memorization": MEMORIZATION,
    "frequency": FREQUENCY,
    "video-retrieval": _video_retrieval,
    "temporal": _temporal,
    "moments": ("recall@1", "recall@1/gain"),
    "actions": ("top1", "top1/gain"),
    **dict.fromkeys(("video-questions", *PUBLISHED), (*QUESTIONS, "accuracy/gain", "macro")),
    "video-chatgpt": (*QUESTIONS, "accuracy/gain", "macro", "agreement"),
}


# The ranges of metrics that are no shares, by a part of their names; the others have no limits, or shares those of a share.
RANGES: dict[str, tuple[float | None, float | None]] = {
    "rank_correlation": (-1.0, 1.0), "correlation": (-1.0, 1.0), "cosine": (-1.0, 1.0), "_gap": (-1.0, 1.0), "area": (-1.0, 1.0),
    "/gain": (-1.0, 1.0),
    "modality_gap": (0.0, 2.0),  # the distance of two means of unit vectors
    "nll": (0.0, None), "multiclass_brier": (0.0, 2.0),
    "cider": (0.0, 10.0), "perplexity": (1.0, None), "(of 200)": (0.0, 200.0), "psnr": (0.0, None),
}  # fmt: skip


def metric_range(metric: str, share: bool = True) -> tuple[float | None, float | None]:
    """The least and the greatest value that a metric can have; None: no limit. share: whether it is a share where its name does not
    say otherwise.
    """
    named = [part for part in RANGES if part in metric]
    if named:
        return RANGES[max(named, key=len)]
    return (0.0, 1.0) if share and metric != "slope" else (None, None)


def metric_names(task: Task) -> list[str]:
    """The metrics that a task can have, ``*`` for a part that depends on the items; empty: not known before it runs."""
    declared = getattr(task, "metrics", None)
    if declared is not None:
        return list(declared)
    name = next((name for name, cls in TASKS.items() if type(task) is cls), "")
    names = NAMES.get(name, ())
    return list(names(task) if callable(names) else names)


def has_metric(task: Task, metric: str) -> bool:
    """Whether a task can have a metric; True if its metrics are not known."""
    names = metric_names(task)
    return not names or any(fnmatchcase(metric, name) for name in names)


def check_metric(task: Task, metric: str, where: str, data: Iterable[str]) -> None:
    """Raises DiptychError, with the nearest name, if a task has no such metric. data: addresses; a source may have skills
    of its own.
    """
    if has_metric(task, metric):
        return
    if isinstance(task, Controlled) and not task.skills:
        from diptych.data.sources import open_source

        skills = {skill for address in data for skill in getattr(open_source(address), "skills", ())}
        if skills and has_metric(replace(task, skills=tuple(sorted(skills))), metric):
            return
    names = metric_names(task)
    hint = nearest(metric, names)
    if not hint.startswith("; valid"):
        hint += f" It has {', '.join(names)}"
    raise DiptychError(f"{where}: {task.name} has no metric '{metric}'{hint}")
