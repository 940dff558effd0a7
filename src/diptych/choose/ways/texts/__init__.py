"""Ways that choose among, weigh or learn from several texts of each class: templates, and sentences that describe it."""

from __future__ import annotations

import numpy as np

from diptych.choose.ways.base import Support
from diptych.core.errors import DiptychError


def sentences_of(support: Support) -> tuple[np.ndarray, ...]:
    """Of each class the unit vectors of its sentences, or of its templates where it has none. DiptychError for a model without
    texts.
    """
    support.texts  # noqa: B018 - an error for a model without texts
    assert support.prompts is not None
    described = support.described or tuple(support.prompts[:0, 0] for _ in support.names)
    if len(described) != support.classes:
        raise DiptychError(f"descriptions of {len(described)} classes, but there are {support.classes}: give all of them, or none")
    return tuple(own if len(own) else prompts for own, prompts in zip(described, support.prompts, strict=True))
