"""A workbench for vision-language models: every paradigm on your data, under one budget, judged on the same items.

import diptych as dp

run    = dp.train("clip", data="folder:photos/", budget="10m")
model  = dp.load("runs/clip")
scores = model.score(images, texts)  # [N, M]
report = dp.compare(["clip", "coca"], data="scenes:small", budget="90s")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.core.errors import DiptychError

if TYPE_CHECKING:
    from diptych.api import compare, evaluate, load, open_source, train

__version__ = "0.1.0"
__all__ = ["DiptychError", "__version__", "compare", "evaluate", "load", "open_source", "train"]


def __getattr__(name: str) -> object:
    """The verbs live in ``diptych.api`` and bring torch with them; importing diptych alone stays instant."""
    if name in __all__:
        import diptych.api

        return getattr(diptych.api, name)
    raise AttributeError(f"module 'diptych' has no attribute '{name}'")
