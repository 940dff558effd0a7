"""Base class of the sources of the built-in world: samples drawn on demand from seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from diptych.core.errors import counted
from diptych.core.sample import Sample
from diptych.data.scenes.graph import mix
from diptych.data.scenes.world import SPLITS, World
from diptych.data.source import Problem


class Drawn:
    """A source whose sample i depends on the world's options and i alone. Subclasses give ``fields`` and draw samples.

    world: the options of the address. address: as the user gave it.
    """

    def __init__(self, world: World, address: str = "scenes:"):
        self.world = world
        self.address = address
        self.problems: list[Problem] = []

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that samples may have."""
        raise NotImplementedError

    @property
    def image_size(self) -> int:
        """Pixels, height and width, of every picture."""
        return self.world.size

    def __len__(self) -> int:
        return len(self.world)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        return self.drawn(self._checked(index))

    def drawn(self, index: int) -> Sample:
        """The sample at ``index``, from 0 on."""
        raise NotImplementedError

    def _checked(self, index: int) -> int:
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"{self.address} has {counted(len(self), 'sample')}; there is no number {index}")
        return index

    def fingerprint(self) -> str:
        """A hash of the world's options and of all that the pixels depend on."""
        return self.world.fingerprint()

    def split(self, name: str) -> Self:
        """One of train, validation, test, heldout-combinations, heldout-concepts: each has seeds of its own."""
        preset, _, query = self.address.partition("?")
        options = [option for option in query.split("&") if option and not option.startswith("split=")]
        return type(self)(self.world.with_split(name), f"{preset}?{'&'.join([*options, f'split={name}'])}")

    def _seed(self, *stream: int) -> int:
        return mix(self.world.seed, SPLITS.index(self.world.split), *stream)
