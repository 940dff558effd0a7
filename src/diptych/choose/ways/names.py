"""Linear classifiers that begin at the vectors of the class names: trained freely, held near them, or by a residual."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diptych.choose.ways.base import Support, Way
from diptych.choose.ways.descent import Descent, tensor
from diptych.core.arrays import unit_rows
from diptych.inference.heads import Head, Linear


def trained_rows(
    support: Support,
    rows_of: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    descent: Descent,
    penalty: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Linear:
    """Class vectors ``rows_of(parameter)`` [C, E] trained by cross-entropy of scaled cosines, plus a penalty of the parameter."""
    x, y = tensor(support.x), torch.as_tensor(support.y, dtype=torch.int64)

    def logits_of(some: torch.Tensor) -> torch.Tensor:
        """Of some rows [n]: [n, C]."""
        rows = rows_of(start)
        scales = support.scale * rows.square().sum(-1).rsqrt()
        return x[some] @ rows.T * scales

    descent.train(logits_of, y, [start], support.seed, None if penalty is None else lambda: penalty(start))
    return Linear(support.scale * unit_rows(rows_of(start).numpy()), np.zeros(support.classes, dtype=np.float32), open=True)


@dataclass(frozen=True)
class NameProbe(Way):
    """A linear classifier by cosines that begins at the vectors of the class names (ZS-LP of Silva-Rodríguez et al. 2024).

    The authors' settings (jusiro/CLAP, SGD_lr1e-1_B256_ep300.yaml): SGD, momentum 0.9, rate 0.1 with a cosine and one epoch at
    1e-5, 300 epochs of batches of 256. The other rates are those that their grid search tries. They train on 20 crops of each
    image, here on one vector of it.

    length: the rows are only used by their direction, but the shorter they are the further an update turns them. The authors' rows
    begin as CLIP's text tower leaves them, before they are scaled to unit length; there their length is about 10 (not checked here,
    where all vectors have unit length).
    """

    name = "probe-init"
    about = "linear classifier that begins at the class names and is trained freely"
    cite = "Silva-Rodríguez et al. 2024, arXiv:2312.12730"
    needs_text = True
    lr: float = 0.1
    epochs: int = 300
    batch: int = 256
    length: float = 10.0

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """Three learning rates."""
        return [{"lr": lr} for lr in (0.1, 0.01, 0.001)]

    def fit(self, support: Support) -> Head:
        """Trained rows; those of classes without pictures only move away from the others' images."""
        rows = tensor(self.length * support.texts)
        return trained_rows(support, lambda w: w, rows, Descent("sgd", self.lr, self.epochs, self.batch, warm=True))


@dataclass(frozen=True)
class Clap(NameProbe):
    """``probe-init`` with a penalty for leaving the class names: mean over classes of λ_c ‖w_c − t_c‖² (CLAP).

    λ_c is the mean zero-shot probability of class c on its own training images, and stays as it is at the start: a class that its
    name already names well is held fast. Checked in jusiro/CLAP, trainers/adapters.py (constraint ``l2``). λ is 1 for classes
    without pictures: nothing speaks against their names. No setting is chosen: the paper's claim is that one setting serves all
    data.
    """

    name = "clap"
    about = "linear classifier that begins at the class names and is held near those that work"

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """One setting."""
        return [{}]

    def fit(self, support: Support) -> Head:
        """Trained rows."""
        names = tensor(self.length * support.texts)
        held = tensor(self.multipliers(support))

        def penalty(w: torch.Tensor) -> torch.Tensor:
            """How far the class vectors are from their names, held by CLAP's weights; a scalar."""
            return (held * (w - names).square().sum(-1)).mean()

        descent = Descent("sgd", self.lr, self.epochs, self.batch, warm=True)
        return trained_rows(support, lambda w: w, names.clone(), descent, penalty)

    @staticmethod
    def multipliers(support: Support) -> np.ndarray:
        """λ of each class [C]."""
        logits = (support.scale * support.x @ support.texts.T).astype(np.float64)
        own = np.exp(logits - logits.max(1, keepdims=True))
        own = own[np.arange(len(support.y)), support.y] / own.sum(1)
        counts = np.bincount(support.y, minlength=support.classes)
        sums = np.bincount(support.y, own, minlength=support.classes)
        multipliers: np.ndarray = np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)
        return multipliers


@dataclass(frozen=True)
class TaskRes(Way):
    """Class vectors t_c + α r_c with a residual r that begins at 0 and knows nothing of the texts (Yu et al. 2023).

    The authors' settings (geekyutao/TaskRes, train_regular.sh and the file that it names): α 0.5 (1 on the flowers), Adam with
    rate 0.002 (0.0002 on ImageNet), weight decay 5e-4 (Dassl's default), a cosine after one epoch at 1e-5, batches of 256, 100
    epochs up to 4 images of a class and 200 above. ``length`` as in ``probe-init``: t has the length that CLIP's text tower gives
    it.
    """

    name = "taskres"
    about = "a learned residual on the vectors of the class names"
    cite = "Yu et al. 2023, arXiv:2211.10277"
    needs_text = True
    alpha: float = 0.5
    lr: float = 0.002
    epochs: int | None = None  # None: 100, or 200 for more than 4 images of a class
    batch: int = 256
    decay: float = 5e-4
    length: float = 10.0

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """The authors' values of α and of the learning rate."""
        return [{"alpha": a, "lr": lr} for lr in (0.002, 0.0002) for a in (0.5, 1.0)]

    def fit(self, support: Support) -> Head:
        """The rows t + α r."""
        shots = len(support.y) / max(1, len(np.unique(support.y)))
        epochs = self.epochs if self.epochs is not None else 100 if shots <= 4 else 200
        names = tensor(self.length * support.texts)
        descent = Descent("adam", self.lr, epochs, self.batch, self.decay, warm=True)
        return trained_rows(support, lambda r: names + self.alpha * r, torch.zeros_like(names), descent)
