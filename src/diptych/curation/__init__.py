"""From a raw pool to training data: operators score rows, rules decide, and every removal has a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.curation.run import Curated, curate

__all__ = ["Curated", "curate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from diptych.curation import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
