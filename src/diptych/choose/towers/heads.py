"""The classes of a run that learned class names: their vectors as a head, so that the run names them.

Shapes: N images, C classes, E embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.config.recipe import FieldSpec, Recipe
from diptych.core.arrays import unit_rows
from diptych.core.errors import DiptychError
from diptych.core.sample import class_text, in_template
from diptych.data.sources import open_source
from diptych.data.subsets.shots import Shots
from diptych.inference.adapted import AdaptedModel
from diptych.inference.heads import Head, Linear, Texts
from diptych.inference.run import TrainedModel
from diptych.training.checkpoint import checkpoints

TEMPLATE = "a photo of a {}"
HeadOf = Callable[[TrainedModel, Sequence[str], str], Head]


def template_of(recipe: Recipe) -> str:
    """The text of a class name in a run's training: of the field ``label``, else of its captions (``shots:``, ``classes:``)."""
    declared = recipe.data.fields.get("label")
    if isinstance(declared, FieldSpec) and "template" in declared.options:
        return str(declared.options["template"])
    if recipe.data.train.startswith("shots:"):
        source = open_source(recipe.data.train)
        assert isinstance(source, Shots)
        return source.template
    return TEMPLATE


def class_texts(model: TrainedModel, names: Sequence[str], template: str = "") -> list[str]:
    """The text of each class name in a template; default: that of the run's training."""
    template = template or template_of(model.recipe)
    return [in_template(template, class_text(name)) for name in names]


def class_vectors(model: TrainedModel, names: Sequence[str], template: str = "") -> np.ndarray:
    """The unit vector of each class name in a template, as ``class_texts``, float32 [C, E]."""
    return unit_rows(model.embed_text(class_texts(model, names, template)))


def class_head(model: TrainedModel, names: Sequence[str], template: str = "") -> Head:
    """Scaled cosines with the vectors of class names, to which other classes can be added by their names; of a model in which a
    class has no vector of its own, its scores of images with their texts.
    """
    if model.recipe.score != "similarity":
        return Texts(tuple(class_texts(model, names, template)), model.scale)
    weight = (model.scale * class_vectors(model, names, template)).astype(np.float32)
    return Linear(weight, np.zeros(len(names), dtype=np.float32), open=True)


def note_classes(
    run: Path, names: Sequence[str], about: dict[str, Any] | None = None, head_of: HeadOf | None = None
) -> AdaptedModel:
    """Write the classes that a run learned beside it (adapted.json), so that ``dp.load(run)`` names them, and give that model.

    head_of: how it names them, from the model, the names and the template; None: ``class_head``.
    """
    model = TrainedModel.load(run, "cpu")
    template = template_of(model.recipe)
    digest = hashlib.blake2b(repr((list(names), template)).encode(), digest_size=6).hexdigest()
    known = {**(about or {}), "template": template, "way": model.recipe.name, "id": digest}
    adapted = AdaptedModel(run.name, model, (head_of or class_head)(model, names, template), names, about=known)
    adapted.save(run, str(checkpoints(run / "checkpoints")[-1]))
    return adapted


def labelled_pictures(source: Any, most: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """The pictures of a source that have a class, and their classes, int [N]. most: only so many, evenly spread; 0: all. Items that
    cannot be read are left out. DiptychError if there are none.
    """
    from diptych.data.source import BrokenItem

    step = max(1.0, len(source) / most) if most else 1.0
    images, classes = [], []
    for i in dict.fromkeys(int(k * step) for k in range(int(len(source) / step))):
        try:
            sample = source[i]
        except BrokenItem:
            continue
        label = sample.fields.get("label")
        if label is not None and sample.image is not None:
            images.append(sample.image)
            classes.append(label.index)
    if not images:
        raise DiptychError(f"{source.address}: no pictures with a class")
    return images, np.array(classes)
