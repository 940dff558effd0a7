"""Examples shown before each item (few-shot): drawn by seed from the training part of the data, the same for every item and its controls."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from diptych.benchmarks.tasks.base import Items, NotApplicable
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.source import BrokenItem, Source

TRIES = 100  # training samples looked at for each example


def with_examples(task: Any, items: Iterable[Any], source: Source | None) -> Items:
    """A task's items with its ``shots`` examples, each of another training image and none of an image that is judged.

    ``task.examples(source, sample)`` says what of a training sample can be shown; one thing of that is drawn. NotApplicable if there are not enough.
    """
    found = Items(items, getattr(items, "problems", ()))
    part = training_part(source, task.train)
    judged = {name for item in found for name in _names(item)}
    rng = random.Random(f"{task.seed} shots")
    for sample in _drawn(part, rng, TRIES * task.shots):
        known = judged & {*_names(sample), PurePath(sample.id).stem}
        choice = [] if known else list(task.examples(part, sample))
        if choice:
            found.examples.append(rng.choice(choice))
            judged |= _names(sample)
        if len(found.examples) == task.shots:
            return found
    raise NotApplicable(f"shots={task.shots}: the training part of the data has {len(found.examples)} that can be shown")


def training_part(source: Source | None, train: str = "") -> Source:
    """That of the address ``train``, else of the data whose other part is judged."""
    from diptych.data.sources import open_source

    if train:
        return open_source(train).split("train")
    if source is None:
        raise NotApplicable("shots: there is no data to draw examples from; say where they come from: &train=ADDRESS")
    try:
        return source.split("train")
    except (DiptychError, AttributeError):  # only another part
        pass
    try:
        return open_source(_whole(source.address)).split("train")
    except DiptychError as error:
        raise NotApplicable(f"shots: no training part to draw examples from ({error}); &train=ADDRESS names another") from None


def check_takes(model: Model, shots: int) -> None:
    if shots and "examples" not in model.capabilities:
        raise NotApplicable(f"the model takes no examples (shots={shots}): only a language model reads several images")


def told(examples: Sequence[Any]) -> dict[str, Any]:
    """As an argument of models that take examples; nothing for the others."""
    return {"examples": examples} if examples else {}


def _whole(address: str) -> str:
    """An address without the part that it, or what it is mixed of, names."""
    return re.sub(r"([?&])split=[\w-]+(&?)", lambda found: found[1] if found[2] else "", address)


def _drawn(source: Source, rng: random.Random, most: int) -> Iterator[Sample]:
    """Usable samples with an image in random order, none twice."""
    seen: set[int] = set()
    for _ in range(most):
        if len(seen) == len(source):
            return
        index = rng.randrange(len(source))
        if index in seen:
            continue
        seen.add(index)
        try:
            sample = source[index]
        except BrokenItem:
            continue
        if sample.image is not None:
            yield sample


def _names(item: Any) -> set[Any]:
    """By what a judged item's image is known: its name, and its pixels or the name of its file."""
    image = item.image
    names: set[Any] = {getattr(item, "cluster", item.id)}
    if isinstance(image, np.ndarray):
        names.add((image.shape, image.tobytes()))
    elif isinstance(image, str):
        names.add(PurePath(image).stem)
    return names
