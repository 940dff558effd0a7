"""Clips made of stills: ``stills:scenes:small?n=4&seed=0``, several pairs of a source one after the other (COSA, Chen et al. 2024,
arXiv:2306.09085, §3.2).

A sample has the fields ``video`` (n pictures as the frames of a clip, one a second), ``text`` (their captions in the same order, as
one paragraph), and ``image`` and ``caption``, the first picture and its caption alone. Extra: ``events``, when each is shown. The
other pictures are drawn from the whole
base, by the sample's number and the seed. The address of the base is percent-encoded if it has options of its own.
"""

from __future__ import annotations

import hashlib
from typing import Annotated
from urllib.parse import quote, unquote

import numpy as np
from pydantic import Field

from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Sample, Video, captioned
from diptych.data.source import BrokenItem, Problem, Source, all_texts

MOST_DRAWN = 2**31  # of a source without end, numbers up to this are drawn


class Stills:
    """n: pictures of a clip. seed: which ones follow each other. joint: what stands between two captions."""

    fields: tuple[str, ...] = ("image", "video", "text", "caption")
    scheme = "stills"

    def __init__(self, place: str, *, n: Annotated[int, Field(ge=1)] = 4, seed: Annotated[int, Field(ge=0)] = 0, joint: str = ", "):
        from diptych.data.sources import open_source

        self.n, self.seed, self.joint = n, seed, joint
        self._set(open_source(unquote(place)))

    def _set(self, base: Source) -> Stills:
        self.base = base
        self.problems: list[Problem] = list(base.problems)
        self.address = f"{self.scheme}:{quote(base.address, safe=':/,{}*')}?n={self.n}&seed={self.seed}"
        if not len(base):
            raise DiptychError(f"{self.address}: {base.address} has no samples")
        return self

    @property
    def image_size(self) -> int | None:
        """The base's own size of pictures; None if it has none."""
        return getattr(self.base, "image_size", None)

    def __len__(self) -> int:
        return len(self.base)

    def members(self, index: int) -> list[int]:
        """The numbers in the base of a clip's pictures: its own, and others drawn at random, each at most once if the base has
        enough of them."""
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"{self.address}: there is no number {index}")
        random = np.random.default_rng((self.seed, index))
        most = min(len(self.base), MOST_DRAWN)
        chosen = [index]
        while len(chosen) < self.n:
            other = int(random.integers(most))
            if other not in chosen or most < self.n:
                chosen.append(other)
        return chosen

    def __getitem__(self, index: int) -> Sample:
        members = self.members(index)
        own = self.base[members[0]]
        others = [self._usable(m) for m in members[1:]]
        samples = [own, *(other for other in others if other is not None)]
        for sample in samples[:1]:
            if sample.image is None or not sample.captions:
                raise BrokenItem(sample.id, "stills: needs an image with a caption")
        random = np.random.default_rng((self.seed, members[0], 1))
        picked = [int(random.integers(len(s.captions))) for s in samples]
        texts = [s.captions[k].strip().rstrip(".") for s, k in zip(samples, picked, strict=True)]
        meanings = [s.meanings[k] if k < len(s.meanings) else s.captions[k] for s, k in zip(samples, picked, strict=True)]
        first: Captions = own.fields["text"]
        return Sample(
            own.id,
            {"events": [{"text": text, "start": float(i), "end": i + 1.0} for i, text in enumerate(texts)]},
            image=own.image,
            video=Video([s.image for s in samples if s.image is not None], [float(i) for i in range(len(samples))]),
            text=captioned([self.joint.join(texts)], [" > ".join(meanings)]),
            caption=first,
        )

    def _usable(self, index: int) -> Sample | None:
        """Another pair; None if it cannot be used, so that one broken picture costs no other its place."""
        try:
            sample = self.base[index]
        except BrokenItem:
            return None
        return sample if sample.image is not None and sample.captions else None

    def captions(self, index: int) -> list[str]:
        """The captions of a clip's pictures, without decoding them where the base can."""
        texts = []
        for member in self.members(index):
            try:
                texts += all_texts(self.base, member)
            except BrokenItem:
                continue
        return [self.joint.join(texts), *texts]

    def fingerprint(self) -> str:
        """A hash of the base's fingerprint and the options."""
        noted = f"{self.scheme} {self.base.fingerprint()} {self.n} {self.seed} {self.joint}"
        return hashlib.sha256(noted.encode()).hexdigest()[:16]

    def split(self, name: str) -> Source:
        """A part of the base, likewise."""
        part = type(self).__new__(type(self))
        part.n, part.seed, part.joint = self.n, self.seed, self.joint
        return part._set(self.base.split(name))
