"""A clip as pieces with a text each, such as what is said while it is shown; and the shortest caption."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field as Limit

from diptych.core.batch import Images, Segments, Texts
from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Sample, Video
from diptych.data.fields.base import Context, Draw, stacked
from diptych.data.fields.text import TextField, meaning_number, tokenized
from diptych.data.fields.video import VideoField, spread
from diptych.data.source import BrokenItem
from diptych.data.text import normalise

if TYPE_CHECKING:
    import pyarrow as pa


class Pieces(NamedTuple):
    """What is kept of a sample: the frames of its pieces, one after the other, and a text for each piece."""

    video: Video
    texts: list[str]


class SegmentsField(VideoField):
    """``video`` and the texts with times next to it → ``Segments``. The texts are subtitles (``extra["speech"]``, as
    ``video:…?speech=caption`` gives them), or else the events of the clip (``extra["events"]``, as ``scenes:clips?events=4`` and
    ActivityNet have them).

    count: pieces of a clip, spread evenly over its texts; a clip with fewer texts is not used. frames: of a piece, spread evenly
    over its interval. shuffle: the chance that the places of some frames of a clip are withheld, each of two or more then having an
    unknown place (MERLOT; only with one frame a piece).
    """

    inner = {"frames": "image", "texts": "text", "story": "text"}  # noqa: RUF012 - never changed
    made_of = ("video",)

    def __init__(
        self,
        name: str,
        size: int,
        augment: Any = "none",
        tokenizer: Any = None,
        *,
        count: Annotated[int, Limit(ge=1)] = 4,
        frames: Annotated[int, Limit(ge=1)] = 1,
        shuffle: Annotated[float, Limit(ge=0, le=1)] = 0.0,
    ):
        super().__init__(name, size, augment, frames=frames)
        if shuffle and (frames > 1 or count < 2):
            raise DiptychError(f"data.fields.{name}.shuffle: places of single frames are withheld; set frames: 1, count: 2 or more")
        self.count, self.shuffled, self.tokenizer = count, shuffle, tokenizer

    @classmethod
    def build(cls, name: str, context: Context) -> SegmentsField:
        """The field of this name for a loader."""
        return cls(name, context.image_size, context.augment, context.tokenizer, **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> Pieces:  # type: ignore[override]
        """A sample's pieces: their frames at the model's size, augmented, and their texts."""
        video: Video | None = sample.fields.get("video")
        if video is None or not video.frames:
            raise BrokenItem(sample.id, "no video")
        given = [row for row in sample.extra.get("speech") or sample.extra.get("events") or () if str(row["text"]).strip()]
        if len(given) < self.count:
            raise BrokenItem(
                sample.id,
                f"{len(given)} texts with times, and data.fields.{self.name}.count is {self.count}; set it lower, or read "
                "subtitles (video:FOLDER?speech=caption) or long clips (scenes:clips?actions=all&events=4)",
            )
        rows = [given[i] for i in spread(len(given), self.count)]
        shown = [number for row in rows for number in shown_in(video.seconds, row["start"], row["end"], self.frames)]
        frames = [self.augment(video.frames[i], rng(), sample.captions) for i in shown]
        return Pieces(Video(frames, [video.seconds[i] for i in shown]), [str(row["text"]) for row in rows])

    def collate(self, rows: Sequence[Draw]) -> Segments:
        """A batch of it: B clips of ``count`` pieces of ``frames`` frames each."""
        import torch

        pieces: list[Pieces] = [row.fitted[self.name] for row in rows]
        each = self.count * self.frames
        owner = torch.arange(len(rows)).repeat_interleave(each)
        seconds = torch.tensor([s for piece in pieces for s in piece.video.seconds], dtype=torch.float32)
        segment = torch.arange(self.count).repeat_interleave(self.frames).repeat(len(rows))
        frames = Images(stacked([frame for piece in pieces for frame in piece.video.frames]), owner)
        strings = [text for piece in pieces for text in piece.texts]
        meaning = torch.tensor([meaning_number(normalise(text)) for text in strings])
        of_text = torch.arange(len(rows)).repeat_interleave(self.count)
        texts = tokenized(self.tokenizer, strings, owner=of_text, meaning=meaning)
        place = torch.tensor([p for row in rows for p in self.places(row)])
        story = stories(self.tokenizer, [piece.texts for piece in pieces])
        return Segments(frames, seconds, owner, segment=segment, place=place, texts=texts, story=story, pieces=self.count)

    def places(self, row: Draw) -> list[int]:
        """The place in time of each frame of a clip; −1 − k: unknown, with the k-th of ``count`` marks. With the chance ``shuffle``
        two or more places are withheld, each number as often (Zellers et al. 2021, §3.2).
        """
        known = list(range(self.count * self.frames))
        draw = row.stream(meaning_number(self.name))
        if draw.random() >= self.shuffled:
            return known
        hidden = draw.sample(known, draw.randint(2, self.count))
        for number, mark in zip(hidden, draw.sample(known, len(hidden)), strict=True):
            known[number] = -1 - mark
        return known

    def memory(self) -> int:
        """Roughly how many bytes one fitted value takes."""
        return super().memory() * self.count

    @classmethod
    def schema(cls) -> dict[str, pa.DataType]:
        """None: it is made of the field ``video`` and what the sample knows besides."""
        return {}

    @classmethod
    def draw(cls, value: Any) -> list[Any]:
        """What to show a person: the frames, then the texts."""
        return [*value.video.frames, *value.texts]


def shown_in(seconds: Sequence[float], start: float, end: float, count: int) -> list[int]:
    """The numbers of the frames that are shown at ``count`` times, each in the middle of an equal part of an interval. Of a clip of
    few frames, one that began before the interval gives way to the next one, if that begins within.
    """
    found = []
    for i in range(count):
        number = max(bisect_right(seconds, start + (i + 0.5) * (end - start) / count) - 1, 0)
        later = seconds[number] < start and number + 1 < len(seconds) and seconds[number + 1] < end
        found.append(number + later)
    return found


def stories(tokenizer: Any, texts: Sequence[Sequence[str]]) -> Texts:
    """Several texts a clip as one: [BOS] words [BOS] words … [EOS], each cut to its share of the tokenizer's longest text, [B, T].
    Two stories mean the same if all their texts do.
    """
    import torch

    rows = []
    for own in texts:
        room = (tokenizer.max_length - 1) // len(own) - 1
        rows.append([i for ids in tokenizer.caption_pieces(own) for i in (tokenizer.bos, *ids[:room])] + [tokenizer.eos])
    longest = min(-(-max(map(len, rows)) // 4) * 4, tokenizer.max_length)
    ids = np.full((len(rows), longest), tokenizer.pad, dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=bool)
    for k, row in enumerate(rows):
        ids[k, : len(row)], mask[k, : len(row)] = row, True
    strings = tuple(", then ".join(own) for own in texts)
    meaning = torch.tensor([meaning_number("\n".join(map(normalise, own))) for own in texts])
    return Texts(torch.from_numpy(ids), torch.from_numpy(mask), strings, meaning)


class ShortestField(TextField):
    """The caption of a sample with the fewest words, the first of several → ``Texts``."""

    made_of = ("text",)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> Captions:
        """The sample's shortest caption, with its meaning."""
        if not sample.captions:
            raise BrokenItem(sample.id, "no caption")
        k = min(range(len(sample.captions)), key=lambda i: len(sample.captions[i].split()))
        return Captions([sample.captions[k]], [sample.meanings[k]] if k < len(sample.meanings) else [])
