"""How high the best of many pictures scores by chance."""

from __future__ import annotations

import numpy as np

HIGHEST = 50  # pooled scores to which an exponential tail is fitted
FEWEST = 10  # scores of a query that are enough for its mean and deviation


class Chance:
    """How often a query for something that is not there reaches a score, by scores of absent things for single pictures.

    absent: float [Q, B] of Q queries and B pictures; NaN where a picture shows what the query is for. Each query has a mean and a
    deviation of its own; the form of the distribution is that of all queries' standardised scores together, so that it is known far
    out, with an exponential tail beyond. The best of n pictures has its power n; the chance is the mean over the queries.
    """

    def __init__(self, absent: np.ndarray):
        rows = [row[~np.isnan(row)] for row in np.asarray(absent, dtype=np.float64)]
        rows = [row for row in rows if len(row) >= FEWEST]
        self.means = np.array([row.mean() for row in rows])
        self.deviations = np.maximum(np.array([row.std() for row in rows]), 1e-9)
        self.pool = np.sort(
            np.concatenate([(r - m) / d for r, m, d in zip(rows, self.means, self.deviations, strict=True)] or [[]])
        )
        self.tail = min(HIGHEST, len(self.pool) // 10)  # how many scores the tail stands for
        self.edge = float(self.pool[-self.tail - 1]) if self.known else 0.0
        self.excess = max(float((self.pool[-self.tail :] - self.edge).mean()), 1e-9) if self.known else 1.0

    @property
    def known(self) -> bool:
        """Whether there are scores."""
        return self.tail > 0

    def of(self, scores: np.ndarray, pictures: int) -> np.ndarray:
        """P(the best of so many pictures reaches each score), float64 of the same shape."""
        z = (np.asarray(scores, dtype=np.float64)[..., None] - self.means) / self.deviations
        body = 1 - np.searchsorted(self.pool, z, side="left") / len(self.pool)
        beyond = self.tail / len(self.pool) * np.exp(-np.maximum(z - self.edge, 0) / self.excess)
        reached: np.ndarray = (1 - (1 - np.where(z > self.edge, beyond, body)) ** pictures).mean(-1)
        return reached

    def threshold(self, rate: float, pictures: int) -> float:
        """The score that is reached with the chance ``rate``, by halving."""
        highest = self.edge + self.excess * np.log(max(pictures, 1) / rate)
        low, high = (
            float((self.means + self.pool[0] * self.deviations).min()),
            float((self.means + highest * self.deviations).max()),
        )
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if float(self.of(np.array(middle), pictures)) > rate else (low, middle)
        return high
