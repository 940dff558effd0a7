"""Other people's software, in ``bench/.peers`` (``make bench-peers``): only benchmarks import it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
SHIMMED = "torchvision"


class MissingPeer(Exception):  # noqa: N818 - an outcome, not a failure
    """A peer is not installed."""


def peer(name: str) -> ModuleType:
    """Import a peer. Its own dependencies come from ``bench/.peers`` only where the project has none."""
    place = str(HERE / ".peers")
    if place not in sys.path:
        sys.path.append(place)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise MissingPeer(f"{name} needs '{missing.name}', which is not installed: make bench-peers") from None


def open_clip() -> ModuleType:
    """open_clip, whose import asks for torchvision (which has no CPU build): it finds ``shim/`` in its place, and nobody else
    does."""
    if "open_clip" in sys.modules:
        return sys.modules["open_clip"]
    if importlib.util.find_spec(SHIMMED) is not None:
        return peer("open_clip")
    sys.path.insert(0, str(HERE / "shim"))
    try:
        return peer("open_clip")
    finally:
        sys.path.remove(str(HERE / "shim"))
        for module in [m for m in sys.modules if m.split(".")[0] == SHIMMED]:
            del sys.modules[module]
