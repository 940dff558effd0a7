"""Examples shown before each item (few-shot): drawn by seed from the training part of the data, the same for every item and
control."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable
from diptych.benchmarks.pictures import Crop, load_image
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.source import BrokenItem, Source

TRIES = 100  # training samples tried for each example


def with_examples(task: Any, items: Iterable[Any], source: Source | None) -> Items:
    """A task's items with its ``shots`` examples, each of a different training image, and none of an image that is evaluated.

    ``task.examples(source, sample)`` lists the possible examples of a training sample; one of these is drawn. Raises NotApplicable
    if there are not enough.
    """
    result = Items(items, getattr(items, "problems", ()))
    training = training_part(source, task.train)
    used = {name for item in result for name in _names(item)}
    rng = random.Random(f"{task.seed} shots")
    for sample in _random_samples(training, rng, TRIES * task.shots):
        candidates = [] if used & {*_names(sample), PurePath(sample.id).stem} else list(task.examples(training, sample))
        if candidates:
            result.examples.append(rng.choice(candidates))
            used |= _names(sample)
        if len(result.examples) == task.shots:
            return result
    raise NotApplicable(f"shots={task.shots}: the training part of the data has {len(result.examples)} that can be shown")


def training_part(source: Source | None, train: str = "") -> Source:
    """The training part of the data at the address ``train``, or else of the evaluated data."""
    from diptych.data.sources import open_source

    if train:
        return open_source(train).split("train")
    if source is None:
        raise NotApplicable("shots: there is no data to draw examples from; name their data: &train=ADDRESS")
    try:
        return source.split("train")
    except (DiptychError, AttributeError):  # the data has only another part
        pass
    try:
        return open_source(_without_split(source.address)).split("train")
    except DiptychError as error:
        raise NotApplicable(f"shots: no training part to draw examples from ({error}); &train=ADDRESS names another") from None


def check_examples(model: Model, shots: int) -> None:
    """Raises NotApplicable if the model takes no examples and ``shots`` are set."""
    if shots and "examples" not in model.capabilities:
        raise NotApplicable(f"the model takes no examples (shots={shots}): only a language model reads several images")


def examples_argument(examples: Sequence[Any]) -> dict[str, Any]:
    """The keyword argument for models that take examples; empty without any, for models that take none."""
    return {"examples": examples} if examples else {}


def _without_split(address: str) -> str:
    """An address without ``split``, also in the addresses of a mixture."""
    return re.sub(r"([?&])split=[\w-]+(&?)", lambda match: match[1] if match[2] else "", address)


def _random_samples(source: Source, rng: random.Random, tries: int) -> Iterator[Sample]:
    """Usable samples with an image, in random order, each once."""
    tried: set[int] = set()
    for _ in range(tries):
        if len(tried) == len(source):
            return
        index = rng.randrange(len(source))
        if index in tried:
            continue
        tried.add(index)
        try:
            sample = source[index]
        except BrokenItem:
            continue
        if sample.image is not None:
            yield sample


def _names(item: Any) -> set[Any]:
    """The identifiers of an item's image: its id, and its pixels or the name of its file."""
    image = item.image
    names: set[Any] = {getattr(item, "cluster", item.id)}
    if isinstance(image, Crop):
        image = image.path
    if isinstance(image, bytes):  # a file within the benchmark's file, which has no name
        image = load_image(image, item.id)
    if isinstance(image, np.ndarray):
        names.add((image.shape, image.tobytes()))
    elif isinstance(image, str):
        names.add(PurePath(image).stem)
    return names
