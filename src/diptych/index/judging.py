"""Whether an index holds anything of the kind that is searched for: the one place that calls the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diptych.core.capabilities import Model

if TYPE_CHECKING:
    from diptych.index.filters import Where
    from diptych.index.index import Index
    from diptych.index.query import Query


@dataclass(frozen=True)
class Judged:
    """relevance: of each hit, 0 to 1; None without a calibration. nothing: there is nothing of the kind, for the ``reason``."""

    relevance: Sequence[float] | None
    nothing: bool
    reason: str


def judge(
    index: Index,
    model: Model,
    query: Query,
    vector: np.ndarray,
    ids: Sequence[int],
    scores: Sequence[float],
    where: Where | None,
) -> Judged | None:
    """The verdict on hits; None where the index has no calibration."""
    return None
