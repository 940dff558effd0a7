"""Items of evaluation sets in the pool: a model trained on them knows the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from diptych.core.words import words
from diptych.curation.operators.base import Columns, Operator
from diptych.curation.operators.text.quality import normalised
from diptych.data.hashes.hamming import nearest_within
from diptych.data.hashes.perceptual import phashes, pixel_hash


@dataclass(frozen=True)
class Reference:
    """Hashes and n-grams of the evaluation sets."""

    ids: tuple[str, ...]
    pixels: Mapping[bytes, int]  # pixel hash: position
    hashes: np.ndarray  # pHashes, uint64 [N]
    texts: Mapping[str, int]
    runs: Mapping[str, int]  # of words
    fingerprint: str


@lru_cache(maxsize=2)
def reference(against: tuple[str, ...], run: int) -> Reference:
    """The reference of the data at these addresses; items that cannot be decoded are left out."""
    from diptych.data.source import BrokenItem
    from diptych.data.sources import open_source

    ids: list[str] = []
    pixels: dict[bytes, int] = {}
    texts: dict[str, int] = {}
    runs: dict[str, int] = {}
    hashes, prints = [np.empty(0, np.uint64)], []
    for address in against:
        source = open_source(address)
        prints.append(source.fingerprint())
        for i in range(len(source)):
            try:
                sample = source[i]
            except BrokenItem:
                continue
            place = len(ids)
            ids.append(sample.id)
            if sample.image is not None:
                pixels.setdefault(pixel_hash(sample.image), place)
                hashes.append(phashes([sample.image]))
            for text in sample.captions:
                texts.setdefault(normalised(text), place)
                for sequence in word_runs(text, run):
                    runs.setdefault(sequence, place)
    return Reference(tuple(ids), pixels, np.concatenate(hashes), texts, runs, " ".join(prints))


def word_runs(text: str, n: int) -> list[str]:
    """The n-grams of n words, without case and punctuation."""
    found = words(text.casefold())
    return [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]


@dataclass(frozen=True, kw_only=True)
class Leaks(Operator):
    """``leaked_image`` and ``leaked_text``: ids of the evaluation items that a row repeats; null if none. After ``image_hash``.

    An image leaks with the same pixels or a pHash within ``distance`` bits; a text with the same caption or a common n-gram of
    ``run`` words. against: addresses of evaluation sets. Short captions recur by chance, so texts of fewer than ``run`` words are
    not checked.
    """

    name = "leaks"
    version = 2
    inputs = ("pixel_hash", "phash", "text")
    outputs = {  # noqa: RUF012 - declared, never changed
        "leaked_image": pa.string(),
        "leaked_image_bits": pa.int32(),
        "leaked_text": pa.string(),
    }
    against: tuple[str, ...]
    distance: int = 4
    run: int = 8

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        known = reference(self.against, self.run)
        hashes = batch["phash"].to_numpy(zero_copy_only=False).astype(np.uint64)
        place, bits = nearest_within(hashes, known.hashes, self.distance)
        exact = np.array([known.pixels.get(h, -1) for h in batch["pixel_hash"].to_pylist()], np.int64)
        place, bits = np.where(exact >= 0, exact, place), np.where(exact >= 0, 0, bits)
        text_matches = [self._text(text, known) for text in batch["text"].to_pylist()]
        return {
            "leaked_image": _named(place, known.ids),
            "leaked_image_bits": pa.array(bits, mask=place < 0, type=pa.int32()),
            "leaked_text": _named(text_matches, known.ids),
        }

    def _text(self, text: str, known: Reference) -> int:
        runs = word_runs(text, self.run)
        if not runs:
            return -1
        return known.texts.get(normalised(text), next((known.runs[r] for r in runs if r in known.runs), -1))

    def depends(self) -> str:
        """Anything else that the result depends on, such as a hash of a model's files; part of the result's address."""
        return reference(self.against, self.run).fingerprint


def _named(places: Sequence[int] | np.ndarray, ids: Sequence[str]) -> list[str | None]:
    return [ids[p] if p >= 0 else None for p in places]
