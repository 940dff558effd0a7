"""Masks as run lengths: short, exact, and plain numbers in files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def to_runs(mask: np.ndarray) -> list[int]:
    """Height, width, then the lengths of runs of equal pixels, row by row; the first run is of False and may be 0 long."""
    flat = np.asarray(mask, bool).ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    lengths = np.diff(edges).tolist()
    return [*mask.shape, *([0] if flat.size and flat[0] else []), *lengths]


def from_runs(runs: Sequence[int]) -> np.ndarray:
    """The mask that ``to_runs`` wrote, bool [height, width]. ValueError if the runs do not fill it."""
    height, width, *lengths = runs
    values = np.arange(len(lengths)) % 2 == 1
    flat = np.repeat(values, lengths)
    if flat.size != height * width:
        raise ValueError(f"runs of {flat.size} pixels for a mask of {height} × {width}")
    return flat.reshape(height, width)
