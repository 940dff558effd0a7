"""One region from the keys that files use for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diptych.core.sample import Region
from diptych.data.regions.conventions import PIXELS, Convention
from diptych.data.regions.outlines import Declared, Outline, around, outline_of
from diptych.data.regions.placement import usable
from diptych.data.sources.base import clean, texts

PHRASES = ("phrase", "phrases", "expression", "sentence", "sentences", "label", "category", "name")
EXTENT = Convention("xywh")  # of ``bbox`` unless a convention is declared
SEVERAL = "negatives"  # wrong versions of the phrase


def region_of(
    given: Any, size: tuple[Any, Any] = (None, None), *, masks: bool = False, declared: Convention | None = None
) -> Region:
    """A region from ``{box or bbox, phrase}``, its box cut to the image, and what else it has: ``segmentation`` (masks: whether it
    is read), ``point`` (x, y, alone or with a box), ``negatives``.

    size: the image's width and height, where known. declared: the convention of box and point; None: ``box`` is left, top, right,
    bottom, ``bbox`` left, top, width, height, in pixels. ValueError says what is wrong.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"a region given as {type(given).__name__}; expected {{box, phrase}}")
    width, height = (side if isinstance(side, (int, float)) and not isinstance(side, bool) else None for side in size)
    how = declared or (PIXELS if given.get("box") is not None else EXTENT)
    point: Any = point_of(given.get("point"))
    needs_size = bool(how.scale or how.padded)
    if point is not None and needs_size:
        point = Declared(point, how)
    box: Any = given.get("box") if given.get("box") is not None else given.get("bbox")
    try:
        edges = tuple(float(edge) for edge in box)
    except (TypeError, ValueError, OverflowError):
        if point is None:
            raise ValueError("no box: expected box: [left, top, right, bottom] or bbox: [left, top, width, height]") from None
        edges = ()
    if edges and (len(edges) != 4 or not all(map(math.isfinite, edges))):
        raise ValueError(f"a box of {len(edges)} numbers, {list(edges)}; expected four")
    if needs_size:
        box = Declared(edges, how)
    elif edges:
        box = usable(how.box(edges, 0, 0), height, width)
    else:
        box = around(point, math.inf if height is None else height, math.inf if width is None else width)
    mask: Outline | None = outline_of(given.get("segmentation"), (height, width)) if masks else None
    phrase = phrase_of(given)
    try:
        wrong = tuple(text for text in map(clean, texts(given.get(SEVERAL))) if text)
    except ValueError as error:
        raise ValueError(f"{SEVERAL}: {error}") from None
    return Region(box, phrase, mask, wrong, point)  # type: ignore[arg-type]  # a mask is drawn when the sample is read


def point_of(given: Any) -> tuple[float, float] | None:
    """A point from [x, y] or {x, y}; None if there is none. ValueError for anything else."""
    if given is None:
        return None
    pair: Any = (given.get("x"), given.get("y")) if isinstance(given, Mapping) else given
    try:
        x, y = (float(n) for n in pair)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a point: expected [x, y] or {x, y}") from None
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"a point that is not finite: {[x, y]}")
    return x, y


def phrase_of(given: Mapping[str, Any]) -> str:
    """The first text among the usual keys. ValueError if there is none."""
    reason = "no phrase"
    for key in PHRASES:
        try:
            found = [phrase for phrase in map(clean, texts(given.get(key))) if phrase]
        except ValueError:  # a number of a category, next to its name
            reason = f"no phrase: '{key}' holds {type(given[key]).__name__}; expected a text"
            continue
        if found:
            return found[0]
    raise ValueError(reason)
