"""A question about images with a right and a wrong answer, as two rows of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from diptych.core.batch import Collated, Images
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample, Turn
from diptych.data.conversations.rows import laid_out
from diptych.data.conversations.template import Chat, Document
from diptych.data.conversations.turns import Mistake, check_images
from diptych.data.fields.base import Context, Draw, Field, stacked
from diptych.data.fields.turns import TurnsField
from diptych.data.preferences import Preference, Span, preference_of
from diptych.data.source import BrokenItem

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Answered(Collated):
    """Questions with one answer each, as rows of tokens: B rows of T tokens."""

    ids: Tensor  # [B, T] int64; −1 where an image token goes
    mask: Tensor  # [B, T] bool
    learned: Tensor  # [B, T] bool, True at the answer's tokens
    marked: Tensor  # [B, T] bool, True at those of them in which the two answers of a pair differ
    positions: Tensor  # [B, T] int64
    owner: Tensor | None = None

    row_wise = ("ids", "mask", "learned", "marked", "positions")
    padded = ("ids", "mask", "learned", "marked", "positions")

    def count(self, image_tokens: int) -> int:
        """How many tokens of it a model reads."""
        return int(self.mask.sum())


@dataclass
class Pairs(Collated):
    """The same questions with the chosen and with the rejected answer."""

    chosen: Answered
    rejected: Answered
    images: Images | None = None  # of all samples, once, in the order in which they are shown
    owner: Tensor | None = None

    row_wise = ("chosen", "rejected")
    beside: ClassVar[tuple[str, ...]] = ("images",)

    def both(self) -> Answered:
        """The rows of the chosen answers and then those of the rejected ones, [2 B, T]."""
        return Answered.cat([self.chosen, self.rejected], [0, len(self.chosen)])  # type: ignore[no-any-return]


class PreferencesField(Field):
    """``Preference`` and the question before it → ``Pairs``. An image is shown once for both answers.

    facts: ``behind``: what is known to be true of the images stands behind the question, for a reward model (LLaVA-RLHF, Sun et al.
    2023, §2.3); ``no``: nothing is added. Conversations are never packed, since a pair is two rows.
    """

    kind = "preferences"
    inner = {"images": "image"}  # noqa: RUF012 - never changed
    derived = True
    talks = True

    def __init__(self, name: str, turns: TurnsField, where: str = "", *, facts: Literal["no", "behind"] = "no"):
        super().__init__(name)
        self.turns, self.chat, self.where, self.facts = turns, turns.chat, where, facts
        self.drawn = turns.drawn

    @classmethod
    def build(cls, name: str, context: Context) -> PreferencesField:
        """The field of this name for a loader."""
        if context.chat is None:
            raise DiptychError("preferences need a language model with a chat template: a part 'lm'")
        turns = TurnsField("turns", context.chat, context.image_size, context.augment)
        return cls(name, turns, f"{getattr(context.source, 'address', '')}, ", **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> tuple[list[Turn], list[np.ndarray]]:
        """The turns and their images, as they are kept until they are collated."""
        if preference_of(sample) is None or not sample.turns:
            raise BrokenItem(sample.id, "no pair of answers; preferences:ADDRESS has them")
        return sample.turns, self.turns.fit(sample, rng)

    def rest(self, sample: Sample) -> Sample:
        """The sample as it is kept next to the fitted values: without its images."""
        return sample.with_(image=None, turns=None)

    def memory(self) -> int:
        """Roughly how many bytes one fitted value takes."""
        return self.turns.memory()

    def collate(self, rows: Sequence[Draw]) -> Pairs:
        """A batch of pairs."""
        known = [preference_of(row.sample) for row in rows]
        sides = []
        for answer, spans in (("chosen", "chosen_spans"), ("rejected", "spans")):
            made = [self._document(row, pair, answer, spans) for row, pair in zip(rows, known, strict=True) if pair is not None]
            sides.append(answered([document for document, _ in made], [marks for _, marks in made], self.chat.tokenizer.pad))
        shown = [image for row in rows for image in row.fitted[self.name][1]]
        return Pairs(sides[0], sides[1], Images(stacked(shown)) if shown else None)

    def _document(self, row: Draw, pair: Preference, answer: str, spans: str) -> tuple[Document, list[bool]]:
        """The question with one of the answers, as tokens, and which of them are marked. DiptychError for one that does not fit."""
        given, images = row.fitted[self.name]
        turns, text = asked_with(given, pair, self.facts), str(getattr(pair, answer))
        try:
            check_images(turns, len(images))
            document = self.chat.lesson([*turns, Turn("assistant", text)])
            if document.images < len(images):  # both answers would be judged without it
                raise Mistake(f"an image does not fit within {self.chat.room} tokens; raise data.conversations.max_length")
        except Mistake as mistake:
            raise DiptychError(f"{self.where}{row.sample.id}: {mistake}") from None
        last_answer = last_run(document.learned)
        document.learned = [learned and i in last_answer for i, learned in enumerate(document.learned)]
        return document, marked(self.chat, document, [*turns, Turn("assistant", text)], getattr(pair, spans))


def asked_with(turns: Sequence[Turn], pair: Preference, facts: str = "no") -> list[Turn]:
    """The turns before the answer of a pair; with ``facts`` ``behind``, its facts behind the last question."""
    asked = list(turns[:-1]) if turns[-1].role == "assistant" else list(turns)
    if facts == "behind" and pair.facts:
        asked[-1] = Turn("user", f"{asked[-1].text}\nfacts: {', '.join(pair.facts)}.")
    return asked


def last_run(learned: Sequence[bool]) -> range:
    """The last uninterrupted run of learned tokens: the answer to the last question."""
    stop = next((i for i in range(len(learned), 0, -1) if learned[i - 1]), 0)
    start = next((i for i in range(stop, 0, -1) if not learned[i - 1]), 0)
    return range(start, stop)


def marked(chat: Chat, document: Document, turns: Sequence[Turn], spans: Sequence[Span]) -> list[bool]:
    """Which tokens of the last answer of a conversation overlap its ``spans`` of characters. For any tokenizer: the tokens before a
    span are those that the text before it has too, the tokens behind it those that the text behind it ends with.
    """
    marks = [False] * len(document)
    if not spans:
        return marks
    run = last_run(document.learned)
    ids = [document.ids[i] for i in run]
    whole, places = chat.spans(turns)
    written = whole[slice(*places[-1])]
    answer = turns[-1].text.strip()
    at = written.find(answer) - (len(turns[-1].text) - len(turns[-1].text.lstrip()))
    for a, b in spans:
        before, behind = chat.tokenizer.pieces([written[: max(at + a, 0)].rstrip(), written[max(at + b, 0) :]])
        start, stop = _common(ids, before), len(ids) - _common(ids[::-1], behind[::-1])
        for i in range(start, max(stop, min(start + 1, len(ids)))):
            marks[run[i]] = True
    return marks


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def answered(documents: Sequence[Document], marks: Sequence[Sequence[bool]], pad: int) -> Answered:
    """Documents as rows of one length."""
    import torch

    ids, mask, learned, positions = map(torch.from_numpy, laid_out(documents, [[i] for i in range(len(documents))], pad))
    where = torch.zeros_like(mask)
    for i, own in enumerate(marks):
        where[i, : len(own)] = torch.tensor(own, dtype=torch.bool)
    return Answered(ids, mask, learned, where & learned, positions)
