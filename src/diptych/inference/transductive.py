"""Heads that judge the images of one call together, without their labels: what an image is called depends on the others.

All images of a folder must be given in one call, and one image more can change the names of the rest. ``Head.together`` is true.

Shapes: N images of the call, E width of the vectors, C classes, S stored images, K neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.extras import need
from diptych.inference.heads import Head, blocks

LEAST = 1e-12  # a share that no label reaches


@dataclass(frozen=True)
class Propagation(Head):
    """Labels that spread over the graph of nearest neighbours of images and class names.

    Nodes are the class names, the stored images and the images of the call. An image has edges to its k nearest images (weight: the
    cosine) and its k nearest names (the cosine to the power gamma; negative cosines count as 0). With W the sum of the edges and of
    their transpose and S = D^-1/2 W D^-1/2, the labels of all nodes are (I − αS)^-1 Y, Y one-hot for names and labelled images
    (Zhou et al. 2004, "Learning with local and global consistency"; with names as nodes: Stojnić et al. 2024, ZLaP,
    arXiv:2404.04072). Logits are the logarithms of the shares, so that their softmax are the shares.
    """

    texts: np.ndarray  # unit vectors of the class names [C, E]; [0, E]: a model without texts
    keys: np.ndarray  # unit vectors of the stored images [S, E]
    values: np.ndarray  # their classes [S, C]; zeros for images without a label
    k: int = 5
    gamma: float = 5.0
    alpha: float = 0.3

    together: ClassVar[bool] = True

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[N, C]"""
        graph = self.graph(np.asarray(x))
        names = len(self.texts)
        seeds = np.zeros((graph.shape[0], self.values.shape[1]))
        seeds[:names] = np.eye(names, self.values.shape[1])
        seeds[names : names + len(self.keys)] = self.values
        shares = spread(graph, seeds, self.alpha)[names + len(self.keys) :]
        result: np.ndarray = np.log(np.maximum(shares, LEAST))
        return result

    def graph(self, x: np.ndarray) -> Any:
        """W, symmetric, sparse [C + S + N, C + S + N]: names, stored images, images of the call."""
        sparse = need("scipy.sparse", extra="adapt", what="label-propagation")
        images = np.concatenate([self.keys, np.asarray(x, dtype=self.keys.dtype)])
        names, nodes = len(self.texts), len(self.texts) + len(images)
        rows, columns, weights = [], [], []
        for kind, (targets, power) in {"images": (images, 1.0), "texts": (self.texts, self.gamma)}.items():
            k = min(self.k, len(targets) - (kind == "images"))
            if k < 1:
                continue
            for part in blocks(len(images), len(targets)):
                block = np.arange(len(images))[part]
                cosines = images[block] @ targets.T
                if kind == "images":
                    cosines[np.arange(len(block)), block] = -np.inf  # no image is its own neighbour
                nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
                rows.append(np.repeat(block + names, k))
                columns.append((nearest + (names if kind == "images" else 0)).ravel())
                weights.append(np.maximum(np.take_along_axis(cosines, nearest, 1), 0).ravel().astype(np.float64) ** power)
        if not rows:
            return sparse.csr_matrix((nodes, nodes))
        one_way = sparse.csr_matrix(
            (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape=(nodes, nodes)
        )
        return (one_way + one_way.T).tocsr()

    def with_classes(self, weight: np.ndarray) -> Head | None:
        """With the names as further nodes; None for a model without texts."""
        if not len(self.texts):
            return None
        none = np.zeros((len(self.values), len(weight)), dtype=self.values.dtype)
        texts = np.concatenate([self.texts, unit_rows(weight)])
        return replace(self, texts=texts, values=np.concatenate([self.values, none], 1))


def spread(graph: Any, seeds: np.ndarray, alpha: float) -> np.ndarray:
    """(I − αS)^-1 Y, S = D^-1/2 W D^-1/2: W symmetric, sparse [M, M], Y seeds [M, C], 0 ≤ α < 1; error below 1e-10 of Y's norm.

    By iteration, F ← αSF + Y: the eigenvalues of S are between −1 and 1, so the error falls by α in each.
    """
    degree = np.asarray(graph.sum(1)).ravel()
    root = np.where(degree > 0, np.maximum(degree, 1e-300) ** -0.5, 0)
    labels = seeds
    for _ in range(math.ceil(math.log(1e-10 * (1 - alpha)) / math.log(alpha)) if alpha > 0 else 0):
        labels = alpha * root[:, None] * (graph @ (root[:, None] * labels)) + seeds
    return labels


@dataclass(frozen=True)
class Stream(Head):
    """Class names, and two caches of the images of the call themselves, as they come: TDA (Karmanov et al. 2024, arXiv:2403.18293).

    The positive cache holds for each class the ``shots`` images of least entropy that were given its name, and adds
    α exp(−β (1 − cosine)) to their class. The negative cache holds images of moderate entropy (between ``low`` and ``high``) and
    takes α⁻ exp(−β⁻ (1 − cosine)) from every class that is likelier than ``mask`` for them. An image is stored before it is
    judged. The images are taken in a random order of a fixed seed, as in the authors' loader: in the order of a folder, the first
    classes would fill their caches before the others have any.
    Checked with the authors' code, in which entropies are in nats, divided by log2 C (so that the greatest is 0.69).
    """

    weight: np.ndarray  # scaled vectors of the class names [C, E]
    shots: int = 3
    alpha: float = 2.0
    beta: float = 5.0
    negative_shots: int = 2
    negative_alpha: float = 0.117
    negative_beta: float = 1.0
    low: float = 0.2
    high: float = 0.5
    mask: float = 0.03
    seed: int = 0

    together: ClassVar[bool] = True

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[N, C]"""
        x = np.asarray(x, dtype=np.float32)
        names = np.asarray(x @ self.weight.T, dtype=np.float64)
        result = names.copy()
        p = np.exp(names - names.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(1)
        moderate = entropy / max(math.log2(names.shape[1]), 1e-12)
        positive, negative = _Cache(names.shape, self.shots, x), _Cache(names.shape, self.negative_shots, x)
        for i in np.random.default_rng(self.seed).permutation(len(x)):
            label = int(names[i].argmax())
            positive.add(i, label, entropy[i])
            if self.low < moderate[i] < self.high:
                negative.add(i, label, entropy[i])
            if self.alpha and positive.images.size:
                near = self.alpha * np.exp(-self.beta * (1 - positive.cosines(x[i])))
                result[i] += np.bincount(positive.labels, near, names.shape[1])
            if self.negative_alpha and negative.images.size:
                near = self.negative_alpha * np.exp(-self.negative_beta * (1 - negative.cosines(x[i])))
                likely = p[negative.images]
                result[i] -= near @ ((likely > self.mask) & (likely < 1))
        return result

    def with_classes(self, weight: np.ndarray) -> Head | None:
        """With the further names."""
        return replace(self, weight=np.concatenate([self.weight, weight]))


class _Cache:
    """Of each class at most ``shots`` images, those of least entropy."""

    def __init__(self, shape: tuple[int, ...], shots: int, x: np.ndarray) -> None:
        self.held: list[list[int]] = [[] for _ in range(shape[1])]
        self.entropy: dict[int, float] = {}
        self.shots = shots
        self.x = x
        self.images, self.labels, self.keys = np.zeros(0, dtype=int), np.zeros(0, dtype=int), x[:0]

    def add(self, image: int, label: int, entropy: float) -> None:
        """Keep an image for a label, if it is among the surest ``shots`` of it."""
        held = self.held[label]
        if not self.shots or (len(held) == self.shots and entropy >= self.entropy[held[-1]]):
            return
        self.entropy[image] = entropy
        kept = sorted(
            [*held[: self.shots - 1], image] if len(held) == self.shots else [*held, image], key=lambda i: self.entropy[i]
        )
        self.held[label] = kept
        self.images = np.array([i for images in self.held for i in images], dtype=int)
        self.labels = np.repeat(np.arange(len(self.held)), [len(images) for images in self.held])
        self.keys = self.x[self.images]

    def cosines(self, vector: np.ndarray) -> np.ndarray:
        """Of a unit vector [E] with all that are kept, [n]."""
        result: np.ndarray = self.keys @ vector
        return result
