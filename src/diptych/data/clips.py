"""Clips where a picture is expected: for models that learned from the field ``video``, and for evaluating them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.core.sample import Sample, Video
from diptych.data.fields import Context, Draw, build_fields
from diptych.data.fields.video import spread
from diptych.data.image import as_pixels
from diptych.data.source import BrokenItem, Source

if TYPE_CHECKING:
    from diptych.config.recipe import FieldSpec


class Frames(np.ndarray):
    """A clip as one array, uint8 [frames, height, width, 3]. seconds: when each frame is shown; an array made like it, such as a
    grey one, has the same times.
    """

    seconds: list[float]

    def __array_finalize__(self, other: Any) -> None:
        self.seconds = getattr(other, "seconds", [])


def clip_array(video: Video, item: str) -> Frames:
    """The frames of a clip as one array. Raises ``BrokenItem`` if they differ in size, or there is none."""
    sizes = {frame.shape for frame in video.frames}
    if len(sizes) != 1:
        raise BrokenItem(item, "no frames" if not sizes else "frames of different sizes")
    frames = np.stack(video.frames).view(Frames)
    frames.seconds = list(video.seconds)
    return frames


def as_video(clip: Any, item: str) -> Video:
    """A clip from an array [frames, height, width, 3], or from a picture in any form of ``as_pixels``, which is a clip of one
    frame. Frames of a plain array are a second apart. DiptychError for anything else.
    """
    if isinstance(clip, Video):
        return clip
    if not isinstance(clip, np.ndarray) or clip.ndim != 4:
        return Video([as_pixels(clip, item)], [0.0])
    seconds = getattr(clip, "seconds", None) or [float(i) for i in range(len(clip))]
    return Video([as_pixels(np.asarray(frame), item) for frame in clip], seconds)


def collated_clips(clips: Sequence[Any], size: int, own: Mapping[str, str | FieldSpec]) -> Any:
    """The field ``video`` of a batch, from clips in any form of ``as_video``. own: the fields that the recipe declares, with the
    options of ``video``, such as its number of frames.
    """
    field = build_fields(["video"], Context(image_size=size, own=own))["video"]
    rows = []
    for i, clip in enumerate(clips):
        sample = Sample(f"clip {i}", video=as_video(clip, f"clip {i}"))
        rows.append(Draw(0, i, sample, {"video": field.fit(sample, Random)}))
    return field.collate(rows)


def strip(clip: Any, frames: int = 8, height: int = 64, columns: int = 0) -> tuple[np.ndarray, list[int]]:
    """Frames of a clip side by side as one picture, uint8 [rows · height, columns · width, 3], and their numbers: evenly spread, at
    most ``frames``. columns: of a grid; 0: all in one row. Larger frames are scaled to this height.
    """
    from PIL import Image

    shown = as_video(clip, "clip").frames
    numbers: list[int] = spread(len(shown), frames)
    first = shown[0]
    scale = min(1.0, height / first.shape[0])
    size = max(1, round(first.shape[1] * scale)), max(1, round(first.shape[0] * scale))
    small = [np.asarray(Image.fromarray(np.ascontiguousarray(shown[i])).resize(size)) if scale < 1 else shown[i] for i in numbers]
    columns = min(columns or len(small), len(small))
    grey = [np.full_like(small[0], 128)] * (-len(small) % columns)
    rows = [np.concatenate(part, 1) for part in zip(*[iter([*small, *grey])] * columns, strict=True)]
    return np.concatenate(rows, 0), numbers


class ClipsAsImages:
    """A source of clips whose samples have their clip, as one array, in the place of the image."""

    def __init__(self, base: Source):
        self.base, self.address, self.problems = base, base.address, base.problems

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that samples may have."""
        return tuple("image" if name == "video" else name for name in getattr(self.base, "fields", ()))

    @property
    def classes(self) -> list[str]:
        """What labels are of; empty if the source has none."""
        return list(getattr(self.base, "classes", None) or ())

    @property
    def class_texts(self) -> list[str]:
        """A text for each class, where the source has other texts than their names; else none."""
        return list(getattr(self.base, "class_texts", None) or ())

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Sample:
        sample = self.base[index]
        video = sample.fields.get("video")
        if video is None:
            raise BrokenItem(sample.id, "no video")
        extra = {k: v for k, v in sample.extra.items() if k != "graph"}  # of a clip: not what tasks on pictures expect
        return sample.with_(extra=extra, video=None, image=clip_array(video, sample.id))

    def fingerprint(self) -> str:
        """That of the source."""
        return self.base.fingerprint()

    def split(self, name: str) -> Source:
        """A part of the source, likewise."""
        return clips_as_images(self.base.split(name))


class ControlledClips(ClipsAsImages):
    """Of a source with controlled tests of clips (``skills`` and ``groups``), which gives these too."""

    base: Any

    @property
    def skills(self) -> tuple[str, ...]:
        """What the groups of clips differ in."""
        return tuple(self.base.skills)

    def groups(self, skill: str, n: int) -> list[Any]:
        """n groups of clips and captions that differ in one skill alone."""
        return list(self.base.groups(skill, n))

    def retrieval(self, n: int) -> list[Sample]:
        """n samples, no two of which have the same meaning; fewer if the source has no more."""
        kept: dict[str, int] = {}
        for index in range(min(len(self), 20 * n)):
            if len(kept) < n:
                kept.setdefault(self.base.meaning(index), index)
        return [self[index] for index in kept.values()]

    def concepts(self) -> list[str]:
        """None: a motion is no noun for the prompts of zero-shot naming."""
        return []

    def concept_samples(self, n: int) -> list[tuple[np.ndarray, int]]:
        """None."""
        return []


def clips_as_images(source: Source) -> Source:
    """The source with its clips in the place of images, for a model that learned from clips."""
    return ControlledClips(source) if hasattr(source, "groups") else ClipsAsImages(source)
