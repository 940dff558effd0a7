"""Conversations as a model of transformers takes them: by its own processor (``data.conversations.processed``)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field as Limit

from diptych.core.batch import Collated
from diptych.core.errors import DiptychError
from diptych.core.sample import Conversation, Sample, Turn
from diptych.data.conversations.processed import ChatProcessor, Processed
from diptych.data.conversations.turns import Mistake, captioned
from diptych.data.fields.base import Context, Draw, Field
from diptych.data.source import BrokenItem, Problem

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PICTURE = 3 * 768 * 768  # bytes of a decoded picture, roughly: pictures keep their size for the model's own processor


@dataclass
class Dialogue(Collated):
    """Conversations as tokens, and what else the model is given: ``more``, by the names of its ``forward``."""

    ids: Tensor  # [B, T] int64, with the tokens of the images written out
    mask: Tensor  # [B, T] bool
    learned: Tensor  # [B, T] bool, True at the tokens of answers
    more: dict[str, Any] = field(default_factory=dict)  # pixels, sizes of images, kinds of tokens …
    owner: Tensor | None = None

    row_wise = ("ids", "mask", "learned")
    heavy = ("more",)

    def _map(self, change: Any) -> Dialogue:
        """The field with ``change`` applied to every tensor."""
        more = {name: change(value) if hasattr(value, "to") else value for name, value in self.more.items()}
        return replace(self, ids=change(self.ids), mask=change(self.mask), learned=change(self.learned), more=more)

    def shapes(self) -> tuple[Any, ...]:
        """The shapes that determine the cost of encoding it."""
        return (tuple(self.ids.shape), *(tuple(value.shape) for value in self.more.values() if hasattr(value, "shape")))

    def count(self, image_tokens: int) -> int:
        """How many tokens of it a model reads; those of images are among them."""
        return int(self.mask.sum())


class DialogueField(Field):
    """``Conversation`` → ``Dialogue``. A sample that has only captions becomes a request to describe its image.

    max_length: tokens of the longest conversation, those of its images among them. too_long: what becomes of a longer one:
    ``cut``: its last exchanges are left out, and of a single one the end of the answer; ``refuse``: an error.
    """

    kind = "dialogue"
    derived = True

    def __init__(
        self,
        name: str,
        processor: ChatProcessor,
        where: str = "",
        *,
        max_length: Annotated[int, Limit(ge=8)] = 2048,
        too_long: Literal["cut", "refuse"] = "cut",
    ):
        super().__init__(name)
        self.processor, self.where, self.room, self.too_long = processor, where, max_length, too_long

    @classmethod
    def build(cls, name: str, context: Context) -> DialogueField:
        """The field of this name for a loader."""
        if not isinstance(context.tokenizer, ChatProcessor):
            raise DiptychError(f"data.fields.{name}: the field needs a part that brings a processor of transformers")
        return cls(name, context.tokenizer, f"{getattr(context.source, 'address', '')}, ", **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> Conversation:
        """The turns of a conversation and its pictures, as large as they are; without turns: of a picture with captions, of which
        one is drawn later.
        """
        if not sample.turns and (sample.image is None or not sample.captions):
            raise BrokenItem(sample.id, "no conversation, and no image with a caption")
        return Conversation(list(sample.turns), list(sample.images))

    def collate(self, rows: Sequence[Draw]) -> Dialogue:
        """A batch of it."""
        chats: list[tuple[Sequence[Turn], Sequence[np.ndarray]]] = [
            (self._turns(row), row.fitted[self.name].images) for row in rows
        ]
        made = self._batch(rows, chats)
        while long := [i for i, places in enumerate(made.inputs["attention_mask"].sum(1).tolist()) if places > self.room]:
            shorter = [self._shorter(rows[i], *chats[i]) for i in long]
            if all(chat is None for chat in shorter):
                return self._cut(rows, made)
            chats = [*chats]
            for i, chat in zip(long, shorter, strict=True):
                chats[i] = chats[i] if chat is None else chat
            made = self._batch(rows, chats)
        return _dialogue(made)

    def _turns(self, row: Draw) -> list[Turn]:
        turns: list[Turn] = row.fitted[self.name].turns
        return turns or captioned(row.sample.captions[row.caption])

    def _batch(self, rows: Sequence[Draw], chats: Sequence[tuple[Sequence[Turn], Sequence[np.ndarray]]]) -> Processed:
        try:
            return self.processor.batch(chats)
        except Mistake as mistake:
            wrong = next((i for i, chat in enumerate(chats) if _refused(self.processor, *chat)), 0)
            raise DiptychError(f"{self.where}{rows[wrong].sample.id}: {mistake}") from None

    def _shorter(
        self, row: Draw, turns: Sequence[Turn], images: Sequence[np.ndarray]
    ) -> tuple[Sequence[Turn], Sequence[np.ndarray]] | None:
        """The conversation without its last exchange, and the pictures in it; None if there is only one."""
        if self.too_long == "refuse":
            raise DiptychError(
                f"{self.where}{row.sample.id}: longer than {self.room} tokens, those of its images included; raise "
                f"data.fields.{self.name}.max_length, or cut (too_long: cut)"
            )
        first = turns[0].role == "system"
        if len(turns) - first <= 2:
            return None
        kept = list(turns[:-2] if turns[-1].role == "assistant" else turns[:-1])
        self.note(Problem(row.sample.id, f"cut to {len(kept)} of its {len(turns)} turns"))
        return kept, images[: sum(turn.text.count("<image>") for turn in kept)]

    def _cut(self, rows: Sequence[Draw], made: Processed) -> Dialogue:
        """The first ``max_length`` tokens. DiptychError if an image, or every answer of a conversation, would be lost."""
        for row, last, learned in zip(rows, made.pictured, made.learned, strict=True):
            if last >= self.room or not learned[1 : self.room].any():
                raise DiptychError(
                    f"{self.where}{row.sample.id}: no room for its images and an answer in {self.room} tokens; raise "
                    f"data.fields.{self.name}.max_length"
                )
            if learned[self.room :].any():
                self.note(Problem(row.sample.id, f"cut to {self.room} tokens"))
        shape = made.inputs["input_ids"].shape
        inputs = {n: v[:, : self.room] if getattr(v, "shape", None) == shape else v for n, v in made.inputs.items()}
        return _dialogue(Processed(inputs, made.learned[:, : self.room], made.pictured))

    def memory(self) -> int:
        """Roughly how many bytes one fitted value takes."""
        return PICTURE


def _dialogue(made: Processed) -> Dialogue:
    more = {name: value for name, value in made.inputs.items() if name not in ("input_ids", "attention_mask")}
    learned = made.learned.clone()
    learned[:, 0] = False  # nothing comes before it
    return Dialogue(made.inputs["input_ids"], made.inputs["attention_mask"].bool(), learned, more)


def _refused(processor: ChatProcessor, turns: Sequence[Turn], images: Sequence[np.ndarray]) -> bool:
    """Whether this conversation is one that cannot be used."""
    from diptych.data.conversations.turns import check_images

    try:
        check_images(turns, len(images))
        processor.spans(turns)
    except Mistake:
        return True
    return False
