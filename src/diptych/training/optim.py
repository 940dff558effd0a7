"""Optimizer, learning-rate schedule and averaged weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diptych.config.recipe import Stage
from diptych.core.errors import DiptychError
from diptych.core.registry import resolve
from diptych.models.vlm import VLM
from diptych.training.distributed import is_sharded, like, local, whole
from diptych.training.muon import Float32Muon
from diptych.training.precision import multiplies_bf16


@dataclass(frozen=True)
class Learned:
    """A parameter that learns, and how: its weight decay, and its learning rate as a share of the stage's."""

    name: str
    parameter: Tensor
    weight_decay: float
    share: float
    adapter: bool = False  # of an adapter


def adamw(learned: Sequence[Learned], stage: Stage) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019) with the stage's ``lr`` and ``betas``."""
    groups: dict[tuple[bool, float, float], list[Tensor]] = {}
    for p in learned:  # fused steps do not accept whole and sharded tensors together
        groups.setdefault((is_sharded(p.parameter), p.weight_decay, p.share), []).append(p.parameter)
    made = [{"params": ps, "weight_decay": wd, "lr": stage.lr * share} for (_, wd, share), ps in groups.items()]
    return [torch.optim.AdamW(made, lr=stage.lr, betas=stage.betas, fused=True)] if made else []


def muon(learned: Sequence[Learned], stage: Stage) -> list[torch.optim.Optimizer]:
    """Orthogonalised steps (Jordan et al. 2024; Liu et al. 2025) with ``muon_lr`` for the matrices inside transformer blocks, AdamW
    for everything else, embeddings, heads and adapters included.
    """
    matrices = [p for p in learned if p.parameter.ndim == 2 and "blocks." in p.name and not p.adapter]
    chosen = {id(p) for p in matrices}
    members = adamw([p for p in learned if id(p) not in chosen], stage)
    groups: dict[tuple[bool, float, float], list[Tensor]] = {}
    for p in matrices:
        groups.setdefault((is_sharded(p.parameter), p.weight_decay, p.share), []).append(p.parameter)
    made = [{"params": ps, "weight_decay": wd, "lr": stage.muon_lr * share} for (_, wd, share), ps in groups.items()]
    if made:
        fast = multiplies_bf16(matrices[0].parameter.device)
        cls = torch.optim.Muon if fast else Float32Muon
        members.append(cls(made, lr=stage.muon_lr, weight_decay=stage.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return members


def sgd(learned: Sequence[Learned], stage: Stage) -> list[torch.optim.Optimizer]:
    """Stochastic gradient descent with the stage's ``lr`` and momentum ``betas[0]``; the other of ``betas`` has no effect."""
    groups: dict[tuple[bool, float, float], list[Tensor]] = {}
    for p in learned:
        groups.setdefault((is_sharded(p.parameter), p.weight_decay, p.share), []).append(p.parameter)
    made = [{"params": ps, "weight_decay": wd, "lr": stage.lr * share} for (_, wd, share), ps in groups.items()]
    return [torch.optim.SGD(made, lr=stage.lr, momentum=stage.betas[0])] if made else []


# (learned, stage) → optimizers; one of your own is package.module:function.
OPTIMIZERS: dict[str, Any] = {"muon": muon, "adamw": adamw, "sgd": sgd}


def build_optimizer(modules: Sequence[nn.Module], stage: Stage) -> Optimizers:
    """What learns in ``modules``, each parameter once, under the stage's optimizer. Weight decay falls on matrices only, not on
    biases, norms and temperatures. DiptychError if nothing learns.
    """
    every = [(f"{k}.{n}", p) for k, m in enumerate(modules) for n, p in m.named_parameters()]
    named = {id(p): (n, p) for n, p in reversed(every) if p.requires_grad}  # a shared parameter has its first name
    named = dict(reversed(named.items()))
    below = layers_above([n for n, _ in every])

    adapter_of = {
        id(p): (name, model.part_of(name))
        for model in modules
        if isinstance(model, VLM)
        for name, adapter in model.adapters.items()
        for p in adapter.own()  # type: ignore[operator]
    }

    def share(name: str, p: nn.Parameter) -> float:
        """The factor by which a weight's learning rate differs from the stage's."""
        if id(p) in adapter_of:  # its own rate, or that of its part
            adapter, part = adapter_of[id(p)]
            rate = stage.rates.get(f"adapters.{adapter}", stage.rates.get(part, 1.0))
        else:
            rate = next((rate for part, rate in stage.rates.items() if f".parts.{part}." in name), 1.0)
        return float(stage.layer_decay ** below[name] * rate)

    learned = [
        Learned(n, p, stage.weight_decay if p.ndim >= 2 else 0.0, share(n, p), id(p) in adapter_of) for n, p in named.values()
    ]
    if not learned:
        raise DiptychError(
            f"stages.{stage.name}: nothing learns; every part it names is frozen and its objectives have no parameters"
        )
    return Optimizers(resolve(stage.optimizer, OPTIMIZERS, "optimizer")(learned, stage), {n: p for n, p in named.values()})


LAYER = re.compile(r"^(.*?)\b(?:blocks|layers?|h)\.(\d+)\.")


def layers_above(names: Sequence[str]) -> dict[str, int]:
    """How many layers lie between each parameter and the top of its part: 0 for parameters after the blocks or outside them, 1 for
    those of the last block, one more for each block below, and one more than the first block's for parameters before it
    (embeddings, stems).
    """
    depth: dict[str, int] = {}
    for name in names:
        if results := LAYER.match(name):
            depth[results[1]] = max(depth.get(results[1], 0), int(results[2]) + 1)
    result = {}
    for name in names:
        results = LAYER.match(name)
        inside = [d for stack, d in depth.items() if name.startswith(part_of(stack))]
        if results:
            result[name] = depth[results[1]] - int(results[2])
        else:
            on_top = not inside or any(name.startswith(stack) for stack in depth) or ".pool." in name
            result[name] = 0 if on_top else max(inside) + 1
    return result


def part_of(stack: str) -> str:
    """``0.parts.vision.transformer.`` → ``0.parts.vision.``"""
    return ".".join(stack.split(".")[:3]) + "."


class Optimizers:
    """Several optimizers driven as one, each keeping its own peak learning rate."""

    def __init__(self, members: Sequence[torch.optim.Optimizer], names: dict[str, Tensor]):
        self.members, self.names = list(members), names
        self._peak = [[g["lr"] for g in m.param_groups] for m in self.members]

    @property
    def parameters(self) -> list[Tensor]:
        """Everything that learns."""
        return [p for m in self.members for g in m.param_groups for p in g["params"]]

    def set_rate(self, share: float) -> None:
        """Learning rates as a share of their peaks."""
        for member, peaks in zip(self.members, self._peak, strict=True):
            for group, peak in zip(member.param_groups, peaks, strict=True):
                group["lr"] = peak * share

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One step of each optimizer."""
        for member in self.members:
            member.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts as ``parameter.slot``, sharded tensors gathered. Rates and decays come from the recipe and are
        not saved.
        """
        slots = {id(p): state for m in self.members for p, state in m.state.items()}
        return {
            f"{n}.{k}": whole(v) for n, p in self.names.items() for k, v in slots.get(id(p), {}).items() if isinstance(v, Tensor)
        }

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Whole tensors; those of sharded parameters are sharded in the same way. KeyError names a parameter that the optimizer
        does not have.
        """
        owner = {id(p): m for m in self.members for g in m.param_groups for p in g["params"]}
        for key, value in saved.items():
            name, _, slot = key.rpartition(".")
            p = self.names[name]
            value = value.to(p.device)
            owner[id(p)].state[p][slot] = like(value, p) if value.shape == p.shape else value


def wsd(stage: Stage, progress: float) -> float:
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM, §4): constant, then linearly to 0 over the last ``stage.decay`` of the
    budget.
    """
    return max((1 - progress) / stage.decay, 0.0) if progress > 1 - stage.decay else 1.0


def cosine(stage: Stage, progress: float) -> float:
    """Half a cosine down to 0 (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def constant(stage: Stage, progress: float) -> float:
    """1, always."""
    return 1.0


# (stage, progress from 0 to 1) → share of the peak learning rate, without the warm-up; one of your own is package.module:function.
SCHEDULES: dict[str, Any] = {"wsd": wsd, "cosine": cosine, "constant": constant}


def rate_share(stage: Stage, step: int, progress: float) -> float:
    """Share of the peak learning rate at ``step``, with ``progress`` (0 to 1) of the stage's budget spent: warm-up by steps, the
    rest by budget.
    """
    schedule = resolve(stage.schedule, SCHEDULES, "schedule")
    return float(min(1.0, (step + 1) / max(stage.warmup, 1)) * schedule(stage, min(max(progress, 0.0), 1.0)))


def clip(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most ``limit``; returns the norm before. Some may be sharded, some
    not.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    kinds = [[g for g in grads if is_sharded(g) == kind] for kind in (False, True)]
    norms = [whole(torch.nn.utils.get_total_norm(kind)) for kind in kinds if kind]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    factor = (limit / (total + 1e-6)).clamp(max=1.0)
    for kind in kinds:
        if kind:
            torch._foreach_mul_(kind, factor)
    return total


class Averaged:
    """Exponential moving average of the trainable weights, for scoring; with a short memory at first, so that the initial weights
    are forgotten.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.names, self.live = zip(*((n, p) for n, p in module.named_parameters() if p.requires_grad), strict=True)
        self.shadow: list[Tensor] = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights after this step of the stage."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([local(x) for x in self.shadow], [local(p.detach()) for p in self.live], 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(zip(self.names, self.shadow, strict=True))

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take averages from a checkpoint."""
        for name, shadow in zip(self.names, self.shadow, strict=True):
            shadow.copy_(like(state[name], shadow))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages replace the weights for the duration of the context."""
        live = [p.detach().clone() for p in self.live]
        self._put(self.shadow)
        try:
            yield
        finally:
            self._put(live)

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for p, value in zip(self.live, values, strict=True):
            p.copy_(value)
