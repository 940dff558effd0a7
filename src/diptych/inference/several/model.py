"""A model with a head for labels of one's own, any number of which a picture may have.

A folder with labelled.json (the model's address, the labels, how scores become probabilities, the threshold of each label) and
head.safetensors.
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

FILE = "labelled.json"
FORMAT = 1


def probabilities_of(scores: np.ndarray, slope: float, offsets: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(−(slope · score + offset of the label))), float64 [N, L]."""
    z = np.clip(slope * np.asarray(scores, dtype=np.float64) + offsets, -700, 700)
    result: np.ndarray = 1 / (1 + np.exp(-z))
    return result


class LabelledModel(OnBase):
    """Gives images labels (the capability "label"); everything else is the model's own.

    labels: their names, in the order of the probabilities. slope, offsets [L]: from the head's scores to log-odds. thresholds [L]:
    the probability from which on an image is given the label.
    """

    def __init__(
        self,
        name: str,
        base: Model,
        head: Head,
        labels: Sequence[str],
        slope: float,
        offsets: np.ndarray,
        thresholds: np.ndarray,
        about: dict[str, Any] | None = None,
    ):
        self.name, self.base, self.head, self.labels = name, base, head, tuple(labels)
        self.slope, self.offsets, self.thresholds = float(slope), np.asarray(offsets), np.asarray(thresholds)
        self.about = about or {}
        self.capabilities = frozenset({"label", *(base.capabilities & {"embed_image", "embed_text", "score"})})
        own = getattr(base, "key", None)
        held = repr((self.labels, self.slope, self.offsets.tolist(), self.thresholds.tolist()))
        digest = hashlib.blake2b(held.encode(), digest_size=4).hexdigest()
        self.key = None if own is None else f"{own}-{self.about.get('id', '')}-{head.digest()}-{digest}"

    def save(self, folder: Path, address: str) -> None:
        """Writes everything to the folder, for ``load``. address: of the model itself."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / FILE,
            {
                **base_facts(self.base, address, folder, FORMAT),
                "labels": list(self.labels),
                "slope": self.slope,
                "offsets": self.offsets.tolist(),
                "thresholds": self.thresholds.tolist(),
                "head": self.head.save(folder),
                "about": self.about,
            },
        )

    @classmethod
    def load(cls, folder: Path, load: Load, device: str = "auto") -> LabelledModel:
        """The model that ``save`` wrote. DiptychError if the model itself cannot be loaded or has other weights than then."""
        data, base = opened(folder / FILE, FORMAT, load, device, "labels")
        head = load_head(folder, data["head"])
        offsets, thresholds = np.array(data["offsets"]), np.array(data["thresholds"])
        return cls(folder.name, base, head, data["labels"], data["slope"], offsets, thresholds, data["about"])

    def label(self, images: Sequence[Image]) -> np.ndarray:
        """The probability of each label, each on its own, float32 [N, L]."""
        scores = self.head.logits_of(self.base, one_or_many(images))
        return probabilities_of(scores, self.slope, self.offsets).astype(np.float32)

    def given(self, images: Sequence[Image]) -> list[list[str]]:
        """The labels of each image: those with a probability of at least their threshold."""
        return [[self.labels[i] for i in np.flatnonzero(row >= self.thresholds)] for row in self.label(images)]
