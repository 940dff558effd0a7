"""Any model that names classes: one that learned them, or two towers with the names of classes as texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Classifying, Image, Model
from diptych.core.errors import DiptychError, counted

TextsOf = Callable[[Sequence[str]], list[list[str]]]  # names of classes → the texts of each
SCALE = 100.0  # of cosines, where a model does not say: what CLIP's training ends at


@dataclass(frozen=True)
class Classifier:
    """Names of classes, and a function from images to their probabilities, float [N, C].

    learned: whether the model learned these classes from pictures.
    """

    names: tuple[str, ...]
    probabilities: Callable[[Sequence[Image]], np.ndarray]
    learned: bool


def classifier_of(model: Model, address: str, classes: str | None, texts_of: TextsOf) -> Classifier:
    """How a model names classes. classes: as ``--classes`` has them, None for the model's own; texts_of: the texts of each class.

    DiptychError for a model that needs classes, has its own already, or has no vectors of texts.
    """
    if "classify" in model.capabilities and isinstance(model, Classifying):
        if classes is not None:
            raise DiptychError(
                f"{address} has {counted(len(model.classes), 'class', 'classes')} of its own; leave out --classes, or give the "
                "model that it was adapted from"
            )
        return Classifier(tuple(model.classes), model.classify, True)
    if not {"embed_image", "embed_text"} <= model.capabilities:
        raise DiptychError(
            f"{address} cannot name classes: it has no vectors of images and texts, and learned no classes; it can: "
            f"{', '.join(sorted(model.capabilities))}. Take a model such as clip, or adapt one: diptych adapt"
        )
    if classes is None:
        raise DiptychError(
            f"{address} has no classes of its own: give --classes fox,owl,hare or --classes FILE (one name a line), or adapt it to "
            "pictures in class folders: diptych adapt"
        )
    names = class_names_of(classes)
    vectors = [unit_rows(np.asarray(model.embed_text(texts), np.float64)).mean(0) for texts in texts_of(names)]
    weight = float(getattr(model, "scale", SCALE)) * unit_rows(np.stack(vectors))

    def probabilities(images: Sequence[Image]) -> np.ndarray:
        """The softmax of scaled cosines (Radford et al. 2021, arXiv:2103.00020, §3.1.2), float64 [N, C]."""
        logits = np.asarray(model.embed_image(images), np.float64) @ weight.T
        e = np.exp(logits - logits.max(1, keepdims=True))
        shares: np.ndarray = e / e.sum(1, keepdims=True)
        return shares

    return Classifier(names, probabilities, False)


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
