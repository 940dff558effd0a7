"""``data.neighbours``: hard images, which join a batch beside the samples that they look like."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from diptych.config.typed import Strict

PACKAGED = "efficientnet"  # features that need no trained run


class Neighbours(Strict):
    """Half of each batch is drawn; the other half is one of the nearest pictures of each, with its own texts (NegCLIP, Yuksekgonul
    et al. 2023, §4: one of the three nearest by CLIP).

    of: how many neighbours a picture has, of which one is drawn each time. by: whose features say what is near: ``efficientnet``
    (the packaged EfficientNet-Lite0), a run directory, hf:NAME of a vision tower, or a function ``package.module:name`` from uint8
    [N, size, size, 3] to [N, E]. first: learn from this many samples alone, which are each other's neighbours; None: from all, of a
    source without end from the first 10,000.
    """

    of: Annotated[int, Field(ge=1)] = 3
    by: Annotated[str, Field(min_length=1)] = PACKAGED
    first: Annotated[int, Field(ge=2)] | None = None
