"""Teachers: an averaged copy of the model, a copy as it was after a stage, or another model; objectives can ask for its encodings
by ``<teacher>:<field>.<encoding>``.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from diptych.core.errors import DiptychError, nearest
from diptych.core.graph import Graph, Provider

if TYPE_CHECKING:
    from diptych.models.vlm import VLM


class Teacher(nn.Module):
    """Parts with their adapters, without gradients and in evaluation mode. decay: of a moving average of the student's weights;
    None: they never change. students: parts of the student's own that it computes with. copied: whether its weights are copies of
    the student's, which are saved with the run; else it is another model.
    """

    def __init__(
        self,
        parts: nn.ModuleDict,
        adapters: nn.ModuleDict,
        graph: Graph,
        decay: float | None = None,
        students: Sequence[nn.Module] = (),
        copied: bool = False,
    ):
        super().__init__()
        self.parts, self.adapters, self.graph, self.decay, self.copied = parts, adapters, graph, decay, copied
        self._students = tuple(students)  # in a tuple: they are not the teacher's
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Teacher:
        """Evaluation mode, always."""
        return super().train(False)

    def compute(self, provider: Provider, inputs: Sequence[Any]) -> Any:
        """What a provider makes of its inputs, without a graph."""
        learning = [m for part in self._students for m in part.modules() if m.training]
        for module in learning:
            module.training = False
        try:
            with torch.no_grad():
                return provider.method(*inputs)
        finally:
            for module in learning:
                module.training = True

    def teacher(self, name: str) -> Teacher:
        """Raises DiptychError, since a teacher has no teachers."""
        raise DiptychError(f"a teacher has no teacher '{name}'")

    @torch.no_grad()
    def follow(self, parts: Mapping[str, nn.Module], adapters: Mapping[str, nn.Module], decay: float | None = None) -> None:
        """θ' ← m θ' + (1 − m) θ (He et al. 2020, eq. 2), m the decay; 0 copies the student. parts, adapters: the student's. Weights
        that never change are left.
        """
        m = self.decay if decay is None else decay
        if m is None or not self.copied:
            return
        for own, other in self._pairs(parts, adapters):
            both = zip(own.parameters(), other.parameters(), strict=True)
            weights = [(mine, theirs) for mine, theirs in both if mine is not theirs]
            if weights:
                torch._foreach_lerp_([mine for mine, _ in weights], [theirs.to(mine.dtype) for mine, theirs in weights], 1 - m)
            for kept, now in zip(own.buffers(), other.buffers(), strict=True):
                if kept is not now:
                    kept.copy_(now)

    def _pairs(self, parts: Mapping[str, nn.Module], adapters: Mapping[str, nn.Module]) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Its own parts and adapters, each with the student's."""
        yield from ((part, parts[name]) for name, part in self.parts.items())
        yield from ((adapter, adapters[name]) for name, adapter in self.adapters.items())

    @torch.no_grad()
    def exchange(self, parts: Mapping[str, nn.Module], adapters: Mapping[str, nn.Module]) -> None:
        """The teacher gets the student's weights, and the student gets those that the teacher had. A second call undoes it."""
        for own, other in self._pairs(parts, adapters):
            mine, theirs = (list(chain(m.parameters(), m.buffers())) for m in (own, other))
            for a, b in zip(mine, theirs, strict=True):
                if a is not b:
                    before = a.clone()
                    a.copy_(b)
                    b.copy_(before)


def averaged_teacher(model: VLM, of: Collection[str] | str, decay: float | None, where: str) -> Teacher:
    """A copy of a model's parts that follows them; ``decay`` None: that stays as it is until it is taken. Parts not in ``of``, and
    with ``all`` those that never change, are shared with the student. A part that a copied one works inside (gated layers in a
    language model) is copied too. Weights that never change are not copied: the copy has the student's.
    """
    names = set(model.parts) - model.constant if of == "all" else set(of)
    for name in names:
        if name not in model.parts:
            raise DiptychError(f"{where}.of: the recipe has no part '{name}'{nearest(name, model.parts)}")
    names |= {within for name in names if (within := getattr(model.parts[name], "works_in", ""))}
    for name in model.adapters:  # an adapter that changes several parts is copied with all of them
        names |= between if (between := model.parts_of(name)) & names else set()
    memo: dict[int, Any] = {}  # what a copy has in common with the original
    adapted = {id(p) for adapter in model.adapters.values() for p in adapter.own()}  # type: ignore[operator]
    for name, part in model.parts.items():
        if name not in names:
            memo |= {id(module): module for module in part.modules()}
        if name not in names or name in model.unchanging:
            memo |= {id(x): x for x in (*part.parameters(), *part.buffers()) if name not in names or id(x) not in adapted}
    parts, adapters = copy.deepcopy(model.parts, memo), copy.deepcopy(model.adapters, memo)  # with one memo: each in its own part
    own = nn.ModuleDict({name: parts[name] for name in names})
    within = nn.ModuleDict({name: adapter for name, adapter in adapters.items() if model.part_of(name) in names})
    graph = Graph(model.graph.fields, model.graph.choices)
    for name in model.parts:
        graph.add(name, parts[name] if name in names else model.parts[name], model.field_names.get(name))
    return Teacher(own, within, graph, decay, [part for name, part in model.parts.items() if name not in names], copied=True)


def frozen_teacher(other: VLM) -> Teacher:
    """Another model as a teacher."""
    return Teacher(other.parts, other.adapters, other.graph)
