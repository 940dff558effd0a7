"""All pairs of 64-bit hashes within a Hamming distance, without comparing all pairs.

If two hashes differ in at most d bits and are cut into m > d blocks, then at least m − d blocks are equal (pigeonhole). So for
each choice of m − d blocks the hashes are sorted by those blocks only, and only neighbours that agree in them are compared
(multi-index hashing: Norouzi, Punjani & Fleet, CVPR 2012). The result is exact.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from math import comb

import numpy as np

BITS = 64
_CHUNK = 1 << 22  # comparisons at a time


def plan(n: int, distance: int) -> tuple[int, int]:
    """(blocks m, equal blocks m − d): the cheapest division for n uniformly distributed hashes."""
    best, chosen = float("inf"), (distance + 1, 1)
    for same in range(1, 5):
        blocks = distance + same
        choices = comb(blocks, same)
        if blocks > BITS or choices > 2000:
            continue
        compared = n * n / 2 / 2.0 ** (BITS * same / blocks)
        cost = choices * (n * 20 + compared)  # a sorted hash costs about as much as twenty comparisons
        if cost < best:
            best, chosen = cost, (blocks, same)
    return chosen


def pairs_within(hashes: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(i, j, differing bits) of every pair i < j of ``hashes`` (uint64 [N]) within ``distance``, ordered by (i, j).

    Equal hashes are grouped first, so a thousand copies cost as much as one: c equal hashes give the c − 1 pairs with the first,
    and their neighbours are paired with the first only.
    """
    unique, first, inverse = np.unique(np.asarray(hashes, np.uint64), return_index=True, return_inverse=True)
    a, b = np.empty(0, np.int64), np.empty(0, np.int64)
    if distance > 0 and len(unique) > 1:
        a, b = _near(unique, distance)
    copies = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    left = np.concatenate([first[a], first[inverse[copies]]])
    right = np.concatenate([first[b], copies])
    left, right = np.minimum(left, right), np.maximum(left, right)
    order = np.lexsort((right, left))
    left, right = left[order], right[order]
    return left, right, np.bitwise_count(hashes[left] ^ hashes[right]).astype(np.int64)


def _near(unique: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of positions in ``unique`` (no hash twice) within ``distance``, each once."""
    blocks, same = plan(len(unique), distance)
    masks = _masks(blocks)
    codes_by_block = []
    for chosen in combinations(range(blocks), same):
        mask = np.bitwise_or.reduce(masks[list(chosen)])
        key = unique & mask
        order = np.argsort(key, kind="stable")
        key = key[order]
        ends = np.flatnonzero(np.append(key[1:] != key[:-1], True)) + 1  # one past each run of equal keys
        end = np.repeat(ends, np.diff(ends, prepend=0))
        at = np.arange(len(key))
        step = 1
        while len(at := at[at + step < end[at]]):
            for start in range(0, len(at), _CHUNK):
                i = order[at[start : start + _CHUNK]]
                j = order[at[start : start + _CHUNK] + step]
                near = np.bitwise_count(unique[i] ^ unique[j]) <= distance
                codes_by_block.append(np.minimum(i, j)[near] * len(unique) + np.maximum(i, j)[near])
            step += 1
    codes = np.unique(np.concatenate(codes_by_block)) if codes_by_block else np.empty(0, np.int64)
    return codes // len(unique), codes % len(unique)


def _masks(blocks: int) -> np.ndarray:
    edges = [round(BITS * k / blocks) for k in range(blocks + 1)]
    return np.array([((1 << (b - a)) - 1) << a for a, b in pairwise(edges)], np.uint64)


def nearest_within(hashes: np.ndarray, reference: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """The position of the nearest reference within ``distance`` (−1: none) and the differing bits, int64 [N] each."""
    hashes, reference = np.asarray(hashes, np.uint64), np.asarray(reference, np.uint64)
    place, bits = np.full(len(hashes), -1, np.int64), np.full(len(hashes), BITS + 1, np.int64)
    if not len(reference) or not len(hashes):
        return place, bits
    blocks, same = plan(len(reference), distance)
    for chosen in combinations(range(blocks), same):
        mask = np.bitwise_or.reduce(_masks(blocks)[list(chosen)])
        order = np.argsort(reference & mask, kind="stable")
        key = (reference & mask)[order]
        at, end = np.searchsorted(key, hashes & mask, "left"), np.searchsorted(key, hashes & mask, "right")
        rows = np.flatnonzero(at < end)
        while len(rows):
            other = order[at[rows]]
            differ = np.bitwise_count(hashes[rows] ^ reference[other]).astype(np.int64)
            better = (differ <= distance) & ((differ < bits[rows]) | ((differ == bits[rows]) & (other < place[rows])))
            place[rows[better]], bits[rows[better]] = other[better], differ[better]
            at[rows] += 1
            rows = rows[at[rows] < end[rows]]
    return place, bits
