"""What a way learns from, where pictures have several labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diptych.choose.several.data import SeveralSupport
from diptych.choose.support import ClassTexts
from diptych.core.arrays import unit_rows


def labels_support(
    vectors: np.ndarray, targets: np.ndarray, names: Sequence[str], texts: ClassTexts, seed: int = 0
) -> SeveralSupport:
    """The support of pictures as vectors [N, E] with their labels, bool [N, L]."""
    x = unit_rows(np.asarray(vectors, dtype=np.float32))
    return SeveralSupport(x, targets, tuple(names), texts.prompts, texts.described, texts.scale, None, seed)
