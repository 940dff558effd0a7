"""Answers token by token, and tokens as numbers: what a server uses besides the capabilities of a model. Without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from diptych.core.capabilities import Image
from diptych.core.sample import Turn

Finish = Literal["stop", "length"]


class Writing:
    """An answer while it is written: iterating gives pieces of text, which together are the answer.

    steps: gives the whole text so far after each token, as the tokenizer decodes it, and the part of it that further tokens cannot
    change. stop: strings that end the answer; they are cut off. ended: whether the model ended its text itself, once the steps are
    over. prompt_tokens: how many the model read.

    After the end, ``finish`` says why it ended: "stop" (the model ended it, or a stop string) or "length".
    """

    def __init__(self, steps: Iterator[tuple[str, str]], stop: Sequence[str], prompt_tokens: int, ended: Callable[[], bool]):
        self.prompt_tokens, self.tokens = prompt_tokens, 0
        self.finish: Finish | None = None
        self._steps, self._stop, self._ended = steps, tuple(stop), ended

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, none of them empty. A piece is given once no further token can change it."""
        sent, whole, stopped = "", "", False
        try:
            for whole, settled in self._steps:
                self.tokens += 1
                sure = safe(settled, self._stop)
                if len(sure) > len(sent) and sure.startswith(sent):
                    yield sure[len(sent) :]
                    sent = sure
                stopped = any(s in whole for s in self._stop)
                if stopped:
                    break
        finally:
            self.close()
        self.finish = "stop" if stopped or self._ended() else "length"
        last = cut(whole, self._stop).strip()
        if len(last) > len(sent) and last.startswith(sent):
            yield last[len(sent) :]

    def close(self) -> None:
        """Ends the answer where it is."""
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the strings that end it."""
    ends = [at for s in stop if (at := text.find(s)) >= 0]
    return text[: min(ends)].rstrip() if ends else text


def safe(settled: str, stop: Sequence[str]) -> str:
    """The beginning of an answer that stays as it is whatever follows: without half a character, half a stop string and space."""
    text = cut(settled.rstrip("\ufffd"), stop)
    held = max((k for s in stop for k in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:k])), default=0)
    return text[: len(text) - held].strip()


@runtime_checkable
class Conversing(Protocol):
    """A model with the capability "prompt" that reads several turns, and writes token by token."""

    def converse(self, images: Sequence[Image], turns: Sequence[Turn], max_tokens: int = 128, **decoding: Any) -> str:
        """The assistant's next turn."""
        ...

    def stream(self, images: Sequence[Image], turns: Sequence[Turn], max_tokens: int = 128, **decoding: Any) -> Writing:
        """The same turn, piece by piece."""
        ...


@runtime_checkable
class Tokenizing(Protocol):
    """A model that tells the tokens of texts."""

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, without those that mark beginning and end."""
        ...

    def text_from(self, ids: Sequence[int]) -> str:
        """The text of tokens. DiptychError for a number that is no token."""
        ...
