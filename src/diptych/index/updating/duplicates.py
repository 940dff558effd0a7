"""Groups of near-duplicates: pictures of nearly the same frequencies and colours."""

from __future__ import annotations

import numpy as np

from diptych.data.hashes.hamming import pairs_within

DISTANCE = 4  # bits of the pHashes in which near-duplicates differ at most,
COLOUR = 0.08  # and the difference of the colours of their fields, on average: a mug in red and one in blue are two pictures


def leaders(hashes: np.ndarray, colours: np.ndarray, distance: int = DISTANCE, colour: float = COLOUR) -> np.ndarray:
    """For each picture the position of the first one of its group, its own if it is that, int64 [N].

    hashes: pHashes, uint64 [N]; colours: of 4 × 4 fields, uint8 [N, 48]. In order, a picture joins the first one that leads a
    group and is near it, or leads one itself. So every picture is near its leader, however long a chain of similar ones is.
    """
    n = len(hashes)
    result = np.arange(n)
    if not n:
        return result
    unique, which = np.unique(hashes, return_inverse=True)
    near: dict[int, list[int]] = {}
    a, b, _ = pairs_within(unique, distance)
    for i, j in zip(a.tolist(), b.tolist(), strict=True):
        near.setdefault(i, []).append(j)
        near.setdefault(j, []).append(i)
    counts = np.bincount(which)
    heads: dict[int, list[int]] = {}  # leaders of each hash
    alone = (counts[which] == 1) & ~np.isin(which, list(near))
    for i in np.flatnonzero(~alone).tolist():
        own = int(which[i])
        candidates = sorted(c for h in (own, *near.get(own, ())) for c in heads.get(h, ()))
        if candidates:
            far = np.abs(colours[candidates].astype(np.int16) - colours[i].astype(np.int16)).mean(1)
            like = np.flatnonzero(far <= colour * 255)
            if len(like):
                result[i] = candidates[int(like[0])]
                continue
        heads.setdefault(own, []).append(i)
    return result
