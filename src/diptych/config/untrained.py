"""Models that are used as they are, by name: recipes without training. Each is a file in the folder ``untrained``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from diptych.config.library import Library
from diptych.config.typed import Strict


class Untrained(Strict):
    """A model of parts that exist. model: ``package.module:Class``, whose keyword arguments are the options of its address.
    start: the recipe that begins as this model and learns from there; "": none.
    """

    name: str
    about: str
    cite: str = ""
    paradigm: Literal["contrastive", "masking", "generative", "pretrained"]
    model: str
    start: str = ""
    score: str = "similarity"


UNTRAINED = Library(Untrained, "model", Path(__file__).parent.parent / "untrained")


def why_not_trained(name: str) -> str | None:
    """Why a name is not that of a recipe, and what to do instead, in a sentence; None if there is no such model."""
    name = name.partition("?")[0]
    if name not in UNTRAINED.names():
        return None
    start = UNTRAINED.load(name).start
    learn = f"; to learn from your own captions, train {start}, which begins as {name}" if start else ""
    return f"{name} is used as it is, there is nothing to train: `diptych evaluate {name} --data ADDRESS`{learn}"
