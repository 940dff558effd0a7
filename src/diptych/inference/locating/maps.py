"""``locate`` by maps: the box around the highest part of a map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diptych.core.capabilities import Image, Located
from diptych.inference.maps.base import Maps
from diptych.inference.maps.geometry import THRESHOLD, THRESHOLDS, box_of


def located_by_maps(maps: Maps, images: Sequence[Image], texts: Sequence[str], method: str = "") -> list[Located]:
    """Where text i is in picture i: the map of the method (or the model's first) and the box around its highest part; the score is
    the model's own for the pair.
    """
    if not len(images):
        return []
    name = maps.method(method)
    heats = maps.heats(images, texts, name)
    scores = np.asarray(maps.score(images, texts), dtype=np.float64)
    cut = THRESHOLDS.get(name, THRESHOLD)
    return [Located(box_of(heat, cut), float(s), heat, None, name) for heat, s in zip(heats, scores, strict=True)]
