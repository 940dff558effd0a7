"""Any model that names classes: one that learned them, or one that compares images with the names of classes as texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Classifying, Image, Model
from diptych.core.errors import DiptychError, counted
from diptych.inference.adapted import AdaptedModel

TextsOf = Callable[[Sequence[str]], list[list[str]]]  # names of classes → the texts of each
SCALE = 100.0  # of cosines, where a model does not say: what CLIP's training ends at


@dataclass(frozen=True)
class Classifier:
    """Names of classes, and a function from images to their probabilities, float [N, C].

    learned: whether the model learned these classes from pictures. vectors and judge: the two steps of ``probabilities``, of a
    model that judges all images together (``Head.together``): vectors of images in parts, then all of them in one call. None for
    others.
    """

    names: tuple[str, ...]
    probabilities: Callable[[Sequence[Image]], np.ndarray]
    learned: bool
    vectors: Callable[[Sequence[Image]], np.ndarray] | None = None
    judge: Callable[[np.ndarray], np.ndarray] | None = None


def classifier_of(model: Model, address: str, classes: str | None, texts_of: TextsOf) -> Classifier:
    """How a model names classes. classes: as ``--classes`` has them, None for the model's own; texts_of: the texts of each class.

    A model without vectors that scores texts for images is given the second text of each class (``a photo of a``), and its scores
    count as logits, as likelihoods and matching log-odds are. DiptychError for a model that needs classes, has its own already, or
    can do neither.
    """
    if "classify" in model.capabilities and isinstance(model, Classifying):
        if classes is not None:
            raise DiptychError(
                f"{address} has {counted(len(model.classes), 'class', 'classes')} of its own; leave out --classes, or give the "
                "model that it was adapted from"
            )
        if getattr(model, "together", False):
            assert isinstance(model, AdaptedModel)
            return Classifier(tuple(model.classes), model.classify, True, model.embed_image, model.judge)
        return Classifier(tuple(model.classes), model.classify, True)
    embeds = {"embed_image", "embed_text"} <= model.capabilities
    if not embeds and "score" not in model.capabilities:
        raise DiptychError(
            f"{address} cannot name classes: it neither embeds nor scores texts for images, and learned no classes; it can: "
            f"{', '.join(sorted(model.capabilities))}. Take a model such as clip, or adapt one: diptych adapt"
        )
    if classes is None:
        raise DiptychError(
            f"{address} has no classes of its own: give --classes fox,owl,hare or --classes FILE (one name a line), or adapt it to "
            "pictures in class folders: diptych adapt"
        )
    names = class_names_of(classes)
    texts = texts_of(names)
    if not embeds:
        ones = [of_class[min(1, len(of_class) - 1)] for of_class in texts]
        return Classifier(names, lambda images: _softmax(model.score(images, ones)), False)
    vectors = [unit_rows(np.asarray(model.embed_text(of_class), np.float64)).mean(0) for of_class in texts]
    weight = float(getattr(model, "scale", SCALE)) * unit_rows(np.stack(vectors))
    # scaled cosines with the mean of the templates (Radford et al. 2021, arXiv:2103.00020, §3.1.4)
    return Classifier(names, lambda images: _softmax(np.asarray(model.embed_image(images), np.float64) @ weight.T), False)


def _softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    e = np.exp(logits - logits.max(1, keepdims=True))
    shares: np.ndarray = e / e.sum(1, keepdims=True)
    return shares


def class_names_of(given: str) -> tuple[str, ...]:
    """The names in ``a,b,c``, or in a file: one a line, or a list in a .json. DiptychError for fewer than two or one twice."""
    path = Path(given)
    if path.is_dir():
        raise DiptychError(f"--classes {given}: a folder; expected a,b,c or a file with one name a line")
    if is_file := path.is_file():
        names = _names_in(path)
    elif "," not in given and ("/" in given or path.suffix in (".txt", ".json", ".csv")):
        raise DiptychError(f"--classes {given}: there is no such file")
    else:
        names = [name.strip() for name in given.split(",")]
    names = [name for name in names if name]
    where = f"--classes {given}" if not is_file else f"{given}"
    if len(names) < 2:
        raise DiptychError(f"{where}: {counted(len(names), 'class', 'classes')}; expected two or more")
    if len(set(names)) < len(names):
        raise DiptychError(f"{where}: the class '{next(n for n in names if names.count(n) > 1)}' twice")
    return tuple(names)


def _names_in(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DiptychError(f"--classes {path}: cannot be read as text ({error})") from None
    if path.suffix.lower() != ".json":
        return [line.strip() for line in text.splitlines()]
    try:
        names = json.loads(text)
    except ValueError as error:
        raise DiptychError(f"--classes {path}: broken JSON: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DiptychError(f"--classes {path}: expected a list of names")
    return [name.strip() for name in names]
