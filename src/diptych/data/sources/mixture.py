"""``mix:0.7*coco:a.json+0.3*packed:b``: several sources, drawn by weight; each has its own epochs.

``mix:T=2;cap=20000;1*llava:a.json+1*llava:b.json``: weights by size. A source with n items counts min(n, cap)^(1/T), times its own
weight: examples-proportional mixing with a limit for T = 1, and mixing with a temperature above it (Raffel et al. 2020, T5,
arXiv:1910.10683, section 3.5.2; FLAN, Wei et al. 2022, has T = 1 and a limit of 3,000; InstructBLIP, Dai et al. 2023, T = 2, and
some weights by hand). ``T=inf``: all alike. ``2<5000*ADDRESS``: a limit of its own.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from diptych.core.errors import DiptychError, counted
from diptych.core.sample import Label, Sample
from diptych.data.order import BLOCK, ENDLESS, Mixed, quotas
from diptych.data.source import BrokenItem, Problem, Source, all_texts

EXPECTED = "expected mix:WEIGHT*ADDRESS+WEIGHT*ADDRESS…, such as mix:0.7*coco:a.json+0.3*packed:b (in quotes on a command line)"
_WEIGHT = r"\d*\.?\d+(?:<\d+)?"


class Sizing(NamedTuple):
    """Weights by size. temperature: T; cap: the most items that a source counts as; 0: all that it has."""

    temperature: float
    cap: int = 0

    def __str__(self) -> str:
        return f"T={self.temperature:g};" + (f"cap={self.cap};" if self.cap else "")

    def weight(self, items: int, own: float, cap: int = 0) -> float:
        """The weight of a source with so many items; own: its own factor; cap: its own limit. Rounded to the digits that an address
        holds, so that an address written out gives the same draws.
        """
        limit = cap or self.cap
        return float(f"{own * min(items, limit or items) ** (1 / self.temperature):.6g}")


def sizing_of(body: str, address: str) -> tuple[Sizing | None, str]:
    """What stands before the sources (``T=2;cap=20000;``), None if nothing does, and the rest."""
    found = re.match(r"T=([^;]*);(?:cap=([^;]*);)?", body)
    if found is None:
        if re.match(r"cap=|T=", body):
            raise DiptychError(f"'{address}': weights by size begin with T=2; or T=2;cap=20000; and then WEIGHT*ADDRESS+…")
        return None, body
    try:
        temperature, cap = float(found[1]), int(found[2] or 0)
    except ValueError:
        raise DiptychError(f"'{address}': T must be a number from 1 on and cap a whole number, not '{found[0]}'") from None
    if not temperature >= 1 or (found[2] is not None and cap < 1):
        raise DiptychError(f"'{address}': T must be at least 1 and cap at least 1, not '{found[0]}'")
    return Sizing(temperature, cap), body[found.end() :]


def open_mixture(address: str) -> Mixture:
    """Weights are relative. A ``+`` separates only before ``NUMBER*``, so paths may hold one. ``T=2;cap=20000;`` before the
    sources makes weights depend on their sizes.
    """
    from diptych.data.sources import open_source

    sizing, body = sizing_of(address.removeprefix("mix:"), address)
    parts = re.split(rf"\+(?={_WEIGHT}\*)", body)
    weights, caps, sources = [], [], []
    for part in parts:
        weight, star, rest = part.partition("*")
        if not star or not re.fullmatch(_WEIGHT, weight) or not rest:
            raise DiptychError(f"'{address}': '{part}' is not WEIGHT*ADDRESS; {EXPECTED}")
        own, limited, cap = weight.partition("<")
        if float(own) == 0:
            raise DiptychError(f"'{address}': the weight of '{rest}' is 0; leave it out")
        if limited and (sizing is None or int(cap) < 1):
            raise DiptychError(
                f"'{address}': '{weight}' limits a size, from 1 on, and the weights do not depend on sizes: begin with T=1;"
            )
        if rest.startswith("mix:"):
            raise DiptychError(f"'{address}': a mixture within a mixture; name its sources and weights here")
        weights.append(float(own))
        caps.append(int(cap or 0))
        sources.append(open_source(rest))
    if sizing is not None:
        weights = [_by_size(sizing, *given) for given in zip(sources, weights, caps, strict=True)]
    total = sum(weights)
    for weight, source in zip(weights, sources, strict=True):
        if weight / total * BLOCK < 0.5:
            raise DiptychError(f"'{address}': the weight of '{source.address}' is below 1 in {2 * BLOCK:,} and would be rounded up")
    return Mixture(sources, weights)


def _by_size(sizing: Sizing, source: Source, own: float, cap: int) -> float:
    if len(source) > ENDLESS and not (cap or sizing.cap) and sizing.temperature < float("inf"):
        raise DiptychError(
            f"{source.address} has no size to weigh, since it draws samples without end: add cap=20000; behind T=…;, or a limit "
            "of its own, such as 1<20000*…"
        )
    return sizing.weight(len(source), own, cap)


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

    def shares(self) -> list[dict[str, Any]]:
        """What training draws of each source: address, items, share of all draws, and epochs of the source for one of all items."""
        drawn = [quota / BLOCK for quota in quotas(self.weights)]
        return [
            {"address": a, "items": n, "share": share, "epochs": share * len(self) / n}
            for a, n, share in zip(self.addresses, self.lengths, drawn, strict=True)
        ]

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
