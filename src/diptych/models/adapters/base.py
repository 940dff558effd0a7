"""The base class of adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from diptych.core.errors import DiptychError

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part


class Adapter(nn.Module):
    """Subclasses take the part, the ``Build``, the recipe's key for messages, and keyword-only options.

    Parameters belong to the adapter, or are in the part under names that contain ``mark`` (as ``peft`` adds them).
    freezes: whether the part's own weights cannot be trained beside it. learns: whether it has anything to learn; the weights of a
    part with adapters that do not are trained as if there were none. An adapter may provide encodings (``core.graph.provides``).
    """

    mark: str = ""
    freezes: bool = False
    learns: bool = True

    def __init__(self, part: Part, build: Build, where: str):
        super().__init__()
        self.where = where
        self._part = [part]  # in a list: the part is not a submodule of the adapter

    @property
    def part(self) -> Part:
        """The part that it adapts."""
        return self._part[0]

    @property
    def spans(self) -> tuple[Part, ...]:
        """All parts that it changes: ``part``, and others that were built before it."""
        return (self.part,)

    def attach(self, build: Build) -> None:
        """Called by the builder when all parts exist, the shared space included."""

    def own(self) -> list[nn.Parameter]:
        """Its parameters, whether in the adapter or in the part."""
        within = [p for n, p in self.part.named_parameters() if self.mark and self.mark in n]
        return [*within, *self.parameters()]

    def owns(self, name: str, prefix: str) -> bool:
        """Whether a name of the model's state dict is one of its weights; ``prefix``: of its part there, such as
        ``parts.text.``.
        """
        return bool(self.mark) and name.startswith(prefix) and self.mark in name

    def bare(self, name: str) -> str:
        """The name that a weight of the part itself has where there is no adapter."""
        return name

    def restart(self) -> None:
        """Called when the part has taken over weights from elsewhere, and the adapter none: for what depends on them."""

    def merge(self) -> None:
        """Merge what was learned into the part's own weights and remove the adapter. DiptychError if that is not possible."""
        raise DiptychError(f"{self.where}: it cannot be merged into the weights of its part")
