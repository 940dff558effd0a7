"""Ways of adapting a model, by name. A way of your own: ``package.module:Class``, a subclass of ``Way``."""

from __future__ import annotations

from diptych.choose.ways.base import Choice, Support, Way
from diptych.choose.ways.linear import LinearProbe
from diptych.choose.ways.majority import Majority
from diptych.choose.ways.zeroshot import Descriptions, ZeroShot
from diptych.core.registry import resolve

WAYS: dict[str, type[Way]] = {way.name: way for way in (Majority, ZeroShot, Descriptions, LinearProbe)}

__all__ = ["WAYS", "Choice", "Support", "Way", "way_named"]


def way_named(name: str) -> type[Way]:
    """The way of a name. DiptychError for an unknown one."""
    cls: type[Way] = resolve(name, WAYS, "way of adapting")
    return cls
