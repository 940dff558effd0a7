"""Packing conversations of very different lengths into few rows."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from diptych.data.conversations.template import Document


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices of documents, row by row: the longest first, each into the fullest row that has room for it (best-fit decreasing).

    Documents of a row are in the order of their indices, and so are the rows. A document longer than ``room`` has a row to itself.
    """
    rows: list[list[int]] = []
    left: list[tuple[int, int]] = []  # room that is left, and the row, ascending
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(left, (lengths[i], -1))
        if at == len(left):
            rows.append([i])
            insort(left, (room - lengths[i], len(rows) - 1))
        else:
            space, row = left.pop(at)
            rows[row].append(i)
            insort(left, (space - lengths[i], row))
    return sorted(sorted(row) for row in rows)


def laid_out(documents: Sequence[Document], rows: Sequence[Sequence[int]], pad: int) -> tuple[np.ndarray, ...]:
    """ids int64, mask bool, learned bool, positions int64, all [R, T], T the longest row.

    Padding counts as more of the last document; its tokens cannot see the padding. The first token of a document is never learned,
    since nothing comes before it.
    """
    T = max(sum(len(documents[i]) for i in row) for row in rows)
    ids = np.full((len(rows), T), pad, dtype=np.int64)
    mask, learned = np.zeros(ids.shape, dtype=bool), np.zeros(ids.shape, dtype=bool)
    positions = np.zeros(ids.shape, dtype=np.int64)
    for r, row in enumerate(rows):
        at = 0
        for i in row:
            n = len(documents[i])
            here = slice(at, at + n)
            ids[r, here], learned[r, here], mask[r, here] = documents[i].ids, documents[i].learned, True
            positions[r, at:] = np.arange(T - at)  # continues through the padding if this is the last document
            learned[r, at] = False
            at += n
    return ids, mask, learned, positions
