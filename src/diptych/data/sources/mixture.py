"""``mix:0.7*coco:a.json+0.3*packed:b``: several sources, drawn by weight; each has its own epochs."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from diptych.core.errors import DiptychError, counted
from diptych.core.sample import Label, Sample
from diptych.data.order import BLOCK, Mixed
from diptych.data.source import BrokenItem, Problem, Source, all_texts

EXPECTED = "expected mix:WEIGHT*ADDRESS+WEIGHT*ADDRESS…, such as mix:0.7*coco:a.json+0.3*packed:b (in quotes on a command line)"


def open_mixture(address: str) -> Mixture:
    """Weights are relative. A ``+`` separates only before ``NUMBER*``, so paths may hold one."""
    from diptych.data.sources import open_source

    parts = re.split(r"\+(?=\d*\.?\d+\*)", address.removeprefix("mix:"))
    weights, addresses = [], []
    for part in parts:
        weight, star, rest = part.partition("*")
        if not star or not re.fullmatch(r"\d*\.?\d+", weight) or not rest:
            raise DiptychError(f"'{address}': '{part}' is not WEIGHT*ADDRESS; {EXPECTED}")
        if float(weight) == 0:
            raise DiptychError(f"'{address}': the weight of '{rest}' is 0; leave it out")
        if rest.startswith("mix:"):
            raise DiptychError(f"'{address}': a mixture within a mixture; name its sources and weights here")
        weights.append(float(weight))
        addresses.append(rest)
    total = sum(weights)
    for weight, rest in zip(weights, addresses, strict=True):
        if weight / total * BLOCK < 0.5:
            raise DiptychError(f"'{address}': the weight of '{rest}' is below 1 in {2 * BLOCK:,} and would be rounded up")
    return Mixture([open_source(a) for a in addresses], weights)


class Mixture:
    """By index, the sources one after the other; by ``order(seed)``, in the order in which training draws them. Ids begin with the
    number of the source.

    ``classes``: those of all sources; if their lists differ, all sorted together, and labels get new numbers.
    classes: of the whole mixture, of which this is a part.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], classes: Sequence[str] = ()):
        self.sources, self.weights = list(sources), list(weights)
        self.addresses = [source.address for source in sources]
        self.address = "mix:" + "+".join(f"{w:g}*{a}" for w, a in zip(weights, self.addresses, strict=True))
        self.lengths = [len(source) for source in sources]
        self.ends = list(accumulate(self.lengths))
        self.problems = [Problem(f"{k}/{p.item}", p.reason) for k, s in enumerate(sources, 1) for p in s.problems]
        lists = [list(getattr(source, "classes", None) or ()) for source in sources]
        self.classes: list[str] = _together([list(classes), *lists])
        numbers = {name: index for index, name in enumerate(self.classes)}
        self._relabelled = [[numbers[name] for name in names] if names != self.classes else None for names in lists]

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that samples of some source have; none if a source does not say which it has."""
        declared = [tuple(getattr(source, "fields", ())) for source in self.sources]
        return tuple(dict.fromkeys(name for names in declared for name in names)) if all(declared) else ()

    @property
    def image_size(self) -> int | None:
        """The sources' own size, if they agree."""
        sizes = {getattr(source, "image_size", None) for source in self.sources}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def instant(self) -> bool:
        """Whether reading is only a memory access for every source."""
        return all(getattr(source, "instant", False) for source in self.sources)

    def __len__(self) -> int:
        return self.ends[-1]

    def _place(self, index: int) -> tuple[int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.address} has {counted(len(self), 'item')}; there is no number {index}")
        index %= len(self)
        which = bisect_right(self.ends, index)
        return which, index - (self.ends[which] - self.lengths[which])

    def __getitem__(self, index: int) -> Sample:
        which, place = self._place(index)
        try:
            sample = self.sources[which][place]
        except BrokenItem as broken:
            raise BrokenItem(f"{which + 1}/{broken.problem.item}", broken.problem.reason) from broken
        label, numbers = sample.fields.get("label"), self._relabelled[which]
        if label is not None and numbers:
            return sample.with_(id=f"{which + 1}/{sample.id}", label=Label(numbers[label.index], label.name))
        return sample.with_(id=f"{which + 1}/{sample.id}")

    def captions(self, index: int) -> list[str]:
        """All texts of one item; without decoding it, if its source can."""
        which, place = self._place(index)
        return all_texts(self.sources[which], place)

    def order(self, seed: int, run: int = 1) -> Mixed:
        """The order of training, in which the sources occur by their weights; ``run`` samples at a time are of one source."""
        return Mixed(self.lengths, self.weights, seed, run)

    def successor(self, index: int) -> int:
        """The next item of the same source, to replace one that is broken."""
        which, place = self._place(index)
        return index - place + (place + 1) % self.lengths[which]

    def fingerprint(self) -> str:
        """A hash of the weights and of the sources' fingerprints."""
        parts = [f"{w:g} {s.fingerprint()}" for w, s in zip(self.weights, self.sources, strict=True)]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def split(self, name: str) -> Mixture:
        """That part of every source; sources without items in that part are left out."""
        parts = [(source.split(name), weight) for source, weight in zip(self.sources, self.weights, strict=True)]
        kept = [(source, weight) for source, weight in parts if len(source)]
        if not kept:
            raise DiptychError(f"{self.address}: no source has items in the {name} part")
        return Mixture([source for source, _ in kept], [weight for _, weight in kept], self.classes)


def _together(lists: Sequence[list[str]]) -> list[str]:
    """Lists of classes as one: the first non-empty list if it has all of them, otherwise all, sorted."""
    first = next((names for names in lists if names), [])
    every = {name for names in lists for name in names}
    return first if every <= set(first) else sorted(every)
