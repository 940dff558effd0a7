"""The ways that fit pictures with several labels, and why the others do not.

A way gives each picture a score for each label; probabilities and thresholds are computed from the scores of pictures that were
left out (select.py), so that scores of all ways are judged alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diptych.choose.towers import TOWER_WAYS
from diptych.choose.ways.base import Support, Way
from diptych.choose.ways.gda import GaussianDiscriminant
from diptych.choose.ways.linear import NEVER, regression
from diptych.choose.ways.nearest import Prototypes
from diptych.choose.ways.tip import TipAdapter
from diptych.choose.ways.zeroshot import Descriptions, ZeroShot
from diptych.core.errors import DiptychError
from diptych.core.registry import resolve
from diptych.inference.heads import Head, Linear
from diptych.inference.several import Shares


def one_against_rest(support: Support, fit: Any) -> Linear:
    """Rows of linear classifiers, each of the pictures with a label against all others: the difference of the two classes' rows.

    fit: from a support of the classes "without" and "with" to a ``Linear`` head. A label that no training picture has scores low,
    one that all have scores high.
    """
    weight = np.zeros((support.classes, support.x.shape[1]), dtype=np.float32)
    bias = np.zeros(support.classes, dtype=np.float32)
    for label in range(support.classes):
        has = np.asarray(support.y)[:, label]
        if has.any() and not has.all():
            head = fit(Support(support.x, has.astype(np.int64), ("without", "with"), scale=support.scale, seed=support.seed))
            weight[label], bias[label] = head.weight[1] - head.weight[0], head.bias[1] - head.bias[0]
        else:
            bias[label] = NEVER if not has.any() else -NEVER
    return Linear(weight, bias)


@dataclass(frozen=True)
class Frequencies(Way):
    """The share of the training pictures with each label, whatever the picture shows: what every way has to beat."""

    name = "majority"
    about = "control: how frequent each label is, whatever the picture shows"

    def fit(self, support: Support) -> Head:
        """Log-odds of the shares, each label counted once more with and without."""
        counts = np.asarray(support.y).sum(0) + 1.0
        return Linear(np.zeros((support.classes, support.x.shape[1])), np.log(counts / (len(support.y) + 2 - counts)))


@dataclass(frozen=True)
class LabelNeighbours(Way):
    """The share of the votes of the k most similar training pictures that have the label, as in ``knn``; scores are log-odds with
    one vote more that is half for and half against (after ML-kNN, Zhang & Zhou 2007, whose prior is smoothed likewise).
    """

    name = "knn"
    about = "votes of the most similar training images for each of their labels"
    cite = "Wu et al. 2018, arXiv:1805.01978; Zhang & Zhou 2007, Pattern Recognition 40"
    k: int = 20
    temperature: float = 0.07

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """k, not above the number of images; 20 stands for all of them if there are fewer."""
        return [{"k": 20}] + [{"k": k} for k in (1, 3, 5, 10) if k < min(20, len(support.y))]

    def fit(self, support: Support) -> Head:
        """Keeps the images."""
        return Shares(support.x, support.onehot, self.k, self.temperature)


@dataclass(frozen=True)
class LabelPrototypes(Prototypes):
    """For each label, which is nearer: the mean vector of the pictures with it, or that of those without it."""

    about = "for each label the nearer of two mean vectors: of the images with it and without it"

    def fit(self, support: Support) -> Head:
        """Means as a linear classifier."""
        return one_against_rest(support, lambda two: Prototypes(self.unit).fit(two))


@dataclass(frozen=True)
class LabelDiscriminant(GaussianDiscriminant):
    """``gda`` of the pictures with a label against those without it, for each label, times α, added to zero-shot."""

    about = "for each label two Gaussians with a shared covariance, added to zero-shot"

    @classmethod
    def logits_of(cls, settings: Sequence[Mapping[str, Any]], support: Support, x: np.ndarray) -> list[np.ndarray]:
        """By one estimate for all α."""
        estimates = {shrink: cls(1.0, shrink)._rows(support) for shrink in {cls(**s).shrink for s in settings}}
        return [way._added(support, estimates[way.shrink]).logits(x) for way in (cls(**s) for s in settings)]

    def fit(self, support: Support) -> Head:
        """A linear classifier."""
        return self._added(support, self._rows(support))

    def _rows(self, support: Support) -> Linear:
        return one_against_rest(support, lambda two: GaussianDiscriminant(1.0, self.shrink).fit(two))

    def _added(self, support: Support, rows: Linear) -> Head:
        if support.prompts is None:
            return rows
        known = np.abs(rows.bias) < -NEVER  # others: by their names alone
        weight = support.scale * support.texts + self.alpha * rows.weight
        return Linear(weight.astype(np.float32), (self.alpha * np.where(known, rows.bias, 0)).astype(np.float32))


@dataclass(frozen=True)
class LabelProbe(Way):
    """Logistic regression by L-BFGS for each label, with it against without it; one penalty 1 / C for all labels."""

    name = "probe"
    about = "logistic regression on the image vectors, each label against the rest"
    cite = "Radford et al. 2021, arXiv:2103.00020"
    c: float = 10.0

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """C over six powers of ten."""
        return [{"c": c} for c in (10.0, 0.1, 1.0, 100.0, 1000.0, 10000.0)]

    def fit(self, support: Support) -> Head:
        """The regressions' weights and offsets."""
        x, basis = np.asarray(support.x, dtype=np.float64), None
        if len(x) < x.shape[1]:  # in the span of the samples, where the solutions lie, once for all labels
            u, s, basis = np.linalg.svd(x, full_matrices=False)
            x = u * s
        rows = one_against_rest(replace(support, x=x), lambda two: regression(two.x, two.y, 2, self.c, what="--way probe"))
        return rows if basis is None else Linear((rows.weight @ basis).astype(np.float32), rows.bias)


@dataclass(frozen=True)
class LabelTip(TipAdapter):
    """Tip-Adapter with several ones in the row of a stored picture: scale · cos(image, name) + α Σ_s exp(−β (1 − cos(image, s)))
    over the stored images s that have the label.
    """

    about = "label names, and stored training images near the image that have the label; nothing is trained"

    @classmethod
    def logits_of(cls, settings: Sequence[Mapping[str, Any]], support: Support, x: np.ndarray) -> list[np.ndarray]:
        """By cosines that are computed once."""
        named = np.asarray(x) @ (support.scale * support.texts).T
        cosines, values = np.asarray(x) @ support.x.T, support.onehot
        votes = {beta: np.exp(beta * (cosines - 1)) @ values for beta in {cls(**s).beta for s in settings}}
        return [named + way.alpha * votes[way.beta] for way in (cls(**s) for s in settings)]


SEVERAL_WAYS: dict[str, type[Way]] = {
    way.name: way
    for way in (
        Frequencies, ZeroShot, Descriptions, LabelNeighbours, LabelPrototypes, LabelDiscriminant, LabelProbe, LabelTip,
    )
}  # fmt: skip
_EXCLUDES = "its loss lets one class exclude the others; a form for several labels is not built"
_NAMES_ONE = "it gives each picture exactly one class, also those without a label from which it learns"
_TEXTS = "it chooses or learns texts by which class each picture has alone"
_TOWER = "it trains by classes that exclude each other; adapt a tower to captions (--way captions), then choose on its vectors"
REASONS: dict[str, str] = {
    **dict.fromkeys(("cross-modal", "probe-init", "clap", "taskres", "tip-f", "clip-adapter", "wise"), _EXCLUDES),
    **dict.fromkeys(("upl", "entropy", "label-propagation", "tda", "unem", "unem-gaussian"), _NAMES_ONE),
    **dict.fromkeys(("proapo", "gpt-adapter", "adaptclipzs", "gist"), _TEXTS),
    **{name: _TOWER for name, way in TOWER_WAYS.items() if way.learns == "classes"},
}


def several_way(name: str) -> type[Way]:
    """The way of a name, for pictures with several labels. DiptychError for an unknown one, and the reason for one that does not
    fit. A way of your own is a subclass of ``Way`` with ``several = True``: its ``fit`` gets the targets, bool [N, L], as ``y``.
    """
    if name in REASONS:
        raise DiptychError(f"--way {name} does not fit pictures with several labels: {REASONS[name]}")
    cls: type[Way] = resolve(name, SEVERAL_WAYS, "way for pictures with several labels")
    if name not in SEVERAL_WAYS and not getattr(cls, "several", False):
        raise DiptychError(
            f"--way {name} is made for one class each; one for several labels has `several = True`, and its fit gets bool [N, L]"
        )
    return cls


def unfit(name: str) -> str:
    """Why a way does not fit pictures with several labels; "" if it does, or is not known at all."""
    return REASONS.get(name, "")
