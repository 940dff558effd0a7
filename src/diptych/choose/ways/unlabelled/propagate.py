"""Ways without training that use all test images together: propagation over neighbours, and caches of the images themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.choose.ways.base import Support, Way
from diptych.inference.heads import Head
from diptych.inference.transductive import Propagation, Stream


@dataclass(frozen=True)
class LabelPropagation(Way):
    """Labels spread over the graph of nearest neighbours of class names, labelled, unlabelled and test images (``Propagation``).

    Without labelled images it is ZLaP (Stojnić et al. 2024), whose authors' code gave k, γ and α (5, 5, 0.3) and was checked for
    the graph; one difference: there an image is among its own k neighbours and the edge is dropped, so that k − 1 remain. Without
    texts it is scikit-learn's LabelSpreading with this graph, which the tests use as an oracle.
    """

    name = "label-propagation"
    about = "labels spread over neighbours among all images, test images included"
    cite = "Zhou et al. 2004; Stojnić et al. 2024, arXiv:2404.04072"
    transductive = True
    k: int = 5
    gamma: float = 5.0
    alpha: float = 0.3

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, float]]:
        """Number of neighbours, how far labels spread, and how little the names count: the authors' power, or the plain cosine."""
        return [{"k": k, "alpha": alpha, "gamma": gamma} for gamma in (5.0, 1.0) for k in (5, 10, 20) for alpha in (0.3, 0.8)]

    def fit(self, support: Support) -> Head:
        """A head that keeps the images; they spread their labels when the test images are there."""
        extra = support.unlabelled if support.unlabelled is not None else support.x[:0]
        values = np.concatenate([support.onehot, np.zeros((len(extra), support.classes), dtype=np.float32)])
        texts = support.texts if support.prompts is not None else np.zeros((0, support.x.shape[1]), dtype=np.float32)
        return Propagation(texts, np.concatenate([support.x, extra]), values, self.k, self.gamma, self.alpha)


@dataclass(frozen=True)
class DynamicAdapter(Way):
    """TDA: two caches of the test images themselves, as they come (``Stream``; Karmanov et al. 2024). Nothing is trained.

    Defaults: the authors' for ImageNet. Test-time prompt tuning (TPT) is something else: it needs the model's text tower and
    views of each image, which vectors do not have.
    """

    name = "tda"
    about = "zero-shot, corrected by caches of the test images as they come; nothing is trained"
    cite = "Karmanov et al. 2024, arXiv:2403.18293"
    needs_text = True
    needs_images = False
    transductive = True
    alpha: float = 2.0
    beta: float = 5.0
    negative_alpha: float = 0.117

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, float]]:
        """The authors' values over their data sets; both caches off: zero-shot."""
        settings: list[Mapping[str, float]] = [{"alpha": a, "beta": b} for b in (5.0, 8.0) for a in (2.0, 1.0, 4.0)]
        return [*settings, {"alpha": 0.0, "negative_alpha": 0.0}]

    def fit(self, support: Support) -> Head:
        """A head with the names; its caches fill when the test images are there."""
        weight = (support.scale * support.texts).astype(np.float32)
        return Stream(weight, alpha=self.alpha, beta=self.beta, negative_alpha=self.negative_alpha, seed=support.seed)
