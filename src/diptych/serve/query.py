"""What a search wants, until ``diptych.index`` has its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Query:
    """Texts, pictures and ids that hits should be like, and those that they should not be like."""

    texts: tuple[str, ...] = ()
    images: tuple[np.ndarray, ...] = ()
    like: tuple[int, ...] = ()
    without: tuple[str, ...] = ()
    without_images: tuple[np.ndarray, ...] = ()
    without_like: tuple[int, ...] = ()
