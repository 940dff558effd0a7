"""A model with a head for a user's own classes: what ``diptych adapt`` writes where no weight of the model itself changes.

A folder with adapted.json (the model's address, the classes, how and on what the head was learned) and head.safetensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.capabilities import Image, Model, one_or_many
from diptych.core.files import write_json
from diptych.inference.heads import Head, load_head
from diptych.inference.onbase import Load, OnBase, base_facts, opened

FILE = "adapted.json"
FORMAT = 1


class AdaptedModel(OnBase):
    """Names the classes of images (the capability "classify"); everything else is the model's own.

    classes: their names, in the order of the probabilities. temperature: by which logits are divided, so that probabilities fit the
    images that were left out in training.
    """

    def __init__(
        self,
        name: str,
        base: Model,
        head: Head,
        classes: Sequence[str],
        temperature: float = 1.0,
        about: dict[str, Any] | None = None,
    ):
        self.name, self.base, self.head = name, base, head
        self.classes, self.temperature = tuple(classes), temperature
        self.about = about or {}
        self.capabilities = frozenset({"classify", *(base.capabilities & {"embed_image", "embed_text", "score"})})
        own = getattr(base, "key", None)
        digest = hashlib.blake2b(f"{list(self.classes)} {float(temperature)!r}".encode(), digest_size=4).hexdigest()
        self.key = None if own is None else f"{own}-{self.about.get('id', '')}-{head.digest()}-{digest}"

    # --- files ---

    def save(self, folder: Path, address: str) -> None:
        """Writes the head, its classes and what is known about it to the folder, for ``load``. address: of the model itself."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, {**base_facts(self.base, address, folder, FORMAT), **self.facts(folder)})

    def facts(self, folder: Path) -> dict[str, Any]:
        """What it adds to the model itself, as plain data; the head's arrays are written to the folder."""
        return {
            "classes": list(self.classes),
            "temperature": self.temperature,
            "head": self.head.save(folder),
            "about": self.about,
        }

    @classmethod
    def load(cls, folder: Path, load: Load, device: str = "auto") -> AdaptedModel:
        """The model that ``save`` wrote. load: of the model itself, by its address.

        Raises DiptychError if the model cannot be loaded, or has other weights than when the head was learned.
        """
        data, base = opened(folder / FILE, FORMAT, load, device, "classes")
        return cls(folder.name, base, load_head(folder, data["head"]), data["classes"], data["temperature"], data["about"])

    # --- capabilities ---

    @property
    def together(self) -> bool:
        """Whether the images of one call are judged together, so that all must be given in one (``Head.together``)."""
        return self.head.together

    def classify(self, images: Sequence[Image]) -> np.ndarray:
        """The probability of each class, float32 [N, C]."""
        return self._probabilities(self.logits(images))

    def logits(self, images: Sequence[Image]) -> np.ndarray:
        """The logits of the classes, before the temperature: float [N, C]."""
        return self.head.logits_of(self.base, one_or_many(images))

    def judge(self, vectors: np.ndarray) -> np.ndarray:
        """The same from the model's own vectors of the images [N, E]."""
        return self._probabilities(self.head.logits(vectors))

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        logits = np.asarray(logits, dtype=np.float64) / self.temperature
        e = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities: np.ndarray = (e / e.sum(-1, keepdims=True)).astype(np.float32)
        return probabilities
