"""From a source to batches. ``batch(step)`` is a pure function of the step, so a resumed run sees what an uninterrupted one would."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from diptych.batch import Batch, Sample
from diptych.data.negatives import swap_words
from diptych.data.source import BrokenItem, Problem, Source
from diptych.data.text import Tokenizer, normalise
from diptych.errors import DiptychError

ENDLESS = 10_000_000  # a source longer than this is read in order: its samples are drawn at random already
CACHE_BYTES = 2**30  # of decoded images kept, resized, of sources that are read again and again


def to_pixels(images: Sequence[np.ndarray]) -> Any:
    """uint8 [H, W, 3] images of one size → float tensor [B, 3, H, W] in [-1, 1]."""
    import torch

    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return stacked.to(torch.float32).mul_(1 / 127.5).sub_(1.0)


def mixed(*numbers: int) -> int:
    """One well-mixed integer from several (splitmix64), so that neighbouring seeds give unrelated draws."""
    x = 0x9E3779B97F4A7C15
    for n in numbers:
        x = (x ^ n) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 31
    return x


class Loader:
    """Batches of a source, in an order fixed by (seed, step). A broken item is recorded and its successor taken."""

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        image_size: int,
        batch_size: int,
        seed: int = 0,
        augment: str = "none",
        negatives: bool = False,
    ):
        self.source, self.tokenizer, self.image_size = source, tokenizer, image_size
        self.batch_size, self.seed, self.augment, self.negatives = batch_size, seed, augment, negatives
        self.problems: dict[str, Problem] = {}
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self._seen: OrderedDict[int, tuple[Sample, np.ndarray]] = OrderedDict()
        endless = len(source) > ENDLESS
        self._keep = 0 if endless else CACHE_BYTES // (3 * image_size**2)
        self._threads = None if endless else ThreadPoolExecutor(4)
        if len(source) == 0:
            raise DiptychError(f"{source.address}: no samples to train on")

    def index(self, position: int) -> int:
        """Which sample stands at this place of the endless stream: epochs are permutations, each its own."""
        n = len(self.source)
        if n > ENDLESS:
            return (mixed(self.seed) + position) % n
        epoch, place = divmod(position, n)
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, epoch)).permutation(n))
        return int(self._order[1][place])

    def _read(self, start: int, rng: random.Random) -> tuple[Sample, np.ndarray]:
        """The sample at ``start``, or the next that can be used, and its image at the model's size."""
        n = len(self.source)
        for step in range(min(n, 1000)):
            index = (start + step) % n
            if index in self._seen:
                return self._seen[index]
            try:
                sample = self.source[index]
                if sample.image is None:
                    raise BrokenItem(sample.id, "no image")
            except BrokenItem as broken:
                self.problems[broken.problem.item] = broken.problem
                continue
            fitted = self._fit(sample.image, rng)
            if self._keep and self.augment == "none":
                self._seen[index] = (replace(sample, image=None), fitted)
                if len(self._seen) > self._keep:
                    self._seen.popitem(last=False)
            return sample, fitted
        first = next(iter(self.problems.values()))
        raise DiptychError(f"{self.source.address}: no usable sample among {min(n, 1000)}; first: {first.item}: {first.reason}")

    def _fit(self, image: np.ndarray, rng: random.Random) -> np.ndarray:
        from diptych.data.image import random_resized_crop, resize

        if self.augment == "crop":
            return random_resized_crop(image, self.image_size, rng)
        same = image.shape[:2] == (self.image_size, self.image_size)
        return image if same else resize(image, self.image_size)

    def batch(self, step: int) -> Batch:
        first = step * self.batch_size
        positions = range(first, first + self.batch_size)
        indices = [self.index(p) for p in positions]
        draws = [random.Random(mixed(self.seed, p, 1)) for p in positions]
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
        return self.collate([image for _, image in pairs], captions, meanings, negatives, tuple(s.id for s, _ in pairs))

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
            batch.pixels = to_pixels(images)
        if len(captions):
            text, mask = self.tokenizer.encode_batch(captions)
            batch.text, batch.text_mask = torch.from_numpy(text), torch.from_numpy(mask)
        if meanings:
            number = {m: i for i, m in enumerate(dict.fromkeys(meanings))}
            batch.meaning = torch.tensor([number[m] for m in meanings])
        wrong = tuple(filter(None, negatives))
        if wrong:
            text, mask = self.tokenizer.encode_batch(wrong)
            batch.negatives, batch.negatives_mask = torch.from_numpy(text), torch.from_numpy(mask)
            batch.negative_captions = wrong
        return batch
