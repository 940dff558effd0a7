"""Clips one after the other as one long clip: ``joined:scenes:clips?n=3&seed=0`` (the integration of GEXIA, Wang et al. 2025).

A sample has the fields ``video`` (n clips of the source, one after the other) and ``text`` (their captions as one paragraph, and
the shortest caption of each as another one, which is a compressed text of the same). Extra: ``events``, the caption of each and its
interval. Which clips follow each other: as for ``stills:``. The base's address is percent-encoded if it has options of its own.
"""

from __future__ import annotations

import numpy as np

from diptych.core.sample import Sample, Video, captioned
from diptych.data.source import BrokenItem
from diptych.data.subsets.stills import Stills


class Joined(Stills):
    """n: clips of a long one. seed: which ones follow each other. joint: what stands between two captions."""

    fields = ("video", "text")
    scheme = "joined"

    def __getitem__(self, index: int) -> Sample:
        members = self.members(index)
        own = self.base[members[0]]
        if not _has_both(own):
            raise BrokenItem(own.id, "joined: needs a clip with a caption")
        samples = [own, *(other for m in members[1:] if (other := self._usable(m)) is not None)]
        random = np.random.default_rng((self.seed, members[0], 1))
        picked = [int(random.integers(len(s.captions))) for s in samples]
        texts = [s.captions[k].strip().rstrip(".") for s, k in zip(samples, picked, strict=True)]
        short = [min(s.captions, key=lambda text: len(text.split())).strip().rstrip(".") for s in samples]
        meanings = [s.meanings[k] if k < len(s.meanings) else s.captions[k] for s, k in zip(samples, picked, strict=True)]
        frames, seconds, events, now = [], [], [], 0.0
        for sample, text in zip(samples, texts, strict=True):
            video: Video = sample.fields["video"]
            frames += video.frames
            seconds += [now + s - video.seconds[0] for s in video.seconds]
            end = now + length_of(video.seconds)
            events.append({"text": text, "start": now, "end": end})
            now = end
        captions = [self.joint.join(texts), self.joint.join(short)]
        return Sample(
            own.id, {"events": events}, video=Video(frames, seconds), text=captioned(captions, [" > ".join(meanings)] * 2)
        )

    def _usable(self, index: int) -> Sample | None:
        """Another clip; None if it cannot be used."""
        try:
            sample = self.base[index]
        except BrokenItem:
            return None
        return sample if _has_both(sample) else None


def _has_both(sample: Sample) -> bool:
    """Whether a sample is a clip with a caption."""
    video = sample.fields.get("video")
    return bool(sample.captions) and video is not None and bool(video.frames)


def length_of(seconds: list[float]) -> float:
    """How long a clip is shown, whose frames are shown from these times on: the last one as long as the others on average, a
    single one for a second.
    """
    if len(seconds) < 2:
        return 1.0
    shown = seconds[-1] - seconds[0]
    return shown + shown / (len(seconds) - 1)
