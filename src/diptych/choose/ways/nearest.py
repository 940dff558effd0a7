"""Classes of the most similar training images, and of the nearest class mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.choose.ways.base import Support, Way
from diptych.choose.ways.linear import of_known
from diptych.core.arrays import unit_rows
from diptych.inference.heads import Head, Nearest


@dataclass(frozen=True)
class NearestNeighbours(Way):
    """The k training images with the highest cosine vote with the weight exp(cos / 0.07) (Wu et al. 2018, §3.4).

    k and the temperature are those of DINO's evaluation (facebookresearch/dino, eval_knn.py: 0.07; k 10, 20, 100 or 200, where 20
    is said to be best mostly). The small k of the grid are ours, for few images.
    """

    name = "knn"
    about = "votes of the most similar training images, weighted by similarity"
    cite = "Wu et al. 2018, arXiv:1805.01978; Caron et al. 2021, arXiv:2104.14294"
    k: int = 20
    temperature: float = 0.07

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """k, not above the number of images; 20 stands for all of them if there are fewer."""
        return [{"k": 20}] + [{"k": k} for k in (1, 3, 5, 10) if k < min(20, len(support.y))]

    def fit(self, support: Support) -> Head:
        """Keeps the images; a class without pictures is never named."""
        return Nearest(support.x, support.y.astype(np.int64), support.classes, self.k, self.temperature)


@dataclass(frozen=True)
class Prototypes(Way):
    """The class with the nearest mean vector (Mensink et al. 2013; Snell et al. 2017, eq. 1, on vectors that do not change).

    unit: means are scaled to unit length, so that cosines decide instead of Euclidean distances.
    Logits are −scale/2 × the squared distance, without the part that all classes share: then they are the model's scaled cosines
    where all means have the same length.
    """

    name = "prototypes"
    about = "the nearest mean vector of a class's training images"
    cite = "Snell et al. 2017, arXiv:1703.05175"
    unit: bool = False

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """Euclidean distances as published, or cosines."""
        return [{"unit": False}, {"unit": True}]

    def fit(self, support: Support) -> Head:
        """Means as a linear classifier; a class without pictures is never named."""
        known = np.unique(support.y)
        means = np.stack([support.x[support.y == label].mean(0, dtype=np.float64) for label in known])
        if self.unit:
            means = unit_rows(means)
        return of_known(support.scale * means, -support.scale / 2 * (means**2).sum(1), known, support.classes)
