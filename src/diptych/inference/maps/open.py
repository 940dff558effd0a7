"""The maps of any model."""

from __future__ import annotations

from typing import Any

from diptych.core.errors import DiptychError
from diptych.inference.maps.base import Maps
from diptych.inference.maps.occlusion import OcclusionMaps


def maps_of(model: Any) -> Maps:
    """The maps of a model: its own (``model.maps``), or by covering parts of the picture. DiptychError if it scores nothing."""
    own = getattr(model, "maps", None)
    if isinstance(own, Maps) and own.methods:
        return own
    if "score" not in model.capabilities:
        able = ", ".join(sorted(model.capabilities))
        raise DiptychError(f"model '{model.name}' does not score texts, so there is nothing to explain; it can: {able}")
    return OcclusionMaps(model)
