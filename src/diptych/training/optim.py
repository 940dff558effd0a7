"""Optimizer, learning-rate schedule and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diptych.errors import DiptychError
from diptych.recipe import Stage


def build_optimizer(modules: Sequence[nn.Module], stage: Stage) -> Optimizers:
    """What learns in ``modules``, each parameter once, under the stage's optimizer.

    Weight decay falls on matrices only, not on biases, norms and temperatures. With ``muon`` the matrices inside transformer blocks take
    orthogonalised steps (Jordan et al. 2024; Liu et al. 2025) and everything else, embeddings and heads included, takes AdamW's.
    """
    named = {id(p): (n, p) for m in modules for n, p in m.named_parameters() if p.requires_grad}
    muon = [p for n, p in named.values() if stage.optimizer == "muon" and p.ndim == 2 and "blocks." in n]
    rest = [p for n, p in named.values() if not any(p is q for q in muon)]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": stage.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    members: list[torch.optim.Optimizer] = []
    if groups:
        members.append(torch.optim.AdamW(groups, lr=stage.lr, betas=stage.betas, fused=True))
    if muon:
        members.append(torch.optim.Muon(muon, lr=stage.muon_lr, weight_decay=stage.weight_decay, adjust_lr_fn="match_rms_adamw"))
    if not members:
        raise DiptychError(
            f"stages.{stage.name}: nothing learns; every part it names is frozen and its objectives have no parameters"
        )
    return Optimizers(members)


class Optimizers:
    """Several optimizers driven as one, each keeping its own peak learning rate."""

    def __init__(self, members: Sequence[torch.optim.Optimizer]):
        self.members = list(members)
        self._peak = [[g["lr"] for g in m.param_groups] for m in self.members]

    @property
    def parameters(self) -> list[Tensor]:
        return [p for m in self.members for g in m.param_groups for p in g["params"]]

    def set_rate(self, share: float) -> None:
        """Learning rates as a share of their peaks."""
        for member, peaks in zip(self.members, self._peak, strict=True):
            for group, peak in zip(member.param_groups, peaks, strict=True):
                group["lr"] = peak * share

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def step(self) -> None:
        for member in self.members:
            member.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [m.state_dict() for m in self.members]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for member, state in zip(self.members, states, strict=True):
            member.load_state_dict(state)


def rate_share(stage: Stage, step: int, progress: float) -> float:
    """Share of the peak learning rate at ``step``, with ``progress`` (0 to 1) of the stage's budget spent: warm-up by steps, the rest by budget."""
    rate = min(1.0, (step + 1) / max(stage.warmup, 1))
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
