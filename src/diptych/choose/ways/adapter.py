"""CLIP-Adapter: a small network on the image vectors, classes by their names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from diptych.choose.ways.base import Support, Way
from diptych.choose.ways.descent import Descent, tensor
from diptych.inference.heads import Bottleneck, Head


@dataclass(frozen=True)
class ClipAdapter(Way):
    """The image vector becomes share · ReLU(ReLU(x Aᵀ) Bᵀ) + (1 − share) · x; names stay (Gao et al. 2021, image side).

    Checked in gaopengcuhk/CLIP-Adapter, clip_adapter.py: no biases, a width of E / 4, share 0.2, PyTorch's first values of a
    linear layer, uniform within ±1 / √inputs, cross-entropy of scaled cosines. The form does not depend on the length of x. That
    code has no settings of training: batches of 32 and the rate 1e-5 are the paper's as remembered, Adam is the default of its
    library (Dassl, with weight decay 5e-4), 200 epochs are those that Tip-Adapter's paper counts for it; share 0.6 is the paper's
    for fine classes, and the rate 0.001 is ours.
    """

    name = "clip-adapter"
    about = "a small network changes the image vectors; class names stay"
    cite = "Gao et al. 2021, arXiv:2110.04544"
    needs_text = True
    share: float = 0.2
    reduction: int = 4
    lr: float = 1e-5
    epochs: int = 200
    batch: int = 32
    decay: float = 5e-4
    updates: int = 4000  # at most so many, in whole epochs, so that many images take seconds too

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """Two shares, each with the paper's learning rate and with one that needs fewer epochs."""
        return [{"share": share, "lr": lr, "epochs": e} for lr, e in ((1e-5, 200), (1e-3, 50)) for share in (0.2, 0.6)]

    def fit(self, support: Support) -> Head:
        """The two matrices, and the names."""
        width = support.x.shape[1]
        narrow = max(1, width // self.reduction)
        random = torch.Generator().manual_seed(support.seed)
        down = (2 * torch.rand(narrow, width, generator=random) - 1) / width**0.5
        up = (2 * torch.rand(width, narrow, generator=random) - 1) / narrow**0.5
        x, y = tensor(support.x), torch.as_tensor(support.y, dtype=torch.int64)
        names = tensor(support.scale * support.texts)

        def logits_of(some: torch.Tensor) -> torch.Tensor:
            """Of some rows [n]: [n, C]."""
            changed = functional.relu(functional.relu(x[some] @ down.T) @ up.T)
            mixed = functional.normalize(self.share * changed + (1 - self.share) * x[some], dim=-1)
            return mixed @ names.T

        epochs = max(1, min(self.epochs, self.updates // math.ceil(len(y) / self.batch)))
        Descent("adam", self.lr, epochs, self.batch, self.decay).train(logits_of, y, [down, up], support.seed)
        return Bottleneck(names.numpy(), down.numpy(), up.numpy(), self.share)
