"""What can be wrong with conversations, found before any training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.sample import Turn
from diptych.data.conversations.template import Chat
from diptych.data.conversations.turns import Mistake, captioned, check_images
from diptych.data.preferences import preference_of
from diptych.data.source import BrokenItem, Source

FIRST = 256  # samples that are read of a source that draws them


def check_conversations(source: Source, chat: Chat) -> None:
    """Everything that can go wrong with a conversation, before any training.

    Checks all samples of files, and the first ones of sources that draw them. Raises DiptychError that names the file and the first
    samples.
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
            name, turns, images = source.conversation(i)
            yield name, turns, images
            if hasattr(source, "rejected"):  # a pair of answers
                yield name, [*turns[:-1], Turn("assistant", source.rejected(i))], images
    else:
        for i in range(min(FIRST, len(source))):
            try:
                sample = source[i]
            except BrokenItem:
                continue
            if sample.turns:
                yield sample.id, sample.turns, len(sample.images)
                if pair := preference_of(sample):
                    yield sample.id, [*sample.turns[:-1], Turn("assistant", pair.rejected)], len(sample.images)
            elif sample.image is not None:
                yield from ((sample.id, captioned(caption), 1) for caption in sample.captions)
