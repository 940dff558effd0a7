"""Models by address, loaded once in each process, for operators that need one."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.core.errors import DiptychError

if TYPE_CHECKING:
    from diptych.core.capabilities import Model


@lru_cache(maxsize=3)
def load(address: str) -> Model:
    """The model at an address, as ``diptych.inference.load`` gives it; cached."""
    from diptych.inference.load import load as open_model

    return open_model(address)


def able(address: str, *capabilities: str) -> Model:
    """The model at an address. Raises DiptychError if one of the ``capabilities`` is missing."""
    if not address:
        raise DiptychError("this operator needs a model: `model: runs/clip`, or any address that `diptych evaluate` takes")
    model = load(address)
    missing = [c for c in capabilities if c not in model.capabilities]
    if missing:
        raise DiptychError(f"{address} cannot {' or '.join(missing)}; it can: {', '.join(sorted(model.capabilities))}")
    return model


def stamp(address: str) -> str:
    """A hash that changes with the files of a local model; empty for others."""
    root = Path(address.partition(":")[2] or address)
    root = root if root.is_dir() else Path(address)
    if not root.is_dir():
        return ""
    weights = sorted(
        p for p in root.rglob("*") if p.suffix in (".safetensors", ".json", ".yaml", ".bin") and "evaluation" not in p.parts
    )
    content = [f"{p.relative_to(root)} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in weights]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]
