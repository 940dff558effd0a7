"""Scores of models on held-out pictures of the training data; never on test pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.metrics.ranking import recall_at, standing
from diptych.choose.select import balanced_accuracy
from diptych.choose.towers.heads import class_head, labelled_pictures
from diptych.core.errors import DiptychError
from diptych.data.source import BrokenItem, Controlled, Source
from diptych.data.sources import open_source
from diptych.data.subsets.shots import Shots
from diptych.inference.run import TrainedModel
from diptych.training.run_files import RunFiles


def held_out(run: Path, data: str | None = None) -> Source:
    """The validation part of the data, or of what a run was trained on. DiptychError if nothing of it is held out."""
    address = data or RunFiles(run).recipe().data.train
    source = open_source(address)
    if isinstance(source, Shots) and not source.hold and data is None:
        raise DiptychError(
            f"{run} learned from all of its few pictures of each class, so none is held out; adapt with --set hold=0.25, or name "
            "other pictures by --data"
        )
    held = source.split("validation")
    if len(held) < 2:
        raise DiptychError(f"{address}: its validation part has {len(held)} pictures; give data with two or more")
    return held


def scorer(held: Source, most: int = 1000) -> Callable[[TrainedModel], float]:
    """How well a model does on at most so many pictures: balanced accuracy by class names where each has a class, else the mean of
    recall at 1 in both directions.
    """
    names = getattr(held, "classes", None)
    if names and not isinstance(held, Controlled):  # of the built-in world, some scenes have a class; all have captions
        images, y = labelled_pictures(held, most)
        return lambda model: balanced_accuracy(class_head(model, names).logits_of(model, images), y)
    pictures, texts = _captioned(held, most)
    positive = np.array(texts)[:, None] == np.array(texts)[None, :]

    def recall(model: TrainedModel) -> float:
        """The mean of both directions; captions that are equal are right for each other's pictures."""
        scores = np.asarray(model.score(pictures, texts))
        sides = (scores, positive), (scores.T, positive.T)
        return float(np.mean([recall_at(1, *standing(matrix, right)).mean() for matrix, right in sides]))

    return recall


def _captioned(source: Any, most: int) -> tuple[list[np.ndarray], list[str]]:
    """The first pictures with captions, and the first caption of each."""
    pictures: list[np.ndarray] = []
    texts: list[str] = []
    for i in range(len(source)):
        if len(texts) == most:
            break
        try:
            sample = source[i]
        except BrokenItem:
            continue
        if sample.image is not None and sample.captions:
            pictures.append(sample.image)
            texts.append(sample.captions[0])
    if len(texts) < 2:
        raise DiptychError(f"{source.address}: fewer than two pictures with a caption or a class")
    return pictures, texts
