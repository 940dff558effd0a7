"""What a trained model can do: the capabilities of its parts and objectives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from diptych.core.batch import Batch, Images, Texts, Videos
from diptych.core.encodings import Pass
from diptych.models.part import Part
from diptych.models.vlm import VLM
from diptych.objectives import Objective

# What a language model has from its connector.
OF_IMAGES = frozenset({"generate", "decoding", "loglikelihood", "examples", "prompt"})


def capabilities_of(model: VLM, objectives: Iterable[Any], shown: str = "image") -> frozenset[str]:
    """The capabilities of a model: those of its parts and those that its objectives trained. shown: the field from which it reads
    pictures, image or video.

    A map into the shared space counts if an objective has trained it: FILIP's losses do not read the pooled vectors, so these mean
    nothing.
    """
    learned = [o for o in objectives if isinstance(o, Objective)]
    trained = {name for o in learned for name in (*o.needed(), *o.trains)}
    able = frozenset().union(*(o.can for o in learned), *(part.can for part in model.parts.values() if isinstance(part, Part)))
    space = model.parts["space"] if "space" in model.parts else None
    if space is not None and any(True for _ in space.parameters()) and not {f"{shown}.embedding", "text.embedding"} <= trained:
        able -= {"embed_image", "embed_text"}
    if "lm" in model.parts and not model.graph.gives(f"{shown}.prefix"):  # a language model that sees no image
        able -= OF_IMAGES if model.graph.gives(f"{shown}.embedding") else {*OF_IMAGES, "embed_image", "embed_text"}
    if shown != "image" and not model.graph.gives(f"{shown}.embedding"):
        able -= {"embed_image", "embed_text"}
    if missing_fields(model, ("text.logits",), shown):
        able -= {"loglikelihood"}
    return able


def missing_fields(model: VLM, names: Iterable[str], shown: str = "image") -> list[str]:
    """The fields besides ``text`` and ``shown``, image or video, that encodings are computed from, sorted: without them they cannot
    be computed. Encodings that the model does not have, and those of teachers, are passed over.
    """
    pictures = Images(torch.zeros(0))
    both = {"image": pictures, "video": Videos(pictures, torch.zeros(0))}
    given = Pass(model, Batch({shown: both[shown], "text": Texts(torch.zeros(0), torch.zeros(0))}, 0))
    known = [name for name in names if not name.endswith("?") and ":" not in name and model.graph.gives(name)]
    return sorted({leaf for name in known if not given.has(name) for leaf in model.graph.leaves(name)} - {shown, "text"})


def read_from(model: VLM, score: Iterable[str]) -> tuple[str, list[str], list[str]]:
    """(the field of the pictures that a model scores and describes: ``image``, or ``video`` of one that learned from clips; the
    encodings of ``score`` that are computed for it; the fields that are missing even so).

    A field that an objective reads itself belongs to its loss, such as ViLT's drawn images; pairs are scored without it.
    """
    read = set(score)
    needed = [name for name in read if "." in name and not (read - {"video"}) & set(missing_fields(model, (name,)))]
    missing = missing_fields(model, (*needed, "text.logits"))
    shown = "video" if missing == ["video"] else "image"
    return shown, needed, missing_fields(model, (*needed, "text.logits"), shown)
