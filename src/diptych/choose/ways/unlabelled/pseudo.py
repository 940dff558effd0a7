"""Learning from images without labels: by pseudo-labels, and by certain but varied predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.choose.ways.base import Support, Way
from diptych.choose.ways.descent import descend, tensor
from diptych.core.arrays import unit_rows
from diptych.core.errors import DiptychError
from diptych.inference.heads import Head, Linear


def pool(support: Support) -> np.ndarray:
    """The images without labels [U, E]: the support's unlabelled ones if it has any, else its images, whose labels are not read."""
    unlabelled = support.unlabelled
    return support.x if unlabelled is None or not len(unlabelled) else unlabelled


def most_confident(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each class the k images, of those that are called so, whose highest probability is greatest: their indices and classes.

    Equal confidence: the earlier image. A class of whose name no image is called has none.
    """
    logits = np.asarray(logits, dtype=np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    confidence, label = 1 / p.sum(1), logits.argmax(1)
    order = np.argsort(-confidence, kind="stable")
    rows = np.concatenate([order[label[order] == c][:k] for c in range(logits.shape[1])])
    return rows, label[rows]


@dataclass(frozen=True)
class PseudoLabels(Way):
    """UPL (Huang et al. 2022, arXiv:2204.03649): the k most confident images of each class by zero-shot, with these labels as true
    ones; then any other way learns from them. No label is read: not of the images it learns from, not for its settings.

    Checked with the authors' code: an image counts for the class that it is called alone; the highest probability is the
    confidence; k = 16. Theirs learns prompts (CoOp) and averages the predictions of several models; here ``way`` learns, on
    vectors.
    way: another way by name. settings: its settings.
    """

    name = "upl"
    about = "pseudo-labels by zero-shot, from which another way learns; no label is used"
    cite = "Huang et al. 2022, arXiv:2204.03649"
    needs_text = True
    k: int = 16
    way: str = "wise"
    settings: dict[str, Any] = field(default_factory=dict)

    def fit(self, support: Support) -> Head:
        """The head of the other way; zero-shot if there is no image at all."""
        from diptych.choose.ways import way_named  # the table of ways has this one, too

        inner = way_named(self.way)
        if inner is PseudoLabels:
            raise DiptychError("upl: way cannot be upl itself")
        images = pool(support)
        if not len(images):
            return Linear(support.scale * support.texts, np.zeros(support.classes), open=True)
        rows, labels = most_confident(support.scale * images @ support.texts.T, self.k)
        return inner(**self.settings).fit(replace(support, x=images[rows], y=labels, unlabelled=images))


def information(logits: Tensor, weight: float) -> Tensor:
    """The mean entropy of the predictions − weight · the entropy of the mean prediction, in nats; logits [N, C].

    At weight 1 it is minus the mutual information of image and class.
    """
    log_p = logits.log_softmax(-1)
    single = -(log_p.exp() * log_p).sum(-1).mean()
    mean = log_p.exp().mean(0)
    return single + weight * (mean * (mean + 1e-12).log()).sum()


@dataclass(frozen=True)
class Entropy(Way):
    """Class vectors that make the predictions for unlabelled images certain, and all of them together varied: a residual on the
    text vectors is trained to raise the mutual information of image and class (Shi & Sha 2012, arXiv:1206.6438; as a term of POUF,
    Tanwisuth et al. 2023, arXiv:2305.00350, after which this way is made: without its transport term, and without prompts).

    rate: of AdamW, in units of the usual size of a unit vector's element. Where classes have very unequal shares, a weight of 1
    pushes towards equal ones; it is one of the settings.
    """

    name = "entropy"
    about = "class vectors moved until unlabelled images are named with certainty and variety"
    cite = "Shi & Sha 2012, arXiv:1206.6438; Tanwisuth et al. 2023, arXiv:2305.00350"
    needs_text = True
    weight: float = 1.0
    steps: int = 100
    rate: float = 0.02

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """Two weights of variety; none of it: zero-shot."""
        return [{"weight": 1.0}, {"weight": 0.5}, {"steps": 0}]

    def fit(self, support: Support) -> Head:
        """Logits are scaled cosines with the class vectors that were moved."""
        images, start = tensor(pool(support)), tensor(support.texts)
        residual = torch.zeros_like(start)

        def classes() -> Tensor:
            """The class vectors now, unit vectors [C, E]."""
            return torch.nn.functional.normalize(start + residual, dim=1)

        if len(images):
            loss = lambda: information(support.scale * images @ classes().T, self.weight)  # noqa: E731
            descend(loss, [residual], steps=self.steps, rate=self.rate * start.shape[1] ** -0.5)
        weight = unit_rows(classes().numpy())
        return Linear(support.scale * weight, np.zeros(support.classes), open=True)
