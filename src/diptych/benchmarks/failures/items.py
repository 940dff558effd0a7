"""How well a model does on each picture of some data, with what is needed to find out where it does badly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample

RIVALS = 19  # captions of other pictures that a picture's own caption must beat


@dataclass(frozen=True)
class Judged:
    """n pictures. scores: 1 if the model scores a picture's own caption above all rivals, else 0, [n]; margins: how far it is above
    the best of them, in standard deviations of the margins. vectors: of the pictures, [n, E].
    """

    ids: list[str]
    samples: list[Sample]
    texts: list[str]
    vectors: np.ndarray
    scores: np.ndarray
    margins: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def judge(model: Model, source: Any, n: int, *, embedder: Model | None = None, rivals: int = RIVALS, seed: int = 0) -> Judged:
    """The first n pictures with a caption, each with its own caption, ``rivals`` of the others, of another meaning, and the wrong
    version of its own caption, if the source has one.

    embedder: gives the vectors, if the model has none. DiptychError if there are too few pictures or no vectors.
    """
    gives = embedder or model
    if "score" not in model.capabilities or "embed_image" not in gives.capabilities:
        what = "score texts" if "score" not in model.capabilities else "embed images; name a model that does: --by conse"
        raise DiptychError(f"model '{model.name}' does not {what}")
    samples: list[Sample] = []
    for index in range(min(len(source), 10 * n)):
        sample = source[index]
        if sample.image is not None and sample.captions:
            samples.append(sample)
        if len(samples) == n:
            break
    if len(samples) < 40:
        raise DiptychError(f"{len(samples)} pictures with captions are too few to find slices in; 40 or more are needed")
    images, texts = [s.image for s in samples if s.image is not None], [s.captions[0] for s in samples]
    meanings = [s.meanings[0] if s.meanings else " ".join(s.captions[0].lower().split()) for s in samples]
    wrong = {i: s.negatives[0] for i, s in enumerate(samples) if s.negatives and s.negatives[0]}
    number = {i: len(texts) + k for k, i in enumerate(wrong)}
    rng, pairs = np.random.default_rng(seed), []
    for i in range(len(samples)):
        others = [int(j) for j in rng.permutation(len(samples)) if meanings[j] != meanings[i]][:rivals]
        pairs += [(i, i), *((i, j) for j in others), *([(i, number[i])] if i in number else [])]
    wanted = np.array(pairs)
    found = np.asarray(model.score(images, [*texts, *wrong.values()], wanted), dtype=np.float64)
    is_own = wanted[:, 0] == wanted[:, 1]
    best = np.full(len(samples), -np.inf)
    np.maximum.at(best, wanted[~is_own, 0], found[~is_own])
    margins = found[is_own] - best
    vectors = np.asarray(gives.embed_image(images), dtype=np.float64)
    spread = float(margins.std()) or 1.0
    return Judged([s.id for s in samples], samples, texts, vectors, (margins > 0).astype(np.float64), margins / spread)
