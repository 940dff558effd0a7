"""A few labelled pictures of each class: ``shots:classes:my/photos?shots=16&seed=0``.

The training part is the first ``shots`` pictures of each class in an order that the seed fixes; the test part is the base's own,
whole. The base is ``classes:`` or any source whose samples have a label; of ``scenes:``, pictures of one object with the object as
the class. Its address is percent-encoded if it has options of its own (``few_shots()`` writes it).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote, unquote

import numpy as np
from pydantic import Field

from diptych.core.errors import DiptychError, counted
from diptych.core.sample import Captions, Label, Sample, class_text, in_template
from diptych.data.source import BrokenItem, Controlled, Problem, Source

DRAWN, HELD_OUT = 2000, 1000  # pictures of a source that draws them: of which the few are taken, and of the other parts

_LAST: dict[tuple[str, int], list[tuple[Any, int]]] = {}  # what was drawn last: a run opens its data several times


def few_shots(address: str, shots: int = 16, seed: int = 0, template: str = "a photo of a {}", hold: float = 0.0) -> str:
    """The address of a few pictures of each class of another source."""
    more = f"&hold={hold:g}" if hold else ""
    return f"shots:{quote(address, safe=':/,{}*')}?shots={shots}&seed={seed}&template={quote(template, safe='{} ')}{more}"


def few(labels: Sequence[int] | np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Positions of the first ``shots`` of each class in an order drawn by the seed, so that fewer are part of more; 0: all. Sorted,
    int [n].
    """
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == label][: shots or None] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


class Shots:
    """shots: pictures of each class, all if a class has no more; 0: all. seed: which ones. template: the caption of each picture,
    from its class name. hold: this share of the pictures of each class, at least one and never the last, is the validation part
    and not in the training part; 0: the validation part is the base's own. held_out: how many pictures the other parts have, of a
    source that draws them.
    """

    fields = ("image", "text", "label")

    def __init__(
        self,
        place: str,
        *,
        shots: Annotated[int, Field(ge=0)] = 16,
        seed: int = 0,
        template: str = "a photo of a {}",
        hold: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        held_out: Annotated[int, Field(ge=1)] = HELD_OUT,
    ):
        from diptych.data.sources import open_source

        if "{}" not in template:
            raise DiptychError(f"shots:{place}: template '{template}' has no {{}} where the class name goes")
        self.shots, self.seed, self.template, self.hold, self.held_out = shots, seed, template, hold, held_out
        self._set(open_source(unquote(place)), "")

    def _set(self, base: Source, part: str) -> Shots:
        self.base, self.part = base, part
        self.address = few_shots(base.address, self.shots, self.seed, self.template, self.hold)
        self.problems: list[Problem] = list(base.problems)
        self._members: list[int] | None = None
        self._drawn: list[tuple[Any, int]] = []  # pictures of a source that draws them, with their classes
        if not self.classes:
            raise DiptychError(f"{self.address}: {base.address} has no classes; read class folders or a table by classes:PATH")
        return self

    @property
    def controlled(self) -> bool:
        """Whether the base draws pictures of one object each."""
        return isinstance(self.base, Controlled)

    @property
    def classes(self) -> list[str]:
        """The names of all classes, in the order of their indices."""
        if isinstance(self.base, Controlled):
            return list(self.base.concepts())
        return list(getattr(self.base, "classes", None) or ())

    @property
    def image_size(self) -> int | None:
        """The base's own size of pictures; None if it has none."""
        return getattr(self.base, "image_size", None)

    @property
    def chosen(self) -> bool:
        """Whether this part has a few pictures of each class, not all of them."""
        return self.part in ("", "train") or (self.part == "validation" and bool(self.hold))

    @property
    def members(self) -> list[int]:
        """The items, as numbers in the base, or in the pictures that it drew."""
        if self._members is None:
            self._members = (
                self._chosen() if self.chosen else list(range(self._draw(self.held_out) if self.controlled else len(self.base)))
            )
        return self._members

    def _draw(self, n: int) -> int:
        assert isinstance(self.base, Controlled)
        key = (self.base.fingerprint(), n)
        if key not in _LAST:
            _LAST.clear()
            _LAST[key] = self.base.concept_samples(n)
        self._drawn = _LAST[key]
        return len(self._drawn)

    def _chosen(self) -> list[int]:
        """The few of each class, or those of them that are held out."""
        if self.controlled:
            self._draw(DRAWN)
        known = {
            i: label.index for i in range(DRAWN if self.controlled else len(self.base)) if (label := self._label(i)) is not None
        }
        if not known:
            raise DiptychError(f"{self.address}: no pictures with a class in the training part of {self.base.address}")
        items, labels = np.array(list(known)), np.array(list(known.values()))
        which = few(labels, self.shots, self.seed)
        items, labels = items[which], labels[which]
        kept = np.ones(len(items), dtype=bool)
        if self.hold:
            order = np.random.default_rng([self.seed, 1]).permutation(len(items))
            for label in np.unique(labels):
                of_class = order[labels[order] == label]
                kept[of_class[: min(max(1, round(self.hold * len(of_class))), len(of_class) - 1)]] = False
        return [int(i) for i in items[kept if self.part != "validation" else ~kept]]

    def _label(self, at: int) -> Label | None:
        """The label of an item of the base, or of what it drew; without decoding its picture where the base can. None: it has none,
        or cannot be read.
        """
        if self.controlled:
            number = self._drawn[at][1]
            return Label(number, self.classes[number])
        try:
            sample = self.base.listed(at) if hasattr(self.base, "listed") else self.base[at]
        except BrokenItem as broken:
            self.problems.append(broken.problem)
            return None
        label: Label | None = sample.fields.get("label")
        return label

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Sample:
        at = self.members[index]
        if self.controlled:
            picture, number = self._drawn[at]
            name = self.classes[number]
            found = Sample(f"{self.part or 'train'}/{at}", {"labels": [name]}, image=picture, label=Label(number, name))
        else:
            found = self.base[at]
        label: Label | None = found.fields.get("label")
        return found if label is None else found.with_(text=Captions([self._caption(label)]))

    def _caption(self, label: Label) -> str:
        return in_template(self.template, class_text(label.name))

    def listed(self, index: int) -> Sample:
        """One item without its picture: its id, its label and its caption."""
        at = self.members[index]
        label = self._label(at)
        text = None if label is None else Captions([self._caption(label)])
        if self.controlled:
            return Sample(f"{self.part or 'train'}/{at}", text=text, label=label)
        return (self.base.listed(at) if hasattr(self.base, "listed") else self.base[at]).with_(text=text)

    def captions(self, index: int) -> list[str]:
        """The caption of one item, without decoding its picture where the base can."""
        label = self._label(self.members[index])
        return [] if label is None else [self._caption(label)]

    def fingerprint(self) -> str:
        """Of the base, and of which pictures are taken."""
        noted = f"{self.base.fingerprint()} {self.shots} {self.seed} {self.template} {self.hold:g} {self.held_out} {self.part}"
        return hashlib.sha256(noted.encode()).hexdigest()[:16]

    def split(self, name: str) -> Shots:
        """A few pictures of the base's training part; of the others all. With ``hold``, the validation part is of the few too."""
        if self.part == name:
            return self
        if self.part:
            raise DiptychError(f"{self.address} is the {self.part} part already, and has no part '{name}'")
        of = "train" if name == "validation" and self.hold else name
        part = Shots.__new__(Shots)
        part.__dict__.update({k: getattr(self, k) for k in ("shots", "seed", "template", "hold", "held_out")})
        return part._set(self.base.split(of), name)

    def __repr__(self) -> str:
        return f"Shots({self.address}: {counted(len(self), 'picture')})"
