"""Conditions on the facts of a picture, such as its folder, its date or a column of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "in", "under", "words"]
Value = str | int | float | bool | Sequence[str] | Sequence[int] | Sequence[float]


@dataclass(frozen=True)
class Condition:
    """One condition. ``under``: a folder and all below it; ``words``: every word occurs in the text, in any order."""

    column: str
    operator: Operator
    value: Value


@dataclass(frozen=True)
class Where:
    """Conditions that all have to hold.

    A store that holds the columns translates ``conditions``; one that holds vectors alone asks ``ids``, which returns the ids
    that fulfil them, int64 and ascending.
    """

    conditions: tuple[Condition, ...] = ()
    ids: Callable[[], np.ndarray] = field(default=lambda: np.zeros(0, dtype=np.int64), compare=False)
