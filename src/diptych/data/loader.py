"""From a source to batches. ``batch(step)`` is a pure function of the step, so a resumed run sees what an uninterrupted one would."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from diptych.batch import Batch, Sample
from diptych.data.negatives import swap_words
from diptych.data.source import BrokenItem, Problem, Source
from diptych.data.text import Tokenizer, normalise
from diptych.errors import DiptychError

ENDLESS = 10_000_000  # a source longer than this is read in order: its samples are drawn at random already
CACHE_BYTES = 2**30  # of decoded images kept, resized, for sources that are small enough to be read again


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
        self._images: OrderedDict[int, np.ndarray] = OrderedDict()
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

    def sample(self, position: int) -> tuple[Sample, np.ndarray]:
        """The sample at this place of the stream, and its image at the model's size."""
        return self._read(self.index(position), random.Random(mixed(self.seed, position, 1)))

    def _read(self, start: int, rng: random.Random) -> tuple[Sample, np.ndarray]:
        n = len(self.source)
        for step in range(min(n, 1000)):
            index = (start + step) % n
            try:
                sample = self.source[index]
                if sample.image is None:
                    raise BrokenItem(sample.id, "no image")
                return sample, self._fit(index, sample.image, rng)
            except BrokenItem as broken:
                self.problems[broken.problem.item] = broken.problem
        first = next(iter(self.problems.values()))
        raise DiptychError(f"{self.source.address}: no usable sample among {min(n, 1000)}; first: {first.item}: {first.reason}")

    def _fit(self, index: int, image: np.ndarray, rng: random.Random) -> np.ndarray:
        if image.shape[:2] == (self.image_size, self.image_size) and self.augment == "none":
            return image
        from diptych.data.image import random_resized_crop, resize

        if self.augment == "crop":
            return random_resized_crop(image, self.image_size, rng)
        if index not in self._images:
            fitted = resize(image, self.image_size)
            if self._keep:
                self._images[index] = fitted
                if len(self._images) > self._keep:
                    self._images.popitem(last=False)
            return fitted
        return self._images[index]

    def batch(self, step: int) -> Batch:
        first = step * self.batch_size
        positions = range(first, first + self.batch_size)
        for position in positions[:: max(1, self.batch_size - 1)]:
            self.index(position)  # fixes the epoch's order before threads ask for it
        pairs = list(map(self.sample, positions)) if self._threads is None else [self.sample(p) for p in positions]
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
