"""What a way learns from: the vectors of some training pictures and of the class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diptych.benchmarks.inputs import read_json
from diptych.benchmarks.matching.zeroshot import TEMPLATES, prompt
from diptych.choose.ways.base import Support
from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import class_text
from diptych.inference.scored import ScoreVectors, embedding

SCALE = 100.0  # of models that do not say theirs: the largest that CLIP may learn, and did


@dataclass(frozen=True)
class ClassTexts:
    """The unit vectors of a model's texts about classes. prompts [C, T, E]; described: [T_c, E] for each class, or none."""

    prompts: np.ndarray | None
    described: tuple[np.ndarray, ...]
    scale: float


def class_texts(
    model: Model,
    names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    descriptions: Mapping[str, Sequence[str]] | None = None,
) -> ClassTexts:
    """The texts of classes as a model sees them; no vectors for a model that embeds no texts.

    DiptychError if a class has no descriptions although some are given.
    """
    scale = float(getattr(model, "scale", SCALE))
    if isinstance(model, ScoreVectors):
        return ClassTexts(model.embed_text(model.texts)[:, None], (), scale)
    if "embed_text" not in model.capabilities:
        return ClassTexts(None, (), scale)
    texts = [[prompt(template, class_text(name)) for template in templates] for name in names]
    flat = unit_rows(np.asarray(model.embed_text([t for of_class in texts for t in of_class]), dtype=np.float32))
    described: list[np.ndarray] = []
    for name in names if descriptions else ():
        assert descriptions is not None
        sentences = descriptions.get(name) or descriptions.get(class_text(name))
        if not sentences:
            raise DiptychError(f"descriptions: none of the class '{name}'{nearest(name, descriptions)}")
        described.append(unit_rows(np.asarray(model.embed_text(list(sentences)), dtype=np.float32)))
    return ClassTexts(flat.reshape(len(names), len(templates), -1), tuple(described), scale)


def with_vectors(model: Model, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Model:
    """The model, or one whose vectors are its scores for the class names in the second template (``a photo of a``).

    DiptychError if it neither embeds nor scores.
    """
    template = templates[min(1, len(templates) - 1)]
    return embedding(model, [prompt(template, class_text(name)) for name in names])


def read_descriptions(path: str | Path) -> dict[str, list[str]]:
    """Descriptions of classes, a JSON object {class: [sentence, …]}. DiptychError for anything else."""
    given = read_json(Path(path))
    if not isinstance(given, dict):
        raise DiptychError(f"{path}: expected an object {{class: [sentence, …]}}, found {type(given).__name__}")
    for name, sentences in given.items():
        if not isinstance(sentences, list) or not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
            raise DiptychError(f"{path}: class '{name}': expected a list of one or more sentences")
    return given


def support_of(
    vectors: np.ndarray, labels: np.ndarray, which: np.ndarray, names: Sequence[str], texts: ClassTexts, seed: int
) -> Support:
    """The support of some of the training pictures; all others are unlabelled. vectors: of all training pictures."""
    rest = np.setdiff1d(np.arange(len(labels)), which)
    return Support(
        x=unit_rows(np.asarray(vectors[which], dtype=np.float32)),
        y=np.asarray(labels)[which],
        names=tuple(names),
        prompts=texts.prompts,
        described=texts.described,
        scale=texts.scale,
        unlabelled=unit_rows(np.asarray(vectors[rest], dtype=np.float32)) if len(rest) else None,
        seed=seed,
    )


def of_classes(support: Support, classes: Sequence[int]) -> Support:
    """The support of some of the classes, numbered anew in the order given."""
    number = {label: i for i, label in enumerate(classes)}
    rows = np.flatnonzero(np.isin(support.y, list(classes)))
    return replace(
        support,
        x=support.x[rows],
        y=np.array([number[int(label)] for label in support.y[rows]], dtype=np.int64),
        names=tuple(support.names[i] for i in classes),
        prompts=None if support.prompts is None else support.prompts[list(classes)],
        described=tuple(support.described[i] for i in classes) if support.described else (),
    )
