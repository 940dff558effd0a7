"""Batches of conversations."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from diptych.core.batch import Batch, Sample
from diptych.core.errors import DiptychError
from diptych.data.conversations.rows import best_fit, laid_out
from diptych.data.conversations.template import Chat, Document
from diptych.data.conversations.turns import Mistake, captioned, check_images
from diptych.data.loader import Loader, stacked
from diptych.data.order import mixed
from diptych.data.source import BrokenItem, Problem, Source

FIRST = 256  # samples looked at where looking at all would mean drawing them


class ConversationLoader(Loader):
    """``Loader`` of samples with turns: images none, one or several each. A sample with captions alone is asked to be described.

    pack: several conversations share a row of ``chat.room`` tokens. Packing is within what ``rows`` is asked for, so a batch holds the same samples, packed
    or not, in whatever pieces.
    """

    def __init__(self, source: Source, chat: Chat, image_size: int, batch_size: int, seed: int = 0, augment: str = "none",
                 workers: int = 0, pack: bool = False):  # fmt: skip
        super().__init__(source, chat.tokenizer, image_size, batch_size, seed, augment, workers=workers)
        self.chat, self.pack = chat, pack

    def _prepared(self, sample: Sample, rng: random.Random | None) -> list[np.ndarray]:
        if not sample.turns and (sample.image is None or not sample.captions):
            raise BrokenItem(sample.id, "neither a conversation nor an image with a caption")
        return [self._fit(image, rng) for image in pictures(sample)]

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Samples start..stop of the batch of that step, as in ``Loader``; fewer rows than samples if they are packed."""
        import torch

        first = step * self.batch_size
        positions = range(first + start, first + stop)
        crop = self.augment == "crop"
        draws = [random.Random(mixed(self.seed, p, 1)) if crop else None for p in positions]
        read = map if self._threads is None else self._threads.map
        pairs = list(read(self._read, [self.index(p) for p in positions], draws))
        lessons = [self._lesson(s, len(images), p) for p, (s, images) in zip(positions, pairs, strict=True)]
        lengths = [len(lesson) for lesson in lessons]
        packed = best_fit(lengths, self.chat.room) if self.pack else [[i] for i in range(len(lessons))]
        text, mask, learned, places = map(torch.from_numpy, laid_out(lessons, packed, self.tokenizer.pad))
        shown = [image for row in packed for i in row for image in pairs[i][1][: lessons[i].images]]
        return Batch(
            pixels=stacked(shown) if shown else None,
            text=text,
            text_mask=mask,
            learned=learned,
            positions=places,
            start=start,
            ids=tuple(sample.id for sample, _ in pairs),
        )

    def _lesson(self, sample: Sample, images: int, position: int) -> Document:
        turns = sample.turns
        if not turns:
            rng = random.Random(mixed(self.seed, position, 2))
            turns = captioned(sample.captions[rng.randrange(len(sample.captions))])
        try:
            check_images(turns, images)
            lesson = self.chat.lesson(turns)
        except Mistake as mistake:
            raise DiptychError(f"{self.source.address}, {sample.id}: {mistake}") from None
        if lesson.cut:
            self.problems[sample.id] = Problem(sample.id, f"cut to {len(lesson)} of its {len(lesson) + lesson.cut} tokens")
        return lesson


def pictures(sample: Sample) -> list[np.ndarray]:
    """The images of a conversation, in the order in which they are shown."""
    return sample.images or ([] if sample.image is None else [sample.image])


def check_conversations(source: Source, chat: Chat) -> None:
    """Everything that can go wrong with a conversation, before any training.

    Raises DiptychError that names the file and the first samples. All samples of files; of sources that draw theirs, the first.
    """
    wrong, seen = [], 0
    for name, turns, images in _conversations(source):
        seen += 1
        try:
            check_images(turns, images)
            chat.lesson(turns)
        except Mistake as mistake:
            wrong.append(f"{name}: {mistake}")
    if not seen:
        raise DiptychError(f"{source.address}: no usable conversation")
    if wrong:
        first = "".join(f"\n  {line}" for line in wrong[:3])
        raise DiptychError(f"{source.address}: {len(wrong)} of {seen} conversations cannot be learned from:{first}")


def _conversations(source: Any) -> Iterator[tuple[str, Any, int]]:
    """Id, turns and number of images of each sample."""
    if hasattr(source, "sources"):  # a mixture
        for part in source.sources:
            yield from _conversations(part)
    elif hasattr(source, "conversation"):
        for i in range(len(source)):
            yield source.conversation(i)
    else:
        for i in range(min(FIRST, len(source))):
            try:
                sample = source[i]
            except BrokenItem:
                continue
            if sample.turns:
                yield sample.id, sample.turns, len(pictures(sample))
            elif sample.image is not None:
                yield from ((sample.id, captioned(caption), 1) for caption in sample.captions)
