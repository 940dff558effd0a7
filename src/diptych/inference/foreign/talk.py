"""Conversations with models of transformers: several turns, several pictures, whole or piece by piece."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from diptych.core.capabilities import Image
from diptych.core.errors import DiptychError
from diptych.core.sample import Turn
from diptych.core.streaming import Writing
from diptych.data.conversations.processed import ChatProcessor
from diptych.data.conversations.turns import Mistake
from diptych.inference.foreign.chat import Generative
from diptych.inference.foreign.hub import move

DRAWS = ("temperature", "top_p", "top_k", "seed")  # of the settings of decoding


class Talker(Generative):
    """A model with a chat template: ``generate`` and ``loglikelihood`` as of ``Generative``, ``converse`` and ``stream`` for
    conversations, with the tokens that they have in training.
    """

    @cached_property
    def chat(self) -> ChatProcessor:
        """Its processor, for conversations. DiptychError if its template cannot be used for them."""
        return ChatProcessor(self.processor, self.name)

    def converse(self, images: Sequence[Image], turns: Sequence[Turn], max_tokens: int = 128, **decoding: Any) -> str:
        """The assistant's next turn; the images are shown at each ``<image>`` in the turns. decoding: temperature, top_p, top_k and
        seed; greedy without. DiptychError for other settings, and for turns that the model cannot read.
        """
        inputs, how = self._asked(images, turns), self._how(decoding)
        with torch.inference_mode(), seeded(decoding.get("seed", 0)):
            out = self.model.generate(**inputs, max_new_tokens=max_tokens, **how)
        answer: str = self.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return answer.strip()

    def stream(self, images: Sequence[Image], turns: Sequence[Turn], max_tokens: int = 128, **decoding: Any) -> Writing:
        """The same turn, piece by piece. The conversation is read here, so that errors come before the first piece."""
        inputs, how = self._asked(images, turns), self._how(decoding)
        ids: list[int] = []
        ended = [False]

        def steps() -> Iterator[tuple[str, str]]:
            """The text after each token, and the part of it that another token cannot change: without a character that is not whole
            yet.
            """
            for token in self._tokens(inputs, max_tokens, how, int(decoding.get("seed", 0))):
                ids.append(token)
                ended[0] = token in self._ends()
                text = self.tokenizer.decode(ids, skip_special_tokens=True).lstrip()
                yield text, text.rstrip("\ufffd")

        return Writing(steps(), (), inputs["input_ids"].shape[1], lambda: ended[0])

    # --- how ---

    def _asked(self, images: Sequence[Image], turns: Sequence[Turn]) -> dict[str, Any]:
        try:
            return move(self.chat.batch([(turns, images)], ask=True, side="left").inputs, self.device, self.dtype)
        except Mistake as mistake:
            raise DiptychError(f"the prompt cannot be used: {mistake}") from None

    def _how(self, decoding: dict[str, Any]) -> dict[str, Any]:
        if wrong := [name for name, value in decoding.items() if name not in DRAWS and value is not None]:
            self.cannot(f"decode with {wrong[0]}; it takes {', '.join(DRAWS)}")
        temperature = decoding.get("temperature")
        if not temperature and (temperature is not None or not (decoding.get("top_p") or decoding.get("top_k"))):
            return {"do_sample": False, "num_beams": 1}
        drawn = {name: decoding[name] for name in ("temperature", "top_p", "top_k") if decoding.get(name) is not None}
        return {"do_sample": True, "num_beams": 1, "top_k": 0, "top_p": 1.0, "temperature": 1.0, **drawn}

    def _ends(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set(ends if isinstance(ends, list) else [] if ends is None else [ends])

    def _tokens(self, inputs: dict[str, Any], most: int, how: dict[str, Any], seed: int) -> Iterator[int]:
        """Tokens as the model writes them, in a thread of its own, which ends when the caller stops reading."""
        from transformers import StoppingCriteriaList
        from transformers.generation.streamers import BaseStreamer

        made: queue.Queue[int | BaseException | None] = queue.Queue()
        stopped = threading.Event()

        class Pieces(BaseStreamer):
            """Puts every new token in the queue; the first that it is given is the prompt."""

            def __init__(self) -> None:
                self.first = True

            def put(self, value: Any) -> None:
                """The next token."""
                if not self.first:
                    made.put(int(value.reshape(-1)[-1]))
                self.first = False

            def end(self) -> None:
                """Nothing: the thread says that it is over."""

        def work() -> None:
            """Writes the whole answer."""
            try:
                stop: Any = StoppingCriteriaList([lambda ids, scores, **_: torch.full((len(ids),), stopped.is_set())])
                with torch.inference_mode(), seeded(seed):
                    self.model.generate(**inputs, max_new_tokens=most, streamer=Pieces(), stopping_criteria=stop, **how)
                made.put(None)
            except BaseException as error:
                made.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (item := made.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers that depend on the seed alone; those of the caller are as before afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
