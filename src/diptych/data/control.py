"""A source of which one field says nothing, or belongs to another sample: ``control:scenes:medium?shuffle=text``.

What a model still learns from such data, or still gets right on it, does not come from that field. Evaluation has these controls
for images; this is the same for every field kind, for training and for any task. The address of the base stands percent-encoded if
it has options of its own (``control()`` writes it).
"""

from __future__ import annotations

import hashlib
import random
from typing import Any
from urllib.parse import quote, unquote

from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.fields import FIELDS, field_class
from diptych.data.order import ENDLESS, mixed
from diptych.data.source import BrokenItem, Problem, Source, all_texts
from diptych.data.sources.mixture import Mixture

TOGETHER = {"text": ("negatives",)}  # fields that go with another, entry by entry
BLOCK = 10_000  # samples among which values are dealt out, of a source that draws its samples


def control(address: str, blank: str = "", shuffle: str = "", seed: int = 0) -> str:
    """The address of a source of which a field is blank, or shuffled."""
    how = f"blank={blank}" if blank else f"shuffle={shuffle}"
    return f"control:{quote(address, safe=':/,{}*')}?{how}&seed={seed}"


class Control:
    """blank: the field that says nothing (``Field.blank``): grey pictures, empty texts and phrases, the first class; of
    conversations and documents the pictures. shuffle: the field of which each sample has another one's value (``Field.shuffle``);
    a caption takes its negatives along, boxes are scaled to the image that they are then on. Ids and extras stay.
    """

    def __init__(self, place: str, *, blank: str = "", shuffle: str = "", seed: int = 0):
        from diptych.data.sources import open_source

        self._set(open_source(unquote(place)), blank, shuffle, seed)

    def _set(self, base: Source, blank: str, shuffle: str, seed: int) -> Control:
        self.base, self.blank, self.shuffle, self.seed = base, blank, shuffle, seed
        self.address = control(base.address, blank, shuffle, seed)
        self.problems: list[Problem] = list(base.problems)
        if isinstance(base, Mixture):
            raise DiptychError(f"{self.address}: a control of a mixture; mix controls of its sources instead: mix:1*control:…")
        if bool(blank) == bool(shuffle):
            raise DiptychError(f"{self.address}: name one field, by blank= or by shuffle=")
        self.name = blank or shuffle
        self.kind = field_class(self.name)
        if leader := next((name for name, others in TOGETHER.items() if self.name in others), ""):
            raise DiptychError(f"{self.address}: {self.name} go with {leader}; name that")
        if not self.kind.schema():
            raise DiptychError(f"{self.address}: '{self.name}' is made of other fields; name one of those")
        if self.fields and self.name not in self.fields:
            raise DiptychError(f"{self.address}: {base.address} has no field '{self.name}' (it has: {', '.join(self.fields)})")
        if shuffle and len(base) == 1:
            raise DiptychError(f"{self.address}: there are no two samples to exchange '{shuffle}' between")
        for attribute in ("image_size", "classes"):
            if hasattr(base, attribute):
                setattr(self, attribute, getattr(base, attribute))
        self._dealt: tuple[int, list[int]] = (-1, [])  # the last block used
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that the base's samples have, if it says so."""
        return tuple(getattr(self.base, "fields", ()))

    def __len__(self) -> int:
        return len(self.base)

    def giver(self, index: int) -> int:
        """The number of the sample that this one has the shuffled field of; never itself."""
        n = len(self.base)
        size = BLOCK if n > ENDLESS else n
        block = min(index % n // size, n // size - 1)  # the last one holds the rest, too
        held = self._dealt  # read once: another thread may put its own there
        if held[0] != block:
            among = range(block * size, (block + 1) * size if block < n // size - 1 else n)
            held = self._dealt = (block, self.kind.shuffle(among, random.Random(mixed(self.seed, block))))
        return held[1][index % n - block * size]

    def __getitem__(self, index: int) -> Sample:
        sample = self.base[index]
        if self.blank:
            value = sample.fields.get(self.name)
            changed: dict[str, Any] = {} if value is None else {self.name: self.kind.blank(value)}
            return sample.with_(**changed, **dict.fromkeys(TOGETHER.get(self.name, ())))
        try:
            other = self.base[self.giver(index)]
        except BrokenItem as broken:
            raise BrokenItem(
                sample.id, f"its {self.name} would be that of {broken.problem.item}: {broken.problem.reason}"
            ) from broken
        dealt = {name: other.fields.get(name) for name in (self.name, *TOGETHER.get(self.name, ()))}
        if sample.image is not None and other.image is not None:
            (height, width), (others_height, others_width) = sample.image.shape[:2], other.image.shape[:2]
            x, y = width / others_width, height / others_height
            if self.name == "image":
                dealt |= {n: FIELDS[n].scaled(v, 1 / x, 1 / y) for n, v in sample.fields.items() if n in FIELDS and n != "image"}
            elif dealt[self.name] is not None:
                dealt[self.name] = self.kind.scaled(dealt[self.name], x, y)
        return sample.with_(**dealt)

    def captions(self, index: int) -> list[str]:
        """All texts of one item; without decoding it, if the base can."""
        if self.name not in ("text", "turns"):
            return all_texts(self.base, index)
        sample = self[index]
        return sample.captions + [turn.text for turn in sample.turns]

    def fingerprint(self) -> str:
        """Of the base and of what is done to it."""
        return hashlib.sha256(f"{self.base.fingerprint()} {self.blank} {self.shuffle} {self.seed}".encode()).hexdigest()[:16]

    def split(self, name: str) -> Control:
        """That part of the base, under the same control."""
        return Control.__new__(Control)._set(self.base.split(name), self.blank, self.shuffle, self.seed)
