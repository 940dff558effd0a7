"""Vectors for many requests at once: what waits is computed together, in one thread.

Batches depend on what else is asked at the moment, and so do the last digits of a vector (about 1e-7 in float32). ``FixedBatch``
computes everything at one batch size, so that a vector is the same to the bit whatever else is asked.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Literal

import numpy as np

from diptych.core.capabilities import Adapter, Image, Model
from diptych.core.errors import DiptychError
from diptych.core.streaming import Tokenizing
from diptych.serve.errors import busy

Kind = Literal["image", "text"]
WAIT = 300.0  # seconds that a search waits for the vector of its query


class FixedBatch(Adapter):
    """A model that embeds in batches of exactly ``size``; the last is filled up with copies of its last item.

    Texts of one batch have the same number of tokens, since padding changes the last digits too: they are grouped by it where the
    model tells tokens, and else each text fills a batch with copies.
    """

    def __init__(self, model: Model, size: int):
        self.base, self.size = model, size
        self.name, self.key, self.capabilities = model.name, getattr(model, "key", None), model.capabilities

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors, float32 [N, E], each the same to the bit in any company."""
        return self._filled(list(images), self.base.embed_image)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, E], each the same to the bit in any company."""
        if not texts:
            return self.base.embed_text([])
        if isinstance(self.base, Tokenizing):
            groups: dict[Any, list[int]] = {}
            for i, ids in enumerate(self.base.token_ids(texts)):
                groups.setdefault(len(ids), []).append(i)
        else:
            groups = {i: [i] for i in range(len(texts))}
        out: np.ndarray | None = None
        for members in groups.values():
            made = self._filled([texts[i] for i in members], self.base.embed_text)
            out = np.empty((len(texts), made.shape[1]), dtype=np.float32) if out is None else out
            out[members] = made
        assert out is not None
        return out

    def check(self) -> None:
        """DiptychError if vectors of this model depend on their place in a batch, which filling up cannot mend."""
        rng = np.random.default_rng(0)
        one, other = (rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(2))
        tests: list[tuple[str, Any, Any]] = [("embed_image", one, other), ("embed_text", "a red fox", "two old men")]
        for what, a, b in tests:
            if self.size > 1 and what in self.capabilities:
                embed = getattr(self.base, what)
                if not np.array_equal(embed([a] * self.size)[0], embed([b] * (self.size - 1) + [a])[-1]):
                    raise DiptychError(f"serve: vectors of '{self.name}' depend on their place in a batch; use --fixed-batch 1")

    def _filled(self, items: list[Any], embed: Callable[[Sequence[Any]], np.ndarray]) -> np.ndarray:
        if not items:
            return embed([])
        parts = []
        for start in range(0, len(items), self.size):
            part = items[start : start + self.size]
            parts.append(embed(part + [part[-1]] * (self.size - len(part)))[: len(part)])
        return np.concatenate(parts)


class _Asked:
    """Items of one request, and where their vectors go."""

    def __init__(self, kind: Kind, items: list[Any]):
        self.kind, self.items = kind, items
        self.future: Future[np.ndarray] = Future()


class Batcher:
    """One thread that embeds for many. most: items computed at a time; queue: items that may wait; seen: told of each batch, as
    ``seen(kind, items, seconds)``.
    """

    def __init__(self, model: Model, most: int, queue: int, seen: Callable[[Kind, int, float], None] | None = None):
        self.model, self.most, self.queue, self.seen = model, most, queue, seen
        self.waiting = 0  # items
        self.rate = 100.0  # items a second, smoothed
        self._line: deque[_Asked] = deque()
        self._change = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._work, name="diptych-embed", daemon=True)
        self._thread.start()

    def submit(self, kind: Kind, items: Sequence[Any]) -> Future[np.ndarray]:
        """The vectors of texts or pictures, float32 [N, E], later. ApiError 429 if too much waits."""
        asked = _Asked(kind, list(items))
        with self._change:
            if not self._open:
                raise busy("the server is stopping", 1)
            if self.waiting and self.waiting + len(asked.items) > self.queue:
                raise busy("too many inputs wait to be embedded", self.waiting / self.rate)
            self.waiting += len(asked.items)
            self._line.append(asked)
            self._change.notify()
        return asked.future

    def close(self) -> None:
        """Ends the thread after what it computes now; what waits is cancelled."""
        with self._change:
            self._open = False
            for asked in self._line:
                asked.future.cancel()
            self._line.clear()
            self.waiting = 0
            self._change.notify()
        self._thread.join(5)

    def _take(self) -> list[_Asked]:
        """The first that waits, and others of its kind behind it, as far as they fit. Empty at the end."""
        with self._change:
            while self._open and not self._line:
                self._change.wait()
            if not self._open:
                return []
            taken = [self._line.popleft()]
            size, left = len(taken[0].items), deque[_Asked]()
            while self._line:
                asked = self._line.popleft()
                if asked.kind == taken[0].kind and size + len(asked.items) <= self.most:
                    taken.append(asked)
                    size += len(asked.items)
                else:
                    left.append(asked)
            self._line = left
            self.waiting -= size
        return taken

    def _work(self) -> None:
        while taken := self._take():
            wanted = [asked for asked in taken if asked.future.set_running_or_notify_cancel()]
            if wanted:
                self._answer(wanted)

    def _answer(self, wanted: list[_Asked]) -> None:
        begun = time.monotonic()
        items = [item for asked in wanted for item in asked.items]
        try:
            embed = self.model.embed_image if wanted[0].kind == "image" else self.model.embed_text
            vectors = np.asarray(embed(items), dtype=np.float32)
            if len(vectors) != len(items) or not np.isfinite(vectors).all():
                raise DiptychError(f"model '{self.model.name}' gave no vector for an input")
        except BaseException as error:
            if len(wanted) > 1:  # one input must not spoil the others
                for asked in wanted:
                    self._answer([asked])
            else:
                wanted[0].future.set_exception(error)
            return
        seconds = time.monotonic() - begun
        self.rate += 0.1 * (len(items) / max(seconds, 1e-6) - self.rate)
        if self.seen is not None:
            self.seen(wanted[0].kind, len(items), seconds)
        at = 0
        for asked in wanted:
            asked.future.set_result(vectors[at : at + len(asked.items)])
            at += len(asked.items)


class Batched(Adapter):
    """A model of which the vectors come from a ``Batcher``, for code that expects a model, such as the index."""

    def __init__(self, model: Model, batcher: Batcher):
        self.base, self.batcher = model, batcher
        self.name, self.key, self.capabilities = model.name, getattr(model, "key", None), model.capabilities

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        return self._of("image", images)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        return self._of("text", texts)

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """The model's own score."""
        return self.base.score(images, texts, pairs)

    def loglikelihood(self, images: Sequence[Image], texts: Sequence[str], prompt: Any = "") -> np.ndarray:
        """The model's own likelihood."""
        return self.base.loglikelihood(images, texts, prompt)

    def _of(self, kind: Kind, items: Sequence[Any]) -> np.ndarray:
        parts = [self.batcher.submit(kind, items[i : i + self.batcher.most]) for i in range(0, len(items), self.batcher.most)]
        if not parts:
            return self.base.embed_image([]) if kind == "image" else self.base.embed_text([])
        return np.concatenate([part.result(WAIT) for part in parts])
