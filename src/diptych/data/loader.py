"""From a source to batches. ``rows(step, start, stop)`` is a pure function, so a resumed run, or one spread over other ranks,
micro-batches or workers, sees what an uninterrupted one would."""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from diptych.core.batch import Batch, Sample, floats
from diptych.core.errors import DiptychError
from diptych.data import stream
from diptych.data.negatives import swap_words
from diptych.data.order import ENDLESS, Epochs, Mixed, Order, mixed
from diptych.data.source import BrokenItem, Problem, Source
from diptych.data.sources.mixture import Mixture
from diptych.data.text import Tokenizer, normalise

CACHE_BYTES = 2**30  # of decoded images kept, resized, of sources that are read again and again


def to_pixels(images: Sequence[np.ndarray]) -> Any:
    """uint8 [H, W, 3] images of one size → float tensor [B, 3, H, W] in [-1, 1]."""
    return floats(stacked(images))


def stacked(images: Sequence[np.ndarray]) -> Any:
    """uint8 [H, W, 3] images of one size → uint8 tensor [B, 3, H, W], a quarter of what floats take; channels last in memory."""
    import torch

    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def meaning_number(meaning: str) -> int:
    """63 bits of a hash: equal in every slice of a batch and on every rank, unlike a number counted up."""
    return int.from_bytes(hashlib.blake2b(meaning.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1


class Loader:
    """Batches of a source, in an order fixed by (seed, step). A broken item is recorded and its successor taken.

    workers: processes that ``stream`` reads with; 0: none. waited: seconds that the consumer of ``stream`` spent waiting.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        image_size: int,
        batch_size: int,
        seed: int = 0,
        augment: str = "none",
        negatives: bool = False,
        workers: int = 0,
        text_mask: float = 0.0,
    ):
        self.source, self.tokenizer, self.image_size = source, tokenizer, image_size
        self.batch_size, self.seed, self.augment, self.negatives = batch_size, seed, augment, negatives
        self.workers, self.waited = workers, 0.0
        self.lone_images: Loader | None = None  # each sample is joined by an image from here, and by a text from there
        self.lone_texts: Loader | None = None
        self.text_mask = text_mask
        if text_mask and not hasattr(tokenizer, "mask"):
            raise DiptychError("data.text_mask: this tokenizer has no [MASK]; use data.tokenizer.kind: bpe")
        self.problems: dict[str, Problem] = {}
        if len(source) == 0:
            raise DiptychError(f"{source.address}: no samples to train on")
        self.order: Order = source.order(seed) if isinstance(source, Mixture) else Epochs(len(source), seed)
        self._prepare()

    def _prepare(self, worker: bool = False) -> None:
        """What a process must have for itself; a worker does with less."""
        self._seen: OrderedDict[int, tuple[Sample, Any]] = OrderedDict()
        once = worker or len(self.source) > ENDLESS  # each image is met by this process, or drawn, once
        plain = once or getattr(self.source, "instant", False)
        self._keep = 0 if once else CACHE_BYTES // (3 * self.image_size**2)
        self._threads = None if plain else ThreadPoolExecutor(4)

    def in_worker(self) -> None:
        """Called in a worker process, where threads of the parent are dead and a cache of its own would cost memory N times."""
        self._prepare(worker=True)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_seen", "_threads")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def index(self, position: int) -> int:
        """Which sample stands at this place of the endless stream."""
        return self.order[position]

    def drawn(self, samples: int) -> dict[str, int]:
        """Of the first so many samples, how many came from each source."""
        if isinstance(self.source, Mixture) and isinstance(self.order, Mixed):
            return dict(zip(self.source.addresses, self.order.counts(samples), strict=True))
        return {self.source.address: samples}

    def _read(self, start: int, rng: random.Random | None) -> tuple[Sample, Any]:
        """The sample at ``start``, or the next that can be used, and its image at the model's size."""
        source, n, index = self.source, len(self.source), start
        for turn in range(min(n, 1000)):
            if turn:
                index = source.successor(index) if isinstance(source, Mixture) else (index + 1) % n
            seen = self._seen.get(index)  # asked once: another thread may throw it out
            if seen is not None:
                return seen
            try:
                sample = source[index]
                fitted = self._prepared(sample, rng)
            except BrokenItem as broken:
                self.problems[broken.problem.item] = broken.problem
                continue
            if self._keep and self.augment == "none":
                self._seen[index] = (replace(sample, image=None, images=[]), fitted)
                if len(self._seen) > self._keep:
                    self._seen.popitem(last=False)
            return sample, fitted
        first = next(iter(self.problems.values()))
        raise DiptychError(f"{self.source.address}: no usable sample among {min(n, 1000)}; first: {first.item}: {first.reason}")

    def _prepared(self, sample: Sample, rng: random.Random | None) -> Any:
        """What of a sample's images is kept: one, at the model's size. Raises ``BrokenItem`` for a sample that cannot be used."""
        if sample.image is None:
            raise BrokenItem(sample.id, "no image")
        return self._fit(sample.image, rng)

    def _fit(self, image: np.ndarray, rng: random.Random | None) -> np.ndarray:
        from diptych.data.image import random_resized_crop, resize

        if rng is not None:
            return random_resized_crop(image, self.image_size, rng)
        same = image.shape[:2] == (self.image_size, self.image_size)
        return image if same else resize(image, self.image_size)

    def batch(self, step: int) -> Batch:
        return self.rows(step, 0, self.batch_size)

    def stream(
        self, step: int, start: int = 0, stop: int | None = None, micro: int | None = None, ahead: bool = False, pin: bool = False
    ) -> Iterator[Batch]:
        """``rows(step, start, stop)`` and the same rows of every step after it, for ever; in pieces of ``micro`` rows if given.

        Read by ``workers`` processes; without any, and with ``ahead``, by a thread that is one batch ahead. ``pin``: in
        page-locked memory, for a GPU. Close it (``stream.close()``) when done, so that the workers end.
        """
        stop = self.batch_size if stop is None else stop
        if self.workers:
            batches = stream.in_workers(self, step, start, stop, micro, self.workers, pin)
        else:
            wanted = stream.slices(step, start, stop, micro)
            batches = stream.in_thread(self, wanted, pin) if ahead else stream.in_process(self, wanted)
        return stream.timed(self, batches)

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Samples start..stop of the global batch of that step: a rank's share, or a micro-batch.

        A function of (seed, step, start, stop) and the source alone; pixels are uint8.
        """
        if not 0 <= start < stop <= self.batch_size:
            raise ValueError(f"rows {start} to {stop} of a batch of {self.batch_size}")
        first = step * self.batch_size
        positions = range(first + start, first + stop)
        indices = [self.index(p) for p in positions]
        crop = self.augment == "crop"
        draws = [random.Random(mixed(self.seed, p, 1)) if crop else None for p in positions]
        read = map if self._threads is None else self._threads.map  # decoding releases the interpreter; drawing scenes does not
        pairs = list(read(self._read, indices, draws))
        captions, meanings, negatives = [], [], []
        for position, (sample, _) in zip(positions, pairs, strict=True):
            rng = random.Random(mixed(self.seed, position, 2))
            k = rng.randrange(len(sample.captions))
            captions.append(sample.captions[k])
            meanings.append(sample.meanings[k] if sample.meanings else normalise(sample.captions[k]))
            if self.negatives:
                wrong = sample.negatives[k] if sample.negatives else ""
                negatives.append(wrong or swap_words(sample.captions[k], rng) or "")
        batch = self.collate([image for _, image in pairs], captions, meanings, negatives, tuple(s.id for s, _ in pairs))
        batch.start = start
        if self.lone_images is not None:
            batch.lone_pixels = self.lone_images.rows(step, start, stop).pixels
        if self.lone_texts is not None:
            others = self.lone_texts.rows(step, start, stop)
            batch.lone_text, batch.lone_mask = others.text, others.text_mask
        if self.text_mask:
            batch.text = self._masked(batch.text, positions)
            if batch.negatives is not None and batch.negative_rows is not None:
                batch.negatives = self._masked(batch.negatives, [positions[int(row)] for row in batch.negative_rows])
        return batch

    def _masked(self, ids: Any, positions: Sequence[int]) -> Any:
        """Each token but [BOS], [EOS] and [PAD] hidden with the chance ``text_mask``, so that no caption can be learned by heart
        (after Jayaraman et al., arXiv:2402.02103). A caption and its wrong version lose the same places, or the loss would show.
        """
        import torch

        chance = np.stack([np.random.default_rng((self.seed, p, 3)).random(self.tokenizer.max_length) for p in positions])
        special = torch.stack([ids == i for i in (self.tokenizer.pad, self.tokenizer.bos, self.tokenizer.eos)]).any(0)
        hidden = torch.from_numpy(chance[:, : ids.shape[1]] < self.text_mask) & ~special
        return torch.where(hidden, self.tokenizer.mask, ids)

    def collate(
        self,
        images: Sequence[np.ndarray],
        captions: Sequence[str],
        meanings: Sequence[str] = (),
        negatives: Sequence[str] = (),
        ids: tuple[str, ...] = (),
    ) -> Batch:
        import torch

        batch = Batch(ids=ids, captions=tuple(captions))
        if len(images):
            batch.pixels = stacked(images)
        if len(captions):
            text, mask = self.tokenizer.encode_batch(captions)
            batch.text, batch.text_mask = torch.from_numpy(text), torch.from_numpy(mask)
        if meanings:
            batch.meaning = torch.tensor([meaning_number(m) for m in meanings])
        wrong = tuple(filter(None, negatives))
        if wrong:
            batch.negative_rows = torch.tensor([row for row, text in enumerate(negatives) if text])
            text, mask = self.tokenizer.encode_batch(wrong)
            batch.negatives, batch.negatives_mask = torch.from_numpy(text), torch.from_numpy(mask)
            batch.negative_captions = wrong
        return batch
