"""Models that add something learned to another model: how that other model is named in their files, and opened again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.capabilities import Adapter, Image, Model
from diptych.core.errors import DiptychError
from diptych.core.files import check_format, read_json
from diptych.inference.scored import ScoreVectors

Load = Callable[[str, str], Model]  # address, device


class OnBase(Adapter):
    """A model on top of another, ``base``: vectors and scores are the base's own."""

    base: Model

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """The model's own unit vectors, float32 [N, E]."""
        return self.base.embed_image(images)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """The model's own unit vectors, float32 [N, E]."""
        return self.base.embed_text(texts)

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """The model's own scores, float32 [N, M], or [P] for ``pairs``."""
        return self.base.score(images, texts, pairs)


def base_facts(base: Model, address: str, folder: Path, form: int) -> dict[str, Any]:
    """What a file in ``folder`` says about the base model. form: the number of the file's format."""
    return {
        "format": form,
        "model": address,
        "relative": relative_to(address, folder),
        "key": getattr(base, "key", None),
        "scores": list(base.texts) if isinstance(base, ScoreVectors) else None,  # what its vectors are
    }


def opened(file: Path, form: int, load: Load, device: str, learned: str) -> tuple[dict[str, Any], Model]:
    """What a file says, and its base model. learned: what was learned on the base, in words, for errors.

    Raises DiptychError if the file cannot be read, or the base cannot be loaded or has other weights than the file says.
    """
    try:
        data = read_json(file)
    except ValueError as error:
        raise DiptychError(f"{file}: cannot be read ({error}); adapt the model again") from None
    check_format(data.get("format"), form, str(file))
    base = load(address_now(data, file.parent), device)
    if data.get("scores"):
        base = ScoreVectors(base, data["scores"])
    if (now := getattr(base, "key", None)) != data["key"]:
        raise DiptychError(
            f"{file.parent}: {data['model']} has other weights now than when its {learned} were learned "
            f"({data['key']}, now {now}); adapt it again"
        )
    return data, base


def relative_to(address: str, folder: Path) -> str | None:
    """A model's path as seen from a folder, so that both can be moved together; None for one that is not a local path."""
    local = Path(address.partition(":")[2] if address.startswith("hf:") else address)
    return os.path.relpath(local, folder) if local.exists() else None


def address_now(data: dict[str, Any], folder: Path) -> str:
    """Where the model of a file is now: next to the folder as it was, or at its address."""
    address = str(data["model"])
    if data["relative"] is not None and (moved := folder / data["relative"]).exists():
        return f"hf:{moved}" if address.startswith("hf:") else str(moved)
    return address
