"""Heads: classes of one's own on the image vectors of a model that itself does not change.

Every way of adapting that works on vectors alone ends in one of a few forms, so that an adapted model is a model, a head and the
names of its classes.

Shapes: N images, E width of the vectors, C classes, S stored vectors, R width of a bottleneck.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Image, Model
from diptych.core.errors import DiptychError
from diptych.core.files import write_atomically
from diptych.core.registry import resolve

WEIGHTS = "head.safetensors"
BLOCK = 1 << 25  # similarities held at once, 128 MiB


def blocks(rows: int, columns: int) -> list[slice]:
    """Rows of a matrix in parts that have at most ``BLOCK`` entries, or one row."""
    step = max(1, BLOCK // max(1, columns))
    return [slice(i, i + step) for i in range(0, rows, step)]


class Head:
    """Base class of heads: a frozen dataclass whose fields are arrays (saved as they are) and plain values.

    A subclass of your own is saved under ``package.module:Class`` and loaded by that name.

    together: whether ``logits`` judges the images of one call together, without labels, so that what an image is called depends on
    the others: all images must then be given in one call. False: any division into calls gives the same.
    """

    together: ClassVar[bool] = False

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Unit image vectors [N, E] → logits [N, C]; their softmax are the probabilities of the classes."""
        raise NotImplementedError

    def logits_of(self, model: Model, images: Sequence[Image]) -> np.ndarray:
        """Logits [N, C] of images, by the vectors that a model has of them."""
        return self.logits(model.embed_image(images))

    def with_classes(self, weight: np.ndarray) -> Head | None:
        """The head with further classes, known by the vectors of their names alone: weight [C', E], scaled as logits. None if it
        cannot name classes that it has not learned.
        """
        return None

    def kind(self) -> str:
        """Its name in ``HEADS``, or ``package.module:Class``."""
        known = {cls: name for name, cls in HEADS.items()}
        own = f"{type(self).__module__}:{type(self).__qualname__}"
        return known.get(type(self)) or {v: k for k, v in FURTHER.items()}.get(own, own)

    def digest(self) -> str:
        """A hash of all that it holds, the same after it was saved and loaded."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        arrays = {k: np.ascontiguousarray(v) for k, v in held.items() if isinstance(v, np.ndarray)}
        rest = json.dumps({k: v for k, v in held.items() if k not in arrays}, sort_keys=True, default=str)
        total = hashlib.blake2b(f"{self.kind()} {rest}".encode(), digest_size=6)
        for name, array in sorted(arrays.items()):
            total.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        return total.hexdigest()

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the arrays to a file in the folder and returns the rest, as plain data for ``load_head``."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        arrays = {k: np.ascontiguousarray(v) for k, v in held.items() if isinstance(v, np.ndarray)}
        write_atomically(folder / WEIGHTS, lambda path: save_file(arrays, path))
        return {"kind": self.kind(), **{k: v for k, v in held.items() if k not in arrays}}


@dataclass(frozen=True)
class Linear(Head):
    """x W^T + b: zero-shot names, linear probes, Gaussian discriminants, learned prompts.

    open: whether a row is a scaled text vector, so that other classes can be added by their names.
    """

    weight: np.ndarray  # [C, E]
    bias: np.ndarray  # [C]
    open: bool = False

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[N, C]"""
        result: np.ndarray = np.asarray(x) @ self.weight.T + self.bias
        return result

    def with_classes(self, weight: np.ndarray) -> Head | None:
        """With rows for the further classes, and no bias for them; None if the rows are not text vectors."""
        if not self.open:
            return None
        return Linear(np.concatenate([self.weight, weight]), np.concatenate([self.bias, np.zeros(len(weight))]), True)


@dataclass(frozen=True)
class Cache(Head):
    """x W^T + α exp(−β (1 − x K^T)) L: names, and stored examples near the image (Tip-Adapter, Zhang et al. 2022, eq. 5)."""

    weight: np.ndarray  # [C, E]; zeros: the examples alone
    keys: np.ndarray  # K, vectors of the stored examples, of unit length unless they were trained [S, E]
    values: np.ndarray  # L, their classes [S, C]
    alpha: float
    beta: float

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[N, C]"""
        x = np.asarray(x)
        result: np.ndarray = x @ self.weight.T
        for rows in blocks(len(x), len(self.keys)):
            result[rows] += self.alpha * np.exp(self.beta * (x[rows] @ self.keys.T - 1)) @ self.values
        return result

    def with_classes(self, weight: np.ndarray) -> Head | None:
        """With rows for the further classes, of which no example is stored; None if there are no names."""
        if not self.weight.any():
            return None
        none = np.zeros((len(self.values), len(weight)), dtype=self.values.dtype)
        return Cache(
            np.concatenate([self.weight, weight]), self.keys, np.concatenate([self.values, none], 1), self.alpha, self.beta
        )


@dataclass(frozen=True)
class Bottleneck(Head):
    """x' W^T, x' the unit vector of share · ReLU(ReLU(x A^T) B^T) + (1 − share) · x (CLIP-Adapter, Gao et al. 2021, eq. 1–4)."""

    weight: np.ndarray  # [C, E]
    down: np.ndarray  # A [R, E]
    up: np.ndarray  # B [E, R]
    share: float

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[N, C]"""
        x = np.asarray(x)
        changed = np.maximum(np.maximum(x @ self.down.T, 0) @ self.up.T, 0)
        result: np.ndarray = unit_rows(self.share * changed + (1 - self.share) * x) @ self.weight.T
        return result

    def with_classes(self, weight: np.ndarray) -> Head | None:
        """With rows for the further classes."""
        return Bottleneck(np.concatenate([self.weight, weight]), self.down, self.up, self.share)


@dataclass(frozen=True)
class Projected(Head):
    """x' W^T + b, x' the unit vector of A x: a learned projection of the image vectors and classes in its space.

    texts: the projection B of the text vectors [E, E], through which the names of further classes go; empty: there are no further
    classes.
    """

    weight: np.ndarray  # [C, E]
    bias: np.ndarray  # [C]
    images: np.ndarray  # A [E, E]
    texts: np.ndarray

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[N, C]"""
        result: np.ndarray = unit_rows(np.asarray(x) @ self.images.T) @ self.weight.T + self.bias
        return result

    def with_classes(self, weight: np.ndarray) -> Head | None:
        """With rows for the further classes; None if the rows are not text vectors."""
        if not self.texts.size:
            return None
        rows = unit_rows(weight @ self.texts.T) * np.linalg.norm(weight, axis=1, keepdims=True)
        bias = np.concatenate([self.bias, np.zeros(len(weight))])
        return Projected(np.concatenate([self.weight, rows]), bias, self.images, self.texts)


@dataclass(frozen=True)
class Nearest(Head):
    """Votes of the k stored examples with the highest cosine, each with the weight exp(cos / temperature).

    Logits are the logarithms of the shares, with one vote more that is spread evenly over all classes, so that none is impossible.
    """

    keys: np.ndarray  # unit vectors of the stored examples [S, E]
    labels: np.ndarray  # their classes, int [S]
    classes: int
    k: int
    temperature: float

    def shares(self, x: np.ndarray) -> np.ndarray:
        """The share of the votes of each class [N, C]; float64."""
        parts = [self._shares(np.asarray(x)[rows]) for rows in blocks(len(x), len(self.keys))]
        return np.concatenate(parts) if parts else np.zeros((0, self.classes))

    def _shares(self, x: np.ndarray) -> np.ndarray:
        cosines = x @ self.keys.T
        k = min(self.k, len(self.keys))
        near = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        cosines = np.take_along_axis(cosines, near, 1).astype(np.float64)
        weights = np.exp((cosines - cosines.max(1, keepdims=True)) / self.temperature)
        places = np.arange(len(near))[:, None] * self.classes + self.labels[near]
        votes = np.bincount(places.ravel(), weights.ravel(), len(near) * self.classes).reshape(len(near), self.classes)
        result: np.ndarray = votes / votes.sum(1, keepdims=True)
        return result

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[N, C]"""
        k = min(self.k, len(self.keys))
        result: np.ndarray = np.log((k * self.shares(x) + 1 / self.classes) / (k + 1))
        return result


@dataclass(frozen=True)
class Texts(Head):
    """scale · the model's own score of an image with the text of each class: for models in which a class has no vector of its own,
    since it depends on the image.
    """

    texts: tuple[str, ...]
    scale: float

    def logits(self, x: np.ndarray) -> np.ndarray:
        """DiptychError: there are no vectors of classes."""
        raise DiptychError("the classes of this model have no vectors; they are scored with each image")

    def logits_of(self, model: Model, images: Sequence[Image]) -> np.ndarray:
        """[N, C]"""
        result: np.ndarray = self.scale * np.asarray(model.score(images, list(self.texts)))
        return result


HEADS: dict[str, type[Head]] = {
    "linear": Linear,
    "cache": Cache,
    "nearest": Nearest,
    "bottleneck": Bottleneck,
    "texts": Texts,
}

# Heads of other modules, by name; resolved when one is loaded.
FURTHER = {
    "projected": "diptych.inference.heads:Projected",
    "propagation": "diptych.inference.transductive:Propagation",
    "stream": "diptych.inference.transductive:Stream",
    "unrolled": "diptych.inference.unrolled:Unrolled",
    "shares": "diptych.inference.several.heads:Shares",
}


def load_head(folder: Path, data: dict[str, Any]) -> Head:
    """The head that ``Head.save`` wrote. DiptychError if a file is missing or does not fit."""
    data = dict(data)
    cls = resolve(str(data.pop("kind")), {**HEADS, **FURTHER}, "head")
    try:
        head = cls(**load_file(folder / WEIGHTS), **data)
    except (OSError, TypeError, SafetensorError) as error:
        raise DiptychError(f"{folder / WEIGHTS}: cannot be read ({error}); adapt the model again") from None
    assert isinstance(head, Head)
    return head
