"""Conversations about images: none, one or several each."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.core.batch import Images, Turns
from diptych.core.errors import DiptychError
from diptych.core.sample import Conversation, Sample, Turn
from diptych.data.augment import augmenter
from diptych.data.conversations.rows import best_fit, laid_out
from diptych.data.conversations.template import Chat, Document
from diptych.data.conversations.turns import Mistake, captioned, check_images
from diptych.data.fields.base import Context, Draw, Field, grey, stacked
from diptych.data.fields.tiles import Preparing, preparing_of
from diptych.data.ocr import open_prompt, told
from diptych.data.source import BrokenItem, Problem

if TYPE_CHECKING:
    import pyarrow as pa


class Shown(list[np.ndarray]):
    """The images of a conversation, and the words that a reader saw in each (``told``; none without a reader)."""

    told: tuple[str, ...] = ()


class TurnsField(Field):
    """``Conversation`` → ``Turns``. A sample that has only captions becomes a request to describe its image.

    identifiers: what the chat template writes before a user's words, to say the task (``Chat``), such as {"": "[vqa]"}.
    reader: the text that a reader sees in each picture becomes part of the prompt, in training and when the model is asked: a kind,
    or {kind: …} with options (``data.ocr``). It reads the picture as the source has it, before it is resized.
    preparing: how images are cut or scaled (``fields.tiles``); None: to squares of one size.
    pack: several conversations share a row of ``chat.room`` tokens. Conversations are packed within a batch, so a batch has the
    same samples whether packed or not.
    """

    kind = "turns"
    inner = {"images": "image"}  # noqa: RUF012 - never changed
    derived = True
    talks = True

    def __init__(
        self,
        name: str,
        chat: Chat,
        size: int,
        augment: Any = "none",
        pack: bool = False,
        where: str = "",
        preparing: Preparing | None = None,
        *,
        identifiers: dict[str, str] | None = None,
        reader: str | dict[str, Any] | None = None,
    ):
        super().__init__(name)
        self.reader = open_prompt(reader, where.removesuffix(", "))
        self.where, self.preparing = where, preparing
        chat.identifiers = identifiers or chat.identifiers
        self.chat, self.size, self.augment, self.packs = chat, size, augmenter(augment, size), pack
        self.drawn = self.augment.draws

    @classmethod
    def build(cls, name: str, context: Context) -> TurnsField:
        """The field of this name for a loader."""
        if context.chat is None:
            raise DiptychError("conversations need a language model with a chat template: a part 'lm'")
        where = f"{getattr(context.source, 'address', '')}, "
        return cls(
            name,
            context.chat,
            context.image_size,
            context.augment,
            context.pack,
            where,
            preparing_of(context.own, context.image_size),
            **context.options,
        )

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> list[Any]:
        """A sample's value as it is kept until it is collated: decoded, at the model's size, augmented."""
        if not sample.turns and (sample.image is None or not sample.captions):
            raise BrokenItem(sample.id, "no conversation, and no image with a caption")
        if self.preparing is not None:
            shown = Shown(self.preparing(image) for image in sample.images)
        else:
            numbers, words = rng(), [turn.text for turn in sample.turns] or sample.captions
            shown = Shown(self.augment(image, numbers, words) for image in sample.images)
        if self.reader is not None:
            shown.told = tuple(self.reader.of_sample(sample))
        return shown

    def rest(self, sample: Sample) -> Sample:
        """The sample as it is kept next to the fitted values: without its large fields."""
        turns = Conversation(sample.turns, []) if sample.turns else None
        return sample.with_(image=None, turns=turns)

    def collate(self, rows: Sequence[Draw]) -> Turns:
        """A batch of it; None if no sample has any."""
        import torch

        lessons = [self._lesson(row) for row in rows]
        lengths = [len(lesson) for lesson in lessons]
        packed = best_fit(lengths, self.chat.room) if self.packs else [[i] for i in range(len(lessons))]
        ids, mask, learned, places = map(torch.from_numpy, laid_out(lessons, packed, self.chat.tokenizer.pad))
        shown = [image for row in packed for i in row for image in rows[i].fitted[self.name][: lessons[i].images]]
        return Turns(ids, mask, learned, places, self._together(shown) if shown else None)

    def _together(self, shown: list[Any]) -> Images:
        return Images(stacked(shown)) if self.preparing is None else self.preparing.stacked(shown)

    def _lesson(self, row: Draw) -> Document:
        sample, turns = row.sample, row.sample.turns
        if not turns:
            turns = captioned(sample.captions[row.caption])
        shown = row.fitted[self.name]
        try:
            check_images(turns, len(shown))
            turns = told(turns, shown.told) if self.reader is not None else turns
            lesson = self.chat.lesson(turns, shown)
        except Mistake as mistake:
            raise DiptychError(f"{self.where}{sample.id}: {mistake}") from None
        if lesson.cut:
            self.note(Problem(sample.id, f"cut to {len(lesson)} of its {len(lesson) + lesson.cut} tokens"))
        return lesson

    def memory(self) -> int:
        """Roughly how many bytes one fitted value takes."""
        return 3 * self.size**2

    @classmethod
    def schema(cls) -> dict[str, pa.DataType]:
        """Arrow columns of a packed value, by name; the value's presence is a column of the shard."""
        import pyarrow as pa

        image = pa.struct({"image": pa.large_binary(), "height": pa.int32(), "width": pa.int32()})
        return {"turns": pa.string(), "turn_images": pa.list_(image)}

    @classmethod
    def pack(
        cls, value: Conversation, scale: Callable[[np.ndarray], np.ndarray], store: Callable[[np.ndarray], bytes | None]
    ) -> dict[str, Any]:
        """A value as a row of these columns."""
        pictures = None if value.images is None else [scale(image) for image in value.images]
        rows = None if pictures is None else [{"image": store(p), "height": p.shape[0], "width": p.shape[1]} for p in pictures]
        return {"turns": json.dumps([list(t) for t in value.turns]), "turn_images": rows}

    @classmethod
    def unpack(cls, row: Mapping[str, Any], load: Callable[[bytes | None, int, int], np.ndarray]) -> Conversation:
        """The value again."""
        pictures = row["turn_images"]
        images = None if pictures is None else [load(p["image"], p["height"], p["width"]) for p in pictures]
        return Conversation([Turn(*t) for t in json.loads(row["turns"])], images)

    @classmethod
    def blank(cls, value: Conversation) -> Conversation:
        """A value of the same shape that says nothing: the blind control."""
        return Conversation(value.turns, None if value.images is None else [grey(image) for image in value.images])

    @classmethod
    def draw(cls, value: Conversation) -> list[Any]:
        """What to show a person: pictures (uint8 arrays) and lines of text, in order."""
        return [*(value.images or []), *(f"{turn.role}: {turn.text}" for turn in value.turns)]
