"""A dual encoder whose vectors go through a learned map: what ``diptych adapt`` writes for pictures with captions.

A folder with mapped.json (the model's address, how and on what the maps were learned) and maps.safetensors.

Shapes: N items, E width of the vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Adapter, Image, Model, one_or_many
from diptych.core.errors import DiptychError
from diptych.core.files import write_atomically, write_json
from diptych.inference.onbase import Load, base_facts, opened

FILE = "mapped.json"
WEIGHTS = "maps.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class SideMap:
    """x → the unit vector of (x − centre) (I + change)^T. centre [E], change [E, E]; zeros: the vectors stay as they are."""

    centre: np.ndarray
    change: np.ndarray

    @classmethod
    def identity(cls, width: int) -> SideMap:
        """The map that changes nothing."""
        return cls(np.zeros(width, dtype=np.float32), np.zeros((width, width), dtype=np.float32))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Unit vectors [N, E] → unit vectors [N, E]."""
        centred = np.asarray(x) - self.centre
        return unit_rows(centred + centred @ self.change.T)


@dataclass(frozen=True)
class Maps:
    """The maps of images and of texts."""

    image: SideMap
    text: SideMap

    def arrays(self) -> dict[str, np.ndarray]:
        """As they are saved, float32."""
        return {
            f"{side}.{name}": np.ascontiguousarray(getattr(getattr(self, side), name), dtype=np.float32)
            for side in ("image", "text")
            for name in ("centre", "change")
        }

    def digest(self) -> str:
        """A hash of all numbers: other settings give other vectors."""
        total = hashlib.blake2b(digest_size=6)
        for name, array in self.arrays().items():
            total.update(f"{name} {array.shape}".encode() + array.tobytes())
        return total.hexdigest()


class MappedModel(Adapter):
    """Embeds images and texts as the model does, followed by the maps; scores are cosines."""

    capabilities = frozenset({"embed_image", "embed_text", "score"})

    def __init__(self, name: str, base: Model, maps: Maps, about: dict[str, Any] | None = None):
        self.name, self.base, self.maps, self.about = name, base, maps, about or {}
        own = getattr(base, "key", None)
        self.key = None if own is None else f"{own}-{self.about.get('id', '')}-{maps.digest()}"

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        return self.maps.image(self.base.embed_image(one_or_many(images))).astype(np.float32)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        return self.maps.text(self.base.embed_text(one_or_many(texts))).astype(np.float32)

    def save(self, folder: Path, address: str) -> None:
        """Writes the maps and what is known about them, for ``load``. address: of the model itself."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, lambda path: save_file(self.maps.arrays(), path))
        write_json(folder / FILE, {**base_facts(self.base, address, folder, FORMAT), "about": self.about})

    @classmethod
    def load(cls, folder: Path, load: Load, device: str = "auto") -> MappedModel:
        """The model that ``save`` wrote. load: of the model itself, by its address.

        Raises DiptychError if the model cannot be loaded, or has other weights than when the maps were learned.
        """
        data, base = opened(folder / FILE, FORMAT, load, device, "maps")
        try:
            held = load_file(folder / WEIGHTS)
            maps = Maps(*(SideMap(held[f"{side}.centre"], held[f"{side}.change"]) for side in ("image", "text")))
        except (OSError, KeyError, SafetensorError) as error:
            raise DiptychError(f"{folder / WEIGHTS}: cannot be read ({error}); adapt the model again") from None
        return cls(folder.name, base, maps, data["about"])
