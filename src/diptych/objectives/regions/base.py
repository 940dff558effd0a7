"""Regions and their phrases, as pairs that objectives of images and texts can read.

Shapes: B samples, n regions of all samples together.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diptych.core.batch import Batch, Texts
from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError
from diptych.core.graph import renamed
from diptych.models.regions.weights import owners
from diptych.objectives.base import Objective

# What an objective of images and texts reads instead. ``text.fused`` follows from the tokens of both.
NAMES = {
    "image.embedding": "regions.embedding",
    "image.tokens": "regions.tokens",
    "text.embedding": "regions.phrases.embedding",
    "text.tokens": "regions.phrases.tokens",
}


def count_of(p: Pass) -> int:
    """How many regions a batch has; 0 if none of its samples has any."""
    return len(p["regions"]) if p.has("regions") else 0


def meaning_of(phrases: Texts) -> Tensor:
    """Equal numbers for phrases that mean the same: what the source says, or else those with the same tokens. int64 [n]"""
    if phrases.meaning is not None:
        return phrases.meaning
    meaning: Tensor = torch.unique(phrases.ids * phrases.mask, dim=0, return_inverse=True)[1]
    return meaning


def on_whole_images(p: Pass) -> Pass:
    """Each phrase paired with the whole image of its region: ``text`` is the n phrases, ``image`` the image of each. The tower
    reads every image once.
    """
    regions = p["regions"]
    n, device = len(regions), regions.boxes.device
    owner = owners(regions.owner, n, device)
    return p.view(text=regions.phrases).pairs(image=owner, text=torch.arange(n, device=device))


def as_pairs(p: Pass, read: Collection[str]) -> Pass:
    """Each region paired with its phrase: in this pass ``image`` is the n regions and ``text`` the n phrases. read: the encodings
    of ``NAMES`` (as objectives of images and texts call them) that are handed on.
    """
    regions = p["regions"]
    text = replace(regions.phrases, meaning=meaning_of(regions.phrases), owner=None)
    given = {name: p[NAMES[name]] for name in read if name in NAMES}
    q = Pass(p.model, Batch({"text": text}, len(regions), p.batch.start), given)
    if p.rows is not None:
        q.rows = share_of(p)[0]
    return q


def share_of(p: Pass) -> tuple[slice, float]:
    """The regions that this process answers for, which are consecutive, and the factor of their mean loss: processes have different
    numbers of regions, and their losses are averaged.
    """
    n = count_of(p)
    if p.rows is None:
        return slice(0, n), 1.0
    owner = p["regions"].owner
    first, last = (int((owner < edge).sum()) for edge in (p.rows.start, p.rows.stop))
    return slice(first, last), (last - first) * p.size / (n * (p.rows.stop - p.rows.start))


class OnRegions(Objective):
    """Mixed into an objective of images and texts, which then learns from regions and their phrases. It may not read anything that
    is computed from the images themselves.
    """

    @property
    def read(self) -> tuple[str, ...]:
        """The encodings of regions and phrases that it reads, as it calls them itself."""
        own = [*self.couples, *self.needs]
        if wrong := [n for n in own if n not in NAMES and n not in ("text", "text.fused")]:
            raise DiptychError(f"objective {type(self).__name__}: regions have no '{wrong[0]}'; leave out the option that reads it")
        fused = ["image.tokens"] if "text.fused" in own else []
        return tuple(dict.fromkeys(n for n in (*own, *fused) if n in NAMES))

    def coupled(self) -> tuple[str, ...]:
        """The encodings of regions and phrases through which the samples of a batch meet."""
        return tuple(renamed(NAMES[n], self.fields) for n in self.couples)

    def needed(self) -> tuple[str, ...]:
        """The encodings of regions and phrases that it reads, and the regions."""
        return tuple(dict.fromkeys(renamed(n, self.fields) for n in (*(NAMES[n] for n in self.read), "regions")))

    def count(self, p: Pass) -> float:
        """The number of terms, of the regions."""
        p = p.renamed(self.fields)
        return self.terms(as_pairs(p, ())) if count_of(p) else 0

    def __call__(self, p: Pass, *more: Any) -> Any:
        """The loss of the regions of a batch, a scalar; 0 if there are none."""
        p = p.renamed(self.fields)
        if not count_of(p):
            return next(self.parameters()).sum() * 0
        return torch.nn.Module.__call__(self, as_pairs(p, self.read), *more) * share_of(p)[1]
