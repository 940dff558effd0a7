"""k images against k captions, caption i true of image i alone (Winoground, Thrush et al., arXiv:2204.03162).

Comparisons are strict and ties are shared: a credit is the probability of success if tied scores were put in random
order. So a matrix of equal scores gets exactly the chance of a random one. Scores [k, k]: images down, captions across.
"""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np

from diptych.benchmarks.metrics.ranking import lowest_if_not_finite


def text_credit(scores: np.ndarray) -> np.ndarray:
    """Per image: is its own caption the best one? 1/m in an m-way tie at the top; float [k]."""
    scores = lowest_if_not_finite(scores)
    own = np.diagonal(scores)
    tied = (scores == own[:, None]).sum(1)
    return np.where((scores > own[:, None]).any(1), 0.0, 1 / tied)


def image_credit(scores: np.ndarray) -> np.ndarray:
    """Per caption: is its own image the best one? float [k]."""
    return text_credit(np.asarray(scores).T)


def group_credit(scores: np.ndarray) -> float:
    """Every image finds its caption and every caption its image."""
    scores = lowest_if_not_finite(scores)
    own = np.diagonal(scores)
    bar = np.minimum(own[:, None], own[None, :])  # an entry off the diagonal must stay below both
    off = ~np.eye(len(own), dtype=bool)
    if (scores > bar)[off].any():
        return 0.0
    credit = 1.0
    for level in np.unique(bar[off & (scores == bar)]):
        names = [int(i) for i in np.flatnonzero(own == level)]
        below = [
            [i for i in (row, column) if own[i] == level] for row, column in np.argwhere(off & (scores == level))
        ]  # for each tied entry, the diagonal entries of the same score that must beat it
        credit *= _tie_share(names, [b for b in below if b])
    return credit


def _tie_share(names: list[int], below: list[list[int]]) -> float:
    """P(each entry of ``below`` falls under all of its diagonal entries) in a random order of all.

    For a fixed order of the diagonal entries each other entry hangs under the lowest of its own: a tree, for which
    the share of valid orders is 1 / Π(size of each node's subtree) (Knuth's hook formula).
    """
    shares = []
    for order in permutations(names):
        place = {name: i for i, name in enumerate(order)}
        hanging = [0] * len(order)
        for parents in below:
            hanging[min(place[p] for p in parents)] += 1
        product, size = 1, 0
        for leaves in hanging:
            size += 1 + leaves
            product *= size
        shares.append(1 / product)
    return math.fsum(shares)


def winoground(scores: np.ndarray) -> dict[str, float]:
    """The three scores of the paper; chance 1/4, 1/4, 1/6 at k = 2."""
    return {
        "text": float(np.prod(text_credit(scores))),
        "image": float(np.prod(image_credit(scores))),
        "group": group_credit(scores),
    }


def chance(k: int) -> dict[str, float]:
    """Of the mean ``text_credit``, the mean ``image_credit`` and ``group_credit`` for random scores."""
    group = math.factorial(k)
    sizes = [m + 2 * sum(k - j for j in range(1, m + 1)) for m in range(1, k + 1)]
    return {"text": 1 / k, "image": 1 / k, "group": group / math.prod(sizes)}


def positive_credit(positive: np.ndarray, negatives: np.ndarray, sizes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One right text against n wrong ones (ARO, SugarCrepe, CREPE): credit float [N], 1/m in an m-way tie at the top; was it tied, bool [N].

    ``positive`` [N], ``negatives`` [N, n] of which row i uses the first ``sizes[i]``. Strict: never the argmax of a fixed
    order, which a scorer without an opinion would win.
    """
    positive, negatives = lowest_if_not_finite(positive)[:, None], lowest_if_not_finite(negatives)
    used = np.ones(negatives.shape, dtype=bool) if sizes is None else np.arange(negatives.shape[1]) < np.asarray(sizes)[:, None]
    tied = ((negatives == positive) & used).sum(1)
    lost = ((negatives > positive) & used).any(1)
    return np.where(lost, 0.0, 1 / (1 + tied)), ~lost & (tied > 0)
