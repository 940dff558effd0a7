"""Which model the vectors of an index are by: its weights, and what it makes of a picture and a text that never change."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Model, in_words
from diptych.core.errors import DiptychError

# Capitals, digits, punctuation and a letter with an accent: tokenizers treat them in different ways.
TEXT = "A photo of 3 Dogs at a café, not a cat!"
# Differences of a number of a unit vector that are allowed: where the weights are not known, what the order of sums makes; of equal
# weights, what another processor makes, which may compute in half precision; of an export, what its numbers of fewer bits make.
UNKNOWN, EQUAL, EXPORTED = 1e-3, 1e-2, 2e-2


def probe_picture() -> np.ndarray:
    """A wide picture with an edge, a slope, a colour and noise: what scaling, cropping and normalising treat differently."""
    x, y = np.meshgrid(np.linspace(0, 1, 120), np.linspace(0, 1, 80))
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 64, (80, 120, 3))
    base = np.stack([160 * x, 160 * y, np.where((x - 0.3) ** 2 + (y - 0.6) ** 2 < 0.06, 190, 20)], -1)
    return (base + noise).clip(0, 255).astype(np.uint8)


def stamp_of(model: Model, address: str) -> dict[str, Any]:
    """What identifies a model: ``model`` (its address), ``key`` (of its weights; None: unknown), ``width``, the ``probe`` vectors
    of a picture and a text, and their hash. The probes depend on the preprocessing and the tokenizer too.

    DiptychError for a model without vectors of pictures.
    """
    if "embed_image" not in model.capabilities:
        able = ", ".join(sorted(model.capabilities)) or "nothing"
        raise DiptychError(
            f"{address} cannot {in_words(['embed_image'])}; it can: {able}. Take a model with vectors: conse, runs/clip"
        )
    image = np.asarray(model.embed_image([probe_picture()]), np.float32)
    if image.ndim != 2 or not np.isfinite(image).all() or not np.any(image):
        raise DiptychError(f"{address}: its vector of a picture is {image.shape} or not finite; an index needs vectors of length 1")
    probe = {"image": _rounded(image[0])}
    if "embed_text" in model.capabilities:
        text = np.asarray(model.embed_text([TEXT]), np.float32)
        if text.shape != image.shape:
            raise DiptychError(
                f"{address}: its vectors of texts have {text.shape[-1]} numbers, those of pictures {image.shape[-1]}"
            )
        probe["text"] = _rounded(text[0])
    key = getattr(model, "key", None)
    digest = blake2b(repr(sorted(probe.items())).encode(), digest_size=16).hexdigest()
    return {
        "model": address,
        "key": None if key is None else str(key),
        "width": int(image.shape[1]),
        "probe": probe,
        "hash": digest,
    }


def _rounded(vector: np.ndarray) -> list[float]:
    return [round(float(v), 6) for v in unit_rows(vector, np.float64)]


def check_stamp(stamp: Mapping[str, Any], model: Model, where: str, address: str | None = None) -> None:
    """DiptychError if a model is not the one that a stamp is of. where: the index; address: of the model, for the remedy."""
    name = address or model.name
    remedy = f"search with --model {stamp['model']}, or make another index: diptych index … --model {name} --out OTHER.index"
    key = getattr(model, "key", None)
    # A model that was exported with other numbers has the key of its weights with something after it.
    known = None if key is None or stamp["key"] is None else _related(str(key), stamp["key"])
    if known is False:
        raise DiptychError(
            f"{where}: its vectors are by {stamp['model']} (weights {stamp['key'][:12]}), not by {name} (weights {str(key)[:12]}); "
            f"{remedy}"
        )
    now = stamp_of(model, name)
    if now["width"] != stamp["width"]:
        raise DiptychError(
            f"{where}: its vectors are by {stamp['model']}, of {stamp['width']} numbers; those of {name} have {now['width']}; "
            f"{remedy}"
        )
    limit = UNKNOWN if known is None else EQUAL if str(key) == stamp["key"] else EXPORTED
    for kind, vector in stamp["probe"].items():
        if kind not in now["probe"]:
            continue  # a tower of pictures alone searches by pictures
        far = float(np.abs(np.subtract(vector, now["probe"][kind])).max())
        if far > limit:
            what = "its preprocessing of pictures" if kind == "image" else "its tokenizer"
            cause = f"{what} or its weights are others" if known else "it is another model"
            raise DiptychError(
                f"{where}: its vectors are by {stamp['model']}; {name} makes another vector of the probe {kind} (by {far:.3f}): "
                f"{cause}; {remedy}"
            )


def _related(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}-") or b.startswith(f"{a}-")
