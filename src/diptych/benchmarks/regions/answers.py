"""A model's answers: exactly one box for each phrase, whether it locates or writes boxes as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diptych.benchmarks.base import NotApplicable
from diptych.core.capabilities import Image, Located, Model
from diptych.core.errors import DiptychError, counted
from diptych.core.sample import Box
from diptych.data.regions.conventions import Convention, convention

PROMPT = "Give the bounding box of {phrase} as four numbers."
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FOUR = re.compile(rf"{_NUMBER}(?:[^\d.+-]*[\s,;:|()\[\]<>{{}}\"'=a-zA-Z_][^\d.+-]*{_NUMBER}){{3}}")


class Answer(NamedTuple):
    """Where a model says that a phrase is. more: boxes beyond the first in a written answer, which do not count."""

    box: Box | None
    score: float = 0.0
    heat: np.ndarray | None = None
    mask: np.ndarray | None = None
    by: str = ""
    text: str = ""
    more: int = 0


def ask(
    model: Model, images: Sequence[Image], phrases: Sequence[str], written: Convention | None, prompt: str = PROMPT
) -> list[Answer]:
    """One answer for each picture and phrase. written: the convention of boxes in the model's texts; None: the model locates.

    Raises DiptychError for a model that does not give exactly one box for each: who may give many boxes, and is counted right if
    one of them is, gains by giving many.
    """
    if written is not None:
        texts = model.generate(images, [prompt.format(phrase=phrase) for phrase in phrases], max_tokens=64)
        return [read(text, image, written) for text, image in zip(texts, images, strict=True)]
    found: Sequence[Any] = model.locate(images, phrases)  # type: ignore[attr-defined]  # the task needs it
    if len(found) != len(phrases):
        raise DiptychError(
            f"model '{model.name}' gives {counted(len(found), 'answer')} for {counted(len(phrases), 'phrase')}; `locate` must "
            "return exactly one Located for each, with one box"
        )
    return [_checked(model.name, answer, phrase) for answer, phrase in zip(found, phrases, strict=True)]


def _checked(name: str, given: Any, phrase: str) -> Answer:
    box, score, heat, mask, by = Located(*given)
    if box is not None:
        try:
            edges = [float(edge) for edge in box]
        except (TypeError, ValueError):
            edges = []
        if len(edges) != 4:
            raise DiptychError(
                f"model '{name}': for '{phrase}' the box is {str(box)[:80]}; expected one box of four numbers: left, top, right, "
                "bottom in pixels"
            )
        box = None if not all(map(math.isfinite, edges)) else (edges[0], edges[1], edges[2], edges[3])
    return Answer(box, float(score) if math.isfinite(score) else -math.inf, heat, mask, by)


def numbers_of(text: str) -> list[list[float]]:
    """Every four numbers in a row that a text holds, in order: "[12, 30, 45.5, 60]", "x1=3 y1=4 x2=8 y2=9"."""
    found = []
    for match in _FOUR.finditer(_without_names(text)):
        found.append([float(n) for n in re.findall(_NUMBER, match[0])][:4])
    return found


def _without_names(text: str) -> str:
    """Location tokens as their numbers (<loc0123>), and no digits of names (x1, bbox_2d)."""
    text = re.sub(r"<[A-Za-z_]*?(\d+)>", r" \1 ", text)
    return re.sub(r"(?<![\d.])[A-Za-z_]\w*\d\w*", "", text)


def read(text: str, image: Image, written: Convention) -> Answer:
    """The first box in a text. Further ones are counted in ``more`` and have no effect."""
    found = numbers_of(text)
    if not found:
        return Answer(None, text=text, by="text")
    left, top, right, bottom = written.box(found[0], *image.shape[:2])
    box = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    return Answer(box, text=text, more=len(found) - 1, by="text")


def written_by(model: Model, name: str, task: str) -> Convention | None:
    """How a model's boxes are read: by ``locate`` (None), or from its texts in the convention called ``name``. Raises NotApplicable
    if a model only writes, and no convention is named.
    """
    if name:
        return convention(name, f"{task}: convention")
    if "locate" in model.capabilities:
        return None
    raise NotApplicable(
        f"the model does not locate, it writes: say how it writes boxes, {task}?convention=xyxy/1000 (the task box-convention "
        "finds it out)"
    )
