"""Conversations with a run, whole or piece by piece, and its tokens as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diptych.core.capabilities import Image
from diptych.core.errors import DiptychError
from diptych.core.sample import Turn
from diptych.core.streaming import Writing
from diptych.inference.chat import Answering
from diptych.inference.generate import decoding_of
from diptych.models.vlm import VLM


class Talking:
    """What ``TrainedModel`` does with turns and tokens."""

    name: str
    model: VLM
    answering: Answering | None

    def converse(self, images: Sequence[Image], turns: Sequence[Turn], max_tokens: int = 128, **decoding: Any) -> str:
        """The assistant's next turn in a conversation; the images are shown at each ``<image>`` in its turns. DiptychError unless
        the model learned from conversations.
        """
        return self._talks().converse([images], [turns], decoding_of(max_tokens=max_tokens, **decoding))[0]

    def converse_many(
        self, images: Sequence[Sequence[Image]], turns: Sequence[Sequence[Turn]], max_tokens: int = 128, **decoding: Any
    ) -> list[str]:
        """``converse`` for several conversations at a time, each with its own images."""
        return self._talks().converse(images, turns, decoding_of(max_tokens=max_tokens, **decoding))

    def stream(self, images: Sequence[Image], turns: Sequence[Turn], max_tokens: int = 128, **decoding: Any) -> Writing:
        """The same turn token by token: the pieces of text that it gives are together what ``converse`` returns. DiptychError for
        beams, which know their text only at the end, and unless the model learned from conversations.
        """
        return self._talks().stream(images, turns, decoding_of(max_tokens=max_tokens, **decoding))

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text as a caption is read, without [BOS] and [EOS]."""
        found: list[list[int]] = self.model.tokenizer.caption_pieces(list(texts))
        return found

    def text_from(self, ids: Sequence[int]) -> str:
        """The text of tokens. DiptychError for a number that is no token."""
        most = len(self.model.tokenizer)
        for i in ids:
            if not 0 <= i < most:
                raise DiptychError(f"model '{self.name}' has no token {i}; its tokens are 0 to {most - 1}")
        text: str = self.model.tokenizer.decode(ids)
        return text

    def _talks(self) -> Answering:
        self._can("prompt")
        assert self.answering is not None
        return self.answering

    def _can(self, capability: str) -> None:
        raise NotImplementedError
