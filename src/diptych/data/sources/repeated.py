"""Some samples of a source repeated many times among fresh ones: ``repeated:scenes:medium?items=100&share=0.5``.

Training on this shows what a model keeps of a sample that it saw often (such as pictures copied all over the web), compared with
what it keeps of others. Two disjoint sets of ``items`` samples are cut from the front of the training part: ``part=a`` repeats the
first, ``part=b`` the second, and neither shows samples of the other's set. Of all samples drawn, a ``share`` are repeats; the rest
is the base's own stream. The address of the base is percent-encoded if it has options of its own (``repeated()`` writes it).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, unquote

from diptych.core.errors import DiptychError, counted
from diptych.data.source import Problem, Source, all_texts

if TYPE_CHECKING:
    from diptych.core.sample import Sample

_MILLION = 1_000_000


def repeated(address: str, items: int, share: float, part: str = "a") -> str:
    """The address of a source of which some samples are repeated."""
    return f"repeated:{quote(address, safe=':/,{}*')}?items={items}&share={share:g}&part={part}"


class Repeated:
    """``base``: the training part of what is repeated."""

    def __init__(self, place: str, *, items: int = 100, share: float = 0.5, part: Literal["a", "b"] = "a"):
        from diptych.data.sources import open_source

        whole = open_source(unquote(place))
        self._whole, self.base = whole, whole.split("train")
        self.items, self.part = items, part
        self.address = repeated(whole.address, items, share, part)
        self.problems: list[Problem] = list(self.base.problems)
        self._parts = round(share * _MILLION)
        if not 0 < self._parts < _MILLION:
            raise DiptychError(f"{self.address}: share must lie between 0 and 1, not {share}")
        if not 1 <= items <= len(self.base) // 3:
            raise DiptychError(
                f"{self.address}: two sets of {items} items, and others, out of {len(self.base)} training samples; take 1 to "
                f"{len(self.base) // 3}"
            )
        if hasattr(self.base, "image_size"):
            self.image_size: int = self.base.image_size

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that the base's samples have, if it says so."""
        return tuple(getattr(self.base, "fields", ()))

    @property
    def classes(self) -> list[str] | None:
        """The base's classes, if it has labels."""
        return getattr(self.base, "classes", None)

    def __len__(self) -> int:
        fresh = len(self.base) - 2 * self.items
        return fresh * _MILLION // (_MILLION - self._parts)

    def number(self, index: int) -> int:
        """The index in the base of the sample at ``index``. Repeats are spread evenly: after i samples, ⌊i·share⌋ were repeats."""
        before, after = index * self._parts // _MILLION, (index + 1) * self._parts // _MILLION
        if after > before:
            return before % self.items + (self.items if self.part == "b" else 0)
        return 2 * self.items + index - before

    def __getitem__(self, index: int) -> Sample:
        return self.base[self.number(self._checked(index))]

    def captions(self, index: int) -> list[str]:
        """All texts of one item; without decoding it, if the base can."""
        return all_texts(self.base, self.number(self._checked(index)))

    def _checked(self, index: int) -> int:
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"{self.address} has {counted(len(self), 'sample')}; there is no number {index}")
        return index

    def members(self, part: str | None = None) -> range:
        """Numbers, in the base, of the repeated samples of a part; None: of this source's own."""
        first = self.items if (part or self.part) == "b" else 0
        return range(first, first + self.items)

    def ordinary(self) -> range:
        """Indices of as many samples of the base that are not repeated: its last ones."""
        return range(len(self.base) - self.items, len(self.base))

    def fingerprint(self) -> str:
        """A hash of the base's fingerprint, of what is repeated and how often."""
        noted = f"{self.base.fingerprint()} {self.items} {self._parts} {self.part}"
        return hashlib.sha256(noted.encode()).hexdigest()[:16]

    def split(self, name: str) -> Source:
        """This source for ``train``, since only training data is repeated; the other parts are the base's own."""
        return self if name == "train" else self._whole.split(name)
