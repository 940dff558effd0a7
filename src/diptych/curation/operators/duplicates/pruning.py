"""Decides which of several similar items stays, and which item caused each removal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Mode = Literal["kept", "published"]
KEPT = -1


def prune(order: np.ndarray, i: np.ndarray, j: np.ndarray, closeness: np.ndarray, mode: Mode = "kept") -> np.ndarray:
    """For each of N items −1 if it stays, else the item that caused its removal; int64 [N].

    order: int [N], the items from best to worst. i, j: pairs of similar items [P], closeness [P] (higher: closer).
    mode: ``kept`` removes an item that is similar to one that stays (pointer: the closest of those), so removed items cause no
    removals. ``published`` removes an item that is similar to any better one, removed or not, as in the code of SemDeDup (Abbas et
    al. 2023): a chain a–b–c shrinks to a even if a and c differ.
    """
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    earlier = np.where(rank[i] < rank[j], i, j)
    later = np.where(rank[i] < rank[j], j, i)
    ahead = np.lexsort((rank[earlier], -closeness, rank[later]))  # by the later item, then its causes by closeness and rank
    earlier, later = earlier[ahead], later[ahead]
    cause = np.full(len(order), KEPT, np.int64)
    if mode == "published":
        victims, first = np.unique(later, return_index=True)
        cause[victims] = earlier[first]
        return cause
    gone = np.zeros(len(order), bool)
    for a, b in zip(earlier.tolist(), later.tolist(), strict=True):  # in order of b's rank, so that every a is decided already
        if not gone[b] and not gone[a]:
            gone[b] = True
            cause[b] = a
    return cause


def same(values: Sequence[object], order: np.ndarray) -> np.ndarray:
    """Pointers for exact duplicates, int64 [N]: the first of equal values in ``order`` stays; ``None`` equals nothing."""
    seen: dict[object, int] = {}
    cause = np.full(len(values), KEPT, np.int64)
    for item in order.tolist():
        value = values[item]
        if value is not None:
            first = seen.setdefault(value, item)
            if first != item:
                cause[item] = first
    return cause


def groups(cause: np.ndarray) -> np.ndarray:
    """For each item the one that stays at the end of its chain of pointers, int64 [N]."""
    root = np.where(cause == KEPT, np.arange(len(cause)), cause)
    while (further := root[root] != root).any():
        root[further] = root[root[further]]
    return root
