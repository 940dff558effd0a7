"""Answers of a model in a thread, piece by piece, for a client that may go away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from diptych.core.capabilities import Image, Model, Unanswered
from diptych.core.errors import DiptychError
from diptych.core.sample import IMAGE, Turn
from diptych.core.streaming import Conversing, Finish
from diptych.serve.errors import ApiError
from diptych.serve.pools import Pool
from diptych.serve.state import count_tokens

CAPTIONS = "this model writes captions: what was asked was not read"
LIKELIEST = "this model writes the likeliest text: temperature, top_p and seed were not used"


@dataclass
class Answer:
    """What is known of an answer besides its text. note: what the model did not do."""

    prompt_tokens: int = 0
    tokens: int = 0
    finish: Finish | None = None
    note: str | None = None
    begun: float = 0.0
    first: float = 0.0  # when the first piece came
    streamed: bool = False  # whether it comes token by token
    ended: float = 0.0

    def timings(self) -> dict[str, float]:
        """Milliseconds to the first piece and to the end, and tokens per second in between, for an answer that came in pieces."""
        timed = {"first_token_ms": 1000 * (self.first - self.begun), "total_ms": 1000 * (self.ended - self.begun)}
        if self.streamed and self.tokens > 1:
            timed["tokens_per_second"] = (self.tokens - 1) / max(self.ended - self.first, 1e-9)
        return {name: round(value, 2) for name, value in timed.items()}


class Job:
    """One answer. Iterating gives its pieces; ``stop`` ends it after the token that is being written."""

    def __init__(self, model: Model, images: Sequence[Image], turns: Sequence[Turn], how: dict[str, Any], max_tokens: int):
        self.model, self.images, self.turns, self.how, self.max_tokens = model, images, turns, how, max_tokens
        self.answer = Answer()
        self._stopped = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        self._until = 0.0

    def start(self, pool: Pool) -> None:
        """Begins, or waits in line. ApiError 429 if the line is full."""
        self._until = self._loop.time() + pool.timeout
        self._task = pool.start(self._work)

    def stop(self) -> None:
        """Ends the answer; if it waits in line, it never begins."""
        self._stopped.set()
        self._task.cancel()

    async def next(self) -> str | None:
        """The next piece, None at the end. ApiError 504 if the answer takes too long."""
        try:
            piece = await asyncio.wait_for(self._pieces.get(), max(0.0, self._until - self._loop.time()))
        except TimeoutError:
            self.stop()
            raise ApiError(504, "the answer took too long", code="timeout") from None
        if isinstance(piece, BaseException):
            raise piece
        return piece

    async def __aiter__(self) -> AsyncIterator[str]:
        """All pieces."""
        while (piece := await self.next()) is not None:
            yield piece

    # --- in the thread ---

    def _put(self, item: str | BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, item)
        except RuntimeError:  # the loop has ended: nobody listens
            self._stopped.set()

    def _work(self) -> None:
        if self._stopped.is_set():
            return
        self.answer.begun = self.answer.first = time.perf_counter()
        try:
            self._write()
        except Exception as error:
            self._put(error)
        else:
            self._put(None)

    def _write(self) -> None:
        model, answer = self.model, self.answer
        if "prompt" in model.capabilities and isinstance(model, Conversing):
            answer.streamed = True
            writing = model.stream(self.images, self.turns, self.max_tokens, **self.how)
            answer.prompt_tokens = writing.prompt_tokens
            seen = False
            for piece in writing:
                if self._stopped.is_set():
                    return
                if not seen:
                    answer.first, seen = time.perf_counter(), True
                self._put(piece)
            answer.tokens, answer.finish, answer.ended = writing.tokens, writing.finish, time.perf_counter()
            return
        text = self._whole()
        if isinstance(text, Unanswered):
            raise ApiError(502, f"the model gave no answer: {text.reason}"[:300])
        answer.tokens, answer.ended = count_tokens(model, [text]), time.perf_counter()
        answer.prompt_tokens = count_tokens(model, [turn.text.replace(IMAGE, "") for turn in self.turns])
        answer.finish = "length" if answer.tokens >= self.max_tokens else "stop"
        if text:
            self._put(text)

    def _whole(self) -> str:
        """The answer of a model that gives it as a whole: to one question about one picture, or a caption."""
        model = self.model
        how = self.how if "decoding" in model.capabilities else {}
        notes = [] if how == self.how else [LIKELIEST]
        if "prompt" not in model.capabilities:
            if not self.images:
                raise ApiError(400, f"model '{model.name}' writes captions: show it a picture", "messages")
            self.answer.note = "; ".join([CAPTIONS, *notes])
            return model.generate([self.images[-1]], max_tokens=self.max_tokens, **how)[0]
        if len(self.turns) > 1 or len(self.images) != 1:
            raise ApiError(400, f"model '{model.name}' answers one question about one picture, without other turns", "messages")
        self.answer.note = "; ".join(notes) or None
        prompt = "\n".join(line for line in self.turns[0].text.split("\n") if line != IMAGE).strip()
        return model.generate([self.images[0]], prompt, max_tokens=self.max_tokens, **how)[0]


def as_api_error(error: BaseException) -> ApiError:
    """An error of a model as an answer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DiptychError):
        return ApiError(400, str(error))
    return ApiError(500, "the server made a mistake; its log says more", code="internal")
