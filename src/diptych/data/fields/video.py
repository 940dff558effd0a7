"""Clips: frames with the time at which each is shown."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field as Limit

from diptych.core.batch import Images, Videos
from diptych.core.sample import Sample, Video, flat
from diptych.data.augment import augmenter
from diptych.data.fields.base import Context, Draw, Field, grey, stacked
from diptych.data.source import BrokenItem

if TYPE_CHECKING:
    import pyarrow as pa

FRAMES = 8  # of a clip that a model sees


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` of ``count`` positions, evenly spread, each in the middle of its share; all of them if ``count`` is not larger."""
    if count <= wanted:
        return list(range(count))
    return [int((i + 0.5) * count / wanted) for i in range(wanted)]


class VideoField(Field):
    """``Video`` → ``Videos``: flat frames at the model's size; ``video.frames`` is an image field; its owner rows say which clip a
    frame belongs to. frames: the largest number of frames of a clip, evenly spread.
    """

    kind = "video"
    inner = {"frames": "image"}  # noqa: RUF012 - never changed

    def __init__(self, name: str, size: int, augment: Any = "none", *, frames: Annotated[int, Limit(ge=1)] = FRAMES):
        super().__init__(name)
        self.size, self.augment, self.frames = size, augmenter(augment, size), frames
        self.drawn = self.augment.draws

    @classmethod
    def build(cls, name: str, context: Context) -> VideoField:
        """The field of this name for a loader."""
        return cls(name, context.image_size, context.augment, **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> Video:
        """A sample's value as it is kept until it is collated: decoded, at the model's size, augmented."""
        video: Video | None = sample.fields.get(self.name)
        if video is None or not video.frames:
            raise BrokenItem(sample.id, f"no {self.name}")
        chosen = spread(len(video.frames), self.frames)
        frames = [
            self.augment(video.frames[i], rng(), sample.captions) for i in chosen
        ]  # the same random numbers for every frame: the clip is cropped as a whole
        return Video(frames, [video.seconds[i] for i in chosen])

    def collate(self, rows: Sequence[Draw]) -> Videos:
        """A batch of it; None if no sample has any."""
        import torch

        clips: list[Video] = [row.fitted[self.name] for row in rows]
        frames, owners = flat([clip.frames for clip in clips])
        owner = torch.tensor(owners)
        seconds = torch.tensor([s for clip in clips for s in clip.seconds], dtype=torch.float32)
        return Videos(Images(stacked(frames), owner), seconds, owner)

    def memory(self) -> int:
        """Roughly how many bytes one fitted value takes."""
        return 3 * self.size**2 * self.frames

    @classmethod
    def schema(cls) -> dict[str, pa.DataType]:
        """Arrow columns of a packed value, by name; the value's presence is a column of the shard."""
        import pyarrow as pa

        sizes = pa.list_(pa.int32())
        return {
            "frames": pa.list_(pa.large_binary()),
            "frame_heights": sizes,
            "frame_widths": sizes,
            "seconds": pa.list_(pa.float64()),
        }

    @classmethod
    def pack(
        cls, value: Video, scale: Callable[[np.ndarray], np.ndarray], store: Callable[[np.ndarray], bytes | None]
    ) -> dict[str, Any]:
        """A value as a row of these columns."""
        frames = [scale(frame) for frame in value.frames]
        heights, widths = ([frame.shape[axis] for frame in frames] for axis in (0, 1))
        return {"frames": [store(f) for f in frames], "frame_heights": heights, "frame_widths": widths, "seconds": value.seconds}

    @classmethod
    def unpack(cls, row: Mapping[str, Any], load: Callable[[bytes | None, int, int], np.ndarray]) -> Video:
        """The value again."""
        frames = [load(*frame) for frame in zip(row["frames"], row["frame_heights"], row["frame_widths"], strict=True)]
        return Video(frames, list(row["seconds"]))

    @classmethod
    def blank(cls, value: Video) -> Video:
        """A value of the same shape that says nothing: the blind control."""
        return Video([grey(frame) for frame in value.frames], value.seconds)

    @classmethod
    def draw(cls, value: Video) -> list[Any]:
        """What to show a person: pictures (uint8 arrays) and lines of text, in order."""
        return [value.frames[i] for i in spread(len(value.frames), FRAMES)]
