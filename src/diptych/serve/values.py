"""Values as JSON has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if value is not None and np.isfinite(value) else None


def plain(value: Any) -> Any:
    """A value as JSON has it: no NaN, no bytes that are no text, no types of NumPy."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return number(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # names of files can hold bytes that are no text
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int) else str(value)
