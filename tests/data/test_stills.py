"""Clips made of stills (COSA): which pictures follow each other, and the fields of a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diptych.core.errors import DiptychError
from diptych.core.sample import Sample, captioned
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.subsets.stills import Stills


class Numbers:
    """Pictures that are filled with their number; some are broken."""

    problems: list[Any] = []  # noqa: RUF012

    def __init__(self, place: str = "", *, n: int = 20, broken: int = -1):
        self.address, self.n, self.broken = f"test_stills:Numbers:?n={n}", n, broken

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise BrokenItem(str(index), "planted")
        image = np.full((4, 4, 3), index, np.uint8)
        return Sample(str(index), image=image, text=captioned([f"number {index}.", f"a picture of {index}"], [str(index)] * 2))

    def fingerprint(self) -> str:
        return f"numbers {self.n}"

    def split(self, name: str) -> Numbers:
        return self


def stills(n: int = 4, seed: int = 0, broken: int = -1) -> Stills:
    made = Stills.__new__(Stills)
    made.n, made.seed, made.joint = n, seed, ", "
    return made._set(Numbers(broken=broken))


def test_pictures_and_captions_are_in_the_same_order() -> None:
    source = stills()
    for index in range(len(source)):
        sample = source[index]
        numbers = [int(frame[0, 0, 0]) for frame in sample.fields["video"].frames]
        assert numbers == source.members(index) and numbers[0] == index and len(set(numbers)) == 4
        texts = sample.captions[0].split(", ")
        assert [int(t.split()[-1]) for t in texts] == numbers and "." not in sample.captions[0]
        assert sample.meanings == [" > ".join(map(str, numbers))]
        assert sample.fields["caption"].texts == [f"number {index}.", f"a picture of {index}"]
        assert sample.image is not None and int(sample.image[0, 0, 0]) == index
        assert sample.fields["video"].seconds == [0.0, 1.0, 2.0, 3.0]


def test_the_seed_fixes_which_follow_each_other() -> None:
    assert stills().members(3) == stills().members(3)
    assert [stills(seed=1).members(i) for i in range(20)] != [stills().members(i) for i in range(20)]
    assert stills().fingerprint() != stills(seed=1).fingerprint() != stills(n=3).fingerprint()


def test_others_are_drawn_evenly() -> None:
    counts = np.bincount([m for i in range(20) for s in range(200) for m in stills(seed=s).members(i)[1:]], minlength=20)
    assert counts.min() > 0.85 * counts.mean() and counts.max() < 1.15 * counts.mean()  # 600 of each, ± 24


def test_a_broken_picture_costs_no_other_its_place() -> None:
    source = stills(broken=7)
    index = next(i for i in range(20) if 7 in source.members(i)[1:])
    sample = source[index]
    assert len(sample.fields["video"].frames) == 3 and len(sample.captions[0].split(", ")) == 3
    with pytest.raises(BrokenItem):
        source[7]


def test_a_base_of_few_pictures_repeats_them() -> None:
    few = stills(n=4)
    few.base = Numbers(n=2)
    assert sorted(set(few.members(0))) == [0, 1] and len(few.members(0)) == 4


def test_of_scenes() -> None:
    source = open_source("stills:scenes:small?n=3")
    sample = source[0]
    assert len(sample.fields["video"].frames) == 3 and source.image_size == 48
    assert source.split("test")[0].id != sample.id and source.captions(0)[0]
    with pytest.raises(DiptychError):
        open_source("stills:scenes:small?n=0")
