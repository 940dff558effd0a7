"""Slices in which a model is worst: pictures are clustered, clusters are named and merged on one half of the data, and what was
found is tested on the other half (after VLSlice, Slyman, Kahng & Lee 2023, arXiv:2309.06703).

Shapes: N pictures, E width of their vectors, K clusters.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from diptych.benchmarks.statistics import holm, sums_interval
from diptych.core.arrays import unit_rows
from diptych.core.extras import need

SIZE = 12  # pictures of a cluster on average
SMALLEST = 4  # a cluster of fewer pictures, found or held out, is not tested
WORST = 8  # clusters with the lowest scores that are tested
MERGED = 0.95  # clusters with the same name, or whose middles have at least this cosine, become one
PERMUTATIONS = 5000
TYPICAL = 0.2  # the least log-odds of a word that names a cluster
STOP = frozenset(
    word
    for line in ("a an the of and in on at to is are with there it this that no one", "picture photo image some by for from its")
    for word in line.split()
)


@dataclass(frozen=True)
class Slice:
    """Pictures that lie together. found, held: how many of either half, with their mean scores; rest: the mean of all other
    held-out pictures. low, high: the 95 % interval of ``held_score − rest``; p: of a permutation test, corrected for the slices
    that are tested (Holm).
    """

    name: str
    found: int
    found_score: float
    held: int
    held_score: float
    rest: float
    low: float
    high: float
    p: float
    examples: tuple[str, ...] = ()

    @property
    def difference(self) -> float:
        """How much lower (negative) the model scores here than elsewhere."""
        return self.held_score - self.rest

    @property
    def confirmed(self) -> bool:
        """Whether it is worse than the rest on held-out pictures, too."""
        return self.difference < 0 and self.p < 0.05


def clustered(vectors: np.ndarray, size: int = SIZE, affinity: np.ndarray | None = None, weight: float = 1.0) -> np.ndarray:
    """The cluster of each picture, int [N], by agglomeration with Ward's criterion. affinity [N]: of each picture to a query text,
    which then counts like another dimension, with this weight (VLSlice, section 4.1).
    """
    cluster = need("sklearn.cluster", extra="curate", what="clustering of embeddings (slices)")
    features = unit_rows(vectors)
    if affinity is not None:
        spread = float(affinity.std()) or 1.0
        features = np.concatenate([features, weight * ((affinity - affinity.mean()) / spread * features.std())[:, None]], 1)
    count = max(2, round(len(vectors) / size))
    labels: np.ndarray = cluster.AgglomerativeClustering(n_clusters=count).fit_predict(features)
    return labels


def words_in(text: str) -> set[str]:
    """The words of a text and its pairs of neighbouring words, without those that say nothing."""
    words = re.findall(r"\w+", text.lower())
    pairs = {f"{a} {b}" for a, b in pairwise(words) if a not in STOP and b not in STOP}
    return {w for w in words if w not in STOP} | pairs


def named(labels: np.ndarray, texts: Sequence[str], vocabulary: Sequence[str] | None = None, most: int = 2) -> dict[int, str]:
    """A name for each cluster: the words of its captions that are most typical of it, by their log-odds against all others, with 1
    added to each count. vocabulary: only of these words.
    """
    allowed = None if vocabulary is None else {w.lower() for w in vocabulary}
    every = [words_in(t) if allowed is None else words_in(t) & allowed for t in texts]
    total = Counter(w for words in every for w in words)
    names = {}
    for label in sorted(set(labels.tolist())):
        members = np.flatnonzero(labels == label)
        inside, n = Counter(w for i in members for w in every[i]), len(members)
        rest = len(texts) - n

        def odds(w: str, inside: Counter[str] = inside, n: int = n, rest: int = rest) -> float:
            """The log-odds of a word in the cluster against the rest."""
            return math.log((inside[w] + 1) / (n + 2)) - math.log((total[w] - inside[w] + 1) / (rest + 2))

        best = sorted(
            (w for w in inside if inside[w] >= max(2, n / 4) and odds(w) > TYPICAL),
            key=lambda w: (-round(odds(w), 9), -len(w.split()), w),
        )
        chosen: list[str] = []
        for w in best:
            if len(chosen) < most and not any(set(w.split()) & set(c.split()) for c in chosen):
                chosen.append(w)
        names[label] = ", ".join(chosen) or f"cluster {label}"
    return names


def merged(labels: np.ndarray, vectors: np.ndarray, names: dict[int, str], cosine: float = MERGED) -> np.ndarray:
    """The clusters after those with the same name, or with almost the same middle, have become one; each has the lowest number."""
    numbers = sorted(names)
    middles = unit_rows(np.stack([vectors[labels == k].mean(0) for k in numbers]))
    into = {k: k for k in numbers}
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers[:i]):
            if into[a] == a and (names[a] == names[b] or float(middles[i] @ middles[j]) >= cosine):
                into[a] = into[b]
    return np.array([into[int(k)] for k in labels])


def nearest(vectors: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """The middle [K, E] that each vector [N, E] is nearest to, int [N]."""
    result: np.ndarray = (unit_rows(vectors) @ unit_rows(middles).T).argmax(1)
    return result


def find_slices(
    vectors: np.ndarray,
    scores: np.ndarray,
    texts: Sequence[str],
    *,
    size: int = SIZE,
    worst: int = WORST,
    affinity: np.ndarray | None = None,
    vocabulary: Sequence[str] | None = None,
    join: Sequence[Sequence[str]] = (),
    seed: int = 0,
) -> list[Slice]:
    """The slices with the lowest scores, the worst first. Half of the pictures, drawn at random, are clustered, named and merged;
    the others belong to the cluster whose middle is nearest, and test it.

    join: lists of names of clusters that a person wants as one.
    """
    order = np.random.default_rng(seed).permutation(len(scores))
    found, held = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    own = [texts[i] for i in found]
    labels = clustered(vectors[found], size, None if affinity is None else affinity[found])
    labels = merged(labels, vectors[found], named(labels, own, vocabulary))
    labels = joined(labels, named(labels, own, vocabulary), join)
    names = named(labels, own, vocabulary)
    numbers = sorted(names)
    where = np.array(numbers)[nearest(vectors[held], np.stack([vectors[found][labels == k].mean(0) for k in numbers]))]
    sizes = {k: (int((labels == k).sum()), int((where == k).sum())) for k in numbers}
    tested = sorted((k for k in numbers if min(sizes[k]) >= SMALLEST), key=lambda k: (float(scores[found][labels == k].mean()), k))[
        :worst
    ]
    sums = permuted_sums(scores[held], seed)
    rows = [_tested(scores[held], where == k, sums, seed) for k in tested]
    corrected = holm([p for *_, p in rows])
    result = []
    for k, (inside, rest, low, high, _), p in zip(tested, rows, corrected, strict=True):
        examples = tuple(own[i] for i in np.flatnonzero(labels == k)[:3])
        found_score = float(scores[found][labels == k].mean())
        result.append(Slice(names[k], sizes[k][0], found_score, sizes[k][1], inside, rest, low, high, p, examples))
    return result


def joined(labels: np.ndarray, names: dict[int, str], join: Sequence[Sequence[str]]) -> np.ndarray:
    """The clusters after those named in each list have become one."""
    into = {k: k for k in names}
    for group in join:
        members = sorted(k for k, name in names.items() if name in group)
        into |= dict.fromkeys(members, members[0]) if members else {}
    return np.array([into[int(k)] for k in labels])


def permuted_sums(scores: np.ndarray, seed: int) -> np.ndarray:
    """Sums of the first 1, 2 … scores in random orders, [permutations, N]."""
    rng = np.random.default_rng(seed)
    result: np.ndarray = scores[rng.random((PERMUTATIONS, len(scores))).argsort(1)].cumsum(1)
    return result


def _tested(scores: np.ndarray, inside: np.ndarray, sums: np.ndarray, seed: int) -> tuple[float, float, float, float, float]:
    """Means inside and outside, the interval of their difference, and the p of a permutation test (two-sided)."""
    rows = np.stack([scores * inside, inside, scores * ~inside, ~inside], 1)

    def difference(sums: np.ndarray) -> np.ndarray:
        """Mean inside minus mean outside, from sums; NaN without pictures."""
        with np.errstate(invalid="ignore", divide="ignore"):
            result: np.ndarray = sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3]
            return result

    interval = sums_interval(rows, difference, list(range(len(scores))), seed=seed)
    n, observed, drawn = int(inside.sum()), abs(interval.value), sums[:, int(inside.sum()) - 1]
    permuted = np.abs(drawn / n - (float(scores.sum()) - drawn) / (len(scores) - n))
    p = (1 + int((permuted >= observed - 1e-12).sum())) / (1 + PERMUTATIONS)
    return float(scores[inside].mean()), float(scores[~inside].mean()), interval.low, interval.high, p
