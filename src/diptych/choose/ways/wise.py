"""Between zero-shot and trained: interpolated linear heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from diptych.choose.ways.base import Support, Way
from diptych.choose.ways.descent import Descent, tensor
from diptych.inference.heads import Head, Linear

ALPHAS = (0.5, 0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Wise(Way):
    """WiSE-FT of the last layer (Wortsman et al. 2022, arXiv:2109.01903): (1 − α)·θ0 + α·θ1, θ0 the zero-shot head and θ1 the
    linear head that is trained from it. α = 0 is zero-shot.

    Checked with the authors' code: the merge, the values of α, a head that starts at the scaled text vectors with an offset of
    zeros, AdamW with decay 0.1. Steps and rate are ours, for few images: 100 steps with all images, at ``rate`` times the usual
    size of a unit vector's element (theirs: 10 epochs of ImageNet).
    """

    name = "wise"
    about = "the zero-shot head and a linear head trained from it, interpolated"
    cite = "Wortsman et al. 2022, arXiv:2109.01903"
    needs_text = True
    alpha: float = 0.5
    steps: int = 100
    rate: float = 0.04

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """α in tenths, 0.5 first (the authors' value where nothing can be chosen)."""
        return [{"alpha": alpha} for alpha in ALPHAS]

    def fit(self, support: Support) -> Head:
        """A linear head, to which names can be added; without images, or with α = 0, the zero-shot one."""
        zero = support.scale * support.texts
        if not self.alpha or not len(support.y):
            return Linear(zero, np.zeros(support.classes), open=True)
        weight, bias = self.trained(support)
        return Linear((1 - self.alpha) * zero + self.alpha * weight, self.alpha * bias, open=True)

    @classmethod
    def logits_of(cls, settings: Sequence[Mapping[str, Any]], support: Support, x: np.ndarray) -> list[np.ndarray]:
        """What the heads of several settings give, each θ1 trained once."""
        heads: dict[tuple[Any, ...], tuple[Head, Head]] = {}
        result = []
        for setting in settings:
            way = cls(**setting)
            key = way.steps, way.rate
            if key not in heads:
                heads[key] = replace(way, alpha=0.0).fit(support), replace(way, alpha=1.0).fit(support)
            zero, trained = (head.logits(x) for head in heads[key])
            result.append((1 - way.alpha) * zero + way.alpha * trained)
        return result

    def trained(self, support: Support) -> tuple[np.ndarray, np.ndarray]:
        """θ1: weight [C, E] and offset [C]."""
        x, y = tensor(support.x), torch.tensor(support.y)
        weight = tensor(support.texts)
        bias = torch.zeros(support.classes)

        def logits(rows: torch.Tensor) -> torch.Tensor:
            """Of some rows [n]: [n, C]."""
            return support.scale * (x[rows] @ weight.T + bias)

        descent = Descent("adamw", self.rate * x.shape[1] ** -0.5, self.steps, len(y), decay=0.1, by_step=True)
        descent.train(logits, y, [weight, bias], support.seed)
        return support.scale * weight.numpy(), support.scale * bias.numpy()
