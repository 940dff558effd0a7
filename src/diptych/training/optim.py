"""Optimizer, learning-rate schedule and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from diptych.recipe import Stage


def adamw(modules: Iterable[nn.Module], stage: Stage) -> torch.optim.AdamW:
    """AdamW over what learns; weight decay on matrices only, not on biases, norms, temperatures."""
    parameters = list({id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": stage.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=stage.lr, betas=stage.betas, fused=True)


def learning_rate(stage: Stage, step: int, progress: float) -> float:
    """At ``step`` of the stage, with ``progress`` (0 to 1) of its budget spent: warm-up by steps, the rest by budget."""
    rate = stage.lr * min(1.0, (step + 1) / max(stage.warmup, 1))
    progress = min(max(progress, 0.0), 1.0)
    if stage.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * progress))
    if stage.schedule == "wsd" and progress > 1 - stage.decay:
        return rate * max((1 - progress) / stage.decay, 0.0)
    return rate


class Averaged:
    """Exponential moving average of the trainable weights, for scoring; short at first, so that the start is forgotten."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.names, self.live = zip(*((n, p) for n, p in module.named_parameters() if p.requires_grad), strict=True)
        self.shadow: list[Tensor] = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.live], 1 - decay)

    def state(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.shadow, strict=True))

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        for name, shadow in zip(self.names, self.shadow, strict=True):
            shadow.copy_(state[name])
