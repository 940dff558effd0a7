"""Training of a few parameters on stored vectors: one small loop for all ways that learn by gradient descent.

Float32 on the processor; the order of the images follows the seed; every run takes all of its epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

WARM_RATE = 1e-5


@dataclass(frozen=True)
class Descent:
    """An optimiser and its schedule. The rate falls along half a cosine from ``lr`` towards 0.

    by_step: the rate changes with every update; otherwise with every epoch.
    warm: the first epoch has the rate 1e-5 and the cosine begins with the second, as the library Dassl does it, in which CoOp,
    TaskRes and CLAP are written.
    """

    optimiser: str  # "sgd" (momentum 0.9), "adam" or "adamw"
    lr: float
    epochs: int
    batch: int
    decay: float = 0.0
    eps: float = 1e-8
    by_step: bool = False
    warm: bool = False

    def updates(self, n: int) -> int:
        """Updates in an epoch of n images; the last batch may be smaller."""
        return max(1, math.ceil(n / self.batch))

    def rate(self, epoch: int, update: int, n: int) -> float:
        """The learning rate of an update, both counted from 0."""
        if self.by_step:
            return self._cosine((epoch * self.updates(n) + update) / (self.epochs * self.updates(n)))
        if self.warm and epoch == 0:
            return WARM_RATE
        return self._cosine((epoch - self.warm) / self.epochs)

    def _cosine(self, passed: float) -> float:
        return self.lr * (1 + math.cos(math.pi * passed)) / 2

    def train(
        self,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
        y: torch.Tensor,
        parameters: Sequence[torch.Tensor],
        seed: int,
        penalty: Callable[[], torch.Tensor] | None = None,
    ) -> None:
        """Changes the parameters in place so that the mean −log probability of the classes y [N], plus the penalty, becomes small.

        logits_of: from numbers of images to their logits [n, C].
        """
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimiser = self._optimiser(parameters)
        n, order = len(y), torch.Generator().manual_seed(seed)
        with torch.enable_grad():
            for epoch in range(self.epochs):
                rows = torch.arange(n) if n <= self.batch else torch.randperm(n, generator=order)
                for update, some in enumerate(torch.split(rows, self.batch)):
                    optimiser.param_groups[0]["lr"] = self.rate(epoch, update, n)
                    optimiser.zero_grad()
                    logits = logits_of(some)
                    ends, slopes = [logits], [slope(logits.detach(), y[some])]
                    if penalty is not None:
                        ends, slopes = [*ends, penalty()], [*slopes, torch.ones(())]
                    torch.autograd.backward(ends, slopes)
                    optimiser.step()
        for parameter in parameters:
            parameter.requires_grad_(False)

    def _optimiser(self, parameters: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
        if self.optimiser == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=self.decay, fused=True)
        kind = torch.optim.Adam if self.optimiser == "adam" else torch.optim.AdamW
        return kind(parameters, lr=self.lr, weight_decay=self.decay, eps=self.eps, fused=True)


def slope(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The gradient of the mean −log probability of the true classes with respect to the logits [n, C]: (p − 1 at the class) / n.

    Probabilities below 1e-25 are 0: they change no float32 sum, but what follows of them, down to 1e-45, takes processors several
    times as long.
    """
    p = (logits - logits.amax(-1, keepdim=True)).clamp_(min=-60).exp_()
    p /= p.sum(-1, keepdim=True)
    functional.threshold(p, 1e-25, 0, inplace=True)
    p[torch.arange(len(y)), y] -= 1
    return p.div_(len(y))


def tensor(array: np.ndarray) -> torch.Tensor:
    """A float32 copy of an array."""
    return torch.tensor(np.asarray(array), dtype=torch.float32)


def descend(
    loss: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor], *, steps: int, rate: float, decay: float = 0.0
) -> None:
    """Changes the parameters in place by AdamW, for losses other than that of ``Descent``; every step takes the loss anew, of all
    images or of those that it draws itself.
    """
    descent = Descent("adamw", rate, steps, 1, decay, by_step=True)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = descent._optimiser(parameters)
    with torch.enable_grad():
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = descent.rate(step, 0, 1)
            optimiser.zero_grad()
            loss().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
