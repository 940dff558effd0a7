"""Heads that only pictures with several labels need. Shapes: N images, E width, S stored vectors, L labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.inference.heads import Head, blocks


@dataclass(frozen=True)
class Shares(Head):
    """For each label the share of the votes of the k nearest stored examples that have it, each with the weight exp(cos /
    temperature). Logits are log-odds, with one vote more that is half for and half against.
    """

    keys: np.ndarray  # unit vectors of the stored examples [S, E]
    targets: np.ndarray  # 1 for the labels that each has, else 0 [S, L]
    k: int
    temperature: float

    def shares(self, x: np.ndarray) -> np.ndarray:
        """[N, L], float64."""
        x, result = np.asarray(x), np.zeros((len(x), self.targets.shape[1]))
        k = min(self.k, len(self.keys))
        for rows in blocks(len(x), len(self.keys)):
            cosines = x[rows] @ self.keys.T
            near = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
            own = np.take_along_axis(cosines, near, 1).astype(np.float64)
            weights = np.exp((own - own.max(1, keepdims=True)) / self.temperature)
            result[rows] = np.einsum("nk,nkl->nl", weights / weights.sum(1, keepdims=True), self.targets[near])
        return result

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[N, L]"""
        k = min(self.k, len(self.keys))
        share = (k * self.shares(x) + 0.5) / (k + 1)
        result: np.ndarray = np.log(share / (1 - share))
        return result
