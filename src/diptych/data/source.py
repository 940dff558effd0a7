"""The interface of every data source, and of those that can build controlled tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    from diptych.core.sample import Sample


@dataclass(frozen=True)
class Problem:
    """One item that could not be used, and why."""

    item: str  # file, row or key, as a user would look it up
    reason: str


class BrokenItem(Exception):  # noqa: N818 - it is an outcome of reading one item, not a failure of the program
    """Raised by ``Source.__getitem__`` for an item that cannot be used; the loader records it and continues."""

    def __init__(self, item: str, reason: str):
        super().__init__(f"{item}: {reason}")
        self.problem = Problem(item, reason)


@dataclass
class Group:
    """k images and k captions; caption i is true of image i alone.

    Because every caption is right as often as wrong, a scorer that does not look at the image gets exactly 1/k (ties shared),
    whichever captions it prefers: the design is balanced, not only the sample.
    """

    id: str  # also the cluster for the bootstrap
    skill: str  # object, count, colour, size, position, relation, binding, negation
    images: list[np.ndarray]  # k × uint8 [height, width, 3]
    captions: list[str]  # k
    extra: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """Random access to samples. ``source[i]`` is a pure function of i (and the address).

    ``problems`` lists what was found unusable when the source was opened (an empty caption, a missing file).
    Problems that only decoding shows raise ``BrokenItem`` from ``source[i]``.
    """

    address: str
    problems: list[Problem]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def fingerprint(self) -> str:
        """A hash of what the source holds (not of the decoded pixels); saved with every run."""
        ...

    def split(self, name: str) -> Source:
        """The ``train``, ``validation`` or ``test`` part; disjoint, fixed by the image's hash (or, for ``scenes:``, by seed)."""
        ...


@runtime_checkable
class Controlled(Protocol):
    """A source that can build controlled tests of single skills (only ``scenes:`` so far)."""

    skills: tuple[str, ...]

    def groups(self, skill: str, n: int) -> list[Group]:
        """n groups of k images and k captions that differ in one skill alone, image i with caption i."""
        ...

    def concepts(self) -> list[str]:
        """Names for zero-shot concept naming, in singular."""
        ...

    def concept_samples(self, n: int) -> list[tuple[np.ndarray, int]]:
        """n images of one object each, with the index of its concept in ``concepts()``; classes balanced to ±1."""
        ...


def all_texts(source: Any, index: int) -> list[str]:
    """Captions and turns of one item, without decoding it where the source can (``captions``). Raises ``BrokenItem``."""
    if hasattr(source, "captions"):
        return list(source.captions(index))
    sample = source[index]
    return [*sample.captions, *(turn.text for turn in sample.turns)]


def usable_samples(source: Source, n: int) -> list[Sample]:
    """The first n samples that can be used."""
    samples: list[Sample] = []
    for index in range(len(source)):
        if len(samples) == n:
            break
        try:
            samples.append(source[index])
        except BrokenItem:
            continue
    return samples
