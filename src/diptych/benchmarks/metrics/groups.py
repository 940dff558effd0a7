"""Credits for k images against k captions where caption i is true of image i alone (Winoground, Thrush et al., arXiv:2204.03162).

Comparisons are strict and ties are shared: a credit is the probability of success if tied scores were put in random
order. So a matrix of equal scores gets exactly the chance of a random one. Scores [k, k]: images down, captions across.
A model may choose an image for a caption by other scores than a caption for an image (``to_image``; FILIP does so).
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


def group_credit(scores: np.ndarray, to_image: np.ndarray | None = None) -> float:
    """Does every image get its caption and every caption its image? A tie counts as the probability of it.

    to_image: other scores by which images are chosen; ties in them and in ``scores`` are then broken independently.
    """
    if to_image is not None:
        return float(np.prod(text_credit(scores)) * np.prod(image_credit(to_image)))
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
    """P(each entry of ``below`` ranks below all of its diagonal entries) in a random order of all.

    For a fixed order of the diagonal entries, each other entry is a child of the lowest of its own: a tree, for which
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


def winoground(scores: np.ndarray, to_image: np.ndarray | None = None) -> dict[str, float]:
    """The paper's text, image and group score of a matrix; chance 1/4, 1/4, 1/6 at k = 2. to_image: as for ``group_credit``."""
    return {
        "text": float(np.prod(text_credit(scores))),
        "image": float(np.prod(image_credit(scores if to_image is None else to_image))),
        "group": group_credit(scores, to_image),
    }


def chance(k: int, two_sided: bool = False) -> dict[str, float]:
    """{text, image, group}: the expected mean ``text_credit``, mean ``image_credit`` and ``group_credit`` of random scores [k,
    k]; two_sided: of independent scores in the two directions.
    """
    if two_sided:
        return {"text": 1 / k, "image": 1 / k, "group": k ** (-2.0 * k)}
    group = math.factorial(k)
    sizes = [m + 2 * sum(k - j for j in range(1, m + 1)) for m in range(1, k + 1)]
    return {"text": 1 / k, "image": 1 / k, "group": group / math.prod(sizes)}
