"""SemDeDup (Abbas et al. 2023, arXiv:2303.09540): one of several items with close embeddings stays.

Shapes: N items, E embedding, K clusters.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.extras import need
from diptych.curation.operators.duplicates.pruning import Mode, prune

KeepRule = Literal["first", "hard", "easy", "random", "best"]
_CELLS = 1 << 24  # similarities at a time: 64 MB


def clusters(vectors: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """The centres of k-means, float32 [K, E], by scikit-learn in small batches."""
    cluster = need("sklearn.cluster", extra="curate", what="clustering of embeddings (SemDeDup)")
    k = min(k, len(vectors))
    fit = cluster.MiniBatchKMeans(k, random_state=seed, batch_size=max(1024, 2 * k), max_iter=20, n_init=1, reassignment_ratio=0)
    centres: np.ndarray = fit.fit(vectors).cluster_centers_.astype(np.float32)
    return centres


def semantic_twins(
    vectors: np.ndarray,
    epsilon: float,
    *,
    k: int | None = None,
    keep: KeepRule = "hard",
    mode: Mode = "kept",
    across: bool = True,
    priority: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(cause int64 [N], similarity float32 [N]) of ``vectors`` [N, E]: −1 if an item stays, else the twin that caused its removal.

    Two items are twins if their cosine is above 1 − ε. k: clusters, by default √N. keep: the twin that stays: the ``first``, the
    one farthest from its centre (``hard``, as published) or nearest to it (``easy``), a ``random`` one, or the ``best`` by
    ``priority`` [N]. mode: see ``pruning.prune``. across: also find twins in different clusters (the published code does not): an
    item near the border to another cluster is compared with that cluster too, so the result equals a comparison of all pairs.
    """
    vectors = unit_rows(vectors, np.float32)
    n = len(vectors)
    if n < 2:
        return np.full(n, -1, np.int64), np.zeros(n, np.float32)
    centres = clusters(vectors, k or max(1, round(n**0.5)), seed)
    reach = float(np.sqrt(2 * epsilon)) / 2 if across else -1.0  # ‖x − y‖² = 2 − 2 cos < 2 ε; half of it: see _assign
    home, guests, distance = _assign(vectors, centres, reach)
    i, j, similarity = _pairs(vectors, home, guests, len(centres), 1 - epsilon)
    cause = prune(_order(keep, distance, priority, seed), i, j, similarity, mode)
    return cause, np.where(cause >= 0, np.einsum("ne,ne->n", vectors, vectors[cause]), 0).astype(np.float32)


def _order(keep: KeepRule, distance: np.ndarray, priority: np.ndarray | None, seed: int) -> np.ndarray:
    n = len(distance)
    if keep == "first":
        return np.arange(n)
    if keep == "random":
        return np.random.default_rng(seed).permutation(n)
    if keep == "best":
        assert priority is not None, "keep='best' needs a priority"
        return np.argsort(-np.nan_to_num(priority, nan=-np.inf), kind="stable")
    return np.argsort(-distance if keep == "hard" else distance, kind="stable")


def _assign(vectors: np.ndarray, centres: np.ndarray, reach: float) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """The cluster of each item, the visitors of each cluster, and each item's distance to its centre.

    If y belongs to another centre c', it lies beyond the bisecting plane between c' and x's centre c. The distance of x to that
    plane is (‖x−c'‖² − ‖x−c‖²) / 2‖c−c'‖. The two distances add up to at most ‖x−y‖, so of twins at least one is within half of
    that of the plane, within ``reach``: it visits the other's cluster.
    """
    k = len(centres)
    norms = (centres**2).sum(1)
    between = np.sqrt(np.maximum(norms[:, None] + norms[None] - 2 * centres @ centres.T, 0))
    home = np.empty(len(vectors), np.int64)
    distance = np.empty(len(vectors), np.float32)
    visits: list[list[np.ndarray]] = [[] for _ in range(k)]
    size = max(1, _CELLS // k)
    for start in range(0, len(vectors), size):
        x = vectors[start : start + size]
        square = np.maximum((x**2).sum(1)[:, None] + norms[None] - 2 * x @ centres.T, 0)
        own = square.argmin(1)
        nearest = square[np.arange(len(x)), own]
        home[start : start + size], distance[start : start + size] = own, np.sqrt(nearest)
        if reach >= 0:
            near = square - nearest[:, None] <= 2 * between[own] * reach + 1e-5
            near[np.arange(len(x)), own] = False
            rows, columns = np.nonzero(near)
            order = np.argsort(columns, kind="stable")
            for cluster, part in zip(*_runs(columns[order], rows[order]), strict=True):
                visits[cluster].append(part + start)
    return home, [np.concatenate(v) if v else np.empty(0, np.int64) for v in visits], distance


def _runs(columns: np.ndarray, rows: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    names, starts = np.unique(columns, return_index=True)
    return names.tolist(), np.split(rows, starts[1:]) if len(names) else []


def _pairs(
    vectors: np.ndarray, home: np.ndarray, guests: list[np.ndarray], k: int, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs above the threshold in a common cluster, or with one visiting the other's; each once."""
    order = np.argsort(home, kind="stable")
    members = np.split(order, np.searchsorted(home[order], np.arange(1, k)))
    pair_codes = [np.empty((0,), np.int64)]
    n = len(vectors)
    for own, visitors in zip(members, guests, strict=True):
        others = np.concatenate([own, visitors])
        size = max(1, _CELLS // max(len(others), 1))
        for start in range(0, len(own), size):
            part = own[start : start + size]
            rows, columns = np.nonzero(vectors[part] @ vectors[others].T > threshold)
            a, b = part[rows], others[columns]
            a, b = np.minimum(a, b), np.maximum(a, b)
            pair_codes.append((a * n + b)[a != b])
    codes = np.unique(np.concatenate(pair_codes))
    i, j = codes // n, codes % n
    return i, j, np.einsum("pe,pe->p", vectors[i], vectors[j]) if len(codes) < 1e6 else _cosines(vectors, i, j)


def _cosines(vectors: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    size = 1 << 18
    parts = [np.einsum("pe,pe->p", vectors[i[s : s + size]], vectors[j[s : s + size]]) for s in range(0, len(i), size)]
    return np.concatenate(parts)
