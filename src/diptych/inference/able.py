"""What a trained model can do: the capabilities of its parts and objectives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from diptych.core.batch import Batch, Images, Texts
from diptych.core.encodings import Pass
from diptych.models.part import Part
from diptych.models.vlm import VLM
from diptych.objectives import Objective

# What a language model has from its connector.
OF_IMAGES = frozenset({"generate", "decoding", "loglikelihood", "examples", "prompt"})


def capabilities_of(model: VLM, objectives: Iterable[Any]) -> frozenset[str]:
    """The capabilities of a model: those of its parts and those that its objectives trained.

    A map into the shared space counts if an objective has trained it: FILIP's losses do not read the pooled vectors, so these mean
    nothing.
    """
    learned = [o for o in objectives if isinstance(o, Objective)]
    trained = {name for o in learned for name in (*o.needed(), *o.trains)}
    able = frozenset().union(*(o.can for o in learned), *(part.can for part in model.parts.values() if isinstance(part, Part)))
    space = model.parts["space"] if "space" in model.parts else None
    if space is not None and any(True for _ in space.parameters()) and not {"image.embedding", "text.embedding"} <= trained:
        able -= {"embed_image", "embed_text"}
    if "lm" in model.parts and not model.graph.gives("image.prefix"):  # a language model that sees no image
        able -= OF_IMAGES if model.graph.gives("image.embedding") else {*OF_IMAGES, "embed_image", "embed_text"}
    if missing_fields(model, ("text.logits",)):
        able -= {"loglikelihood"}
    return able


def missing_fields(model: VLM, names: Iterable[str]) -> list[str]:
    """The fields besides ``image`` and ``text`` that encodings are computed from, sorted: with images and texts alone they cannot
    be computed. Encodings that the model does not have, and those of teachers, are passed over.
    """
    given = Pass(model, Batch({"image": Images(torch.zeros(0)), "text": Texts(torch.zeros(0), torch.zeros(0))}, 0))
    known = [name for name in names if not name.endswith("?") and ":" not in name and model.graph.gives(name)]
    return sorted({leaf for name in known if not given.has(name) for leaf in model.graph.leaves(name)} - {"image", "text"})
