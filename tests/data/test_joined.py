"""Several clips as one (GEXIA's integration): frames, times, texts and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.core.sample import Sample, Video, captioned
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.subsets.joined import Joined, length_of


class Numbered:
    """Clips of index + 1 frames, two a second, that show the index; one is broken."""

    problems = ()

    def __init__(self, broken: int = -1):
        self.address, self.broken = "test_joined:Numbered:", broken

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise BrokenItem(str(index), "planted")
        frames = [np.full((4, 4, 3), index, np.uint8)] * (index + 1)
        texts = captioned([f"a long text about {index}.", f"only {index}"], [f"m{index}"] * 2)
        return Sample(str(index), video=Video(frames, [3.0 + i / 2 for i in range(index + 1)]), text=texts)

    def fingerprint(self) -> str:
        return "numbered"

    def split(self, name: str) -> Numbered:
        return self


def joined(n: int = 3, broken: int = -1) -> Joined:
    made = Joined.__new__(Joined)
    made.n, made.seed, made.joint = n, 0, ", "
    made._set(Numbered(broken))
    return made


def test_clips_follow_each_other_in_time() -> None:
    source = joined()
    for index in range(6):
        sample, members = source[index], source.members(index)
        video, events = sample.fields["video"], sample.extra["events"]
        assert [int(f[0, 0, 0]) for f in video.frames] == [m for m in members for _ in range(m + 1)]
        now = 0.0
        for member, event in zip(members, events, strict=True):
            length = 1.0 if member == 0 else (member + 1) / 2
            assert event["start"] == pytest.approx(now) and event["end"] == pytest.approx(now + length)
            own = [s for s, f in zip(video.seconds, video.frames, strict=True) if int(f[0, 0, 0]) == member]
            assert own == pytest.approx([now + i / 2 for i in range(member + 1)])
            assert event["text"] in (f"a long text about {member}", f"only {member}")
            now += length
        assert sample.captions == [", ".join(e["text"] for e in events), ", ".join(f"only {m}" for m in members)]
        assert sample.meanings == [" > ".join(f"m{m}" for m in members)] * 2
    assert source.split("train").address == source.address and source[1] == joined()[1]
    assert source.fingerprint() != joined(2).fingerprint()


def test_a_broken_clip_costs_no_other_its_place() -> None:
    source = joined(broken=2)
    index = next(i for i in range(6) if i != 2 and 2 in source.members(i))
    assert len(source[index].extra["events"]) == 2
    with pytest.raises(BrokenItem):
        source[2]


def test_how_long_a_clip_is_shown() -> None:
    assert length_of([4.0]) == 1.0 and length_of([0.0, 0.5, 1.0]) == 1.5


def test_of_the_built_in_world() -> None:
    source = open_source("joined:scenes:clips%3Factions=all&size=32&clip_frames=8?n=3").split("train")
    sample = source[0]
    assert len(sample.fields["video"].frames) == 24 and [e["end"] for e in sample.extra["events"]] == [1.0, 2.0, 3.0]
    short, long = sorted(sample.captions, key=len)
    assert len(short.split()) <= len(long.split()) and source.captions(0)[0].count(",") >= 2
