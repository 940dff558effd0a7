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
    """n pictures. scores: 1 if the model scores a picture's own caption above ``rivals`` others, else the share of those that it
    beats is in ``shares``. vectors: of the pictures, unit length [n, E].
    """

    ids: list[str]
    samples: list[Sample]
    texts: list[str]
    vectors: np.ndarray
    scores: np.ndarray
    shares: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def judge(model: Model, source: Any, n: int, *, embedder: Model | None = None, rivals: int = RIVALS, seed: int = 0) -> Judged:
    """The first n pictures with a caption, each with its own caption and ``rivals`` of the others, of another meaning.

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
    rng, pairs = np.random.default_rng(seed), []
    for i in range(len(samples)):
        others = [int(j) for j in rng.permutation(len(samples)) if meanings[j] != meanings[i]][:rivals]
        pairs += [(i, i), *((i, j) for j in others)]
    wanted = np.array(pairs)
    found = np.asarray(model.score(images, texts, wanted), dtype=np.float64)
    own = {i: found[k] for k, (i, j) in enumerate(wanted) if i == j}
    beaten = np.zeros((len(samples), 2))
    for k, (i, j) in enumerate(wanted):
        if i != j:
            beaten[i] += (0.5 * (np.sign(own[i] - found[k]) + 1), 1)
    shares = beaten[:, 0] / np.maximum(beaten[:, 1], 1)
    vectors = np.asarray(gives.embed_image(images), dtype=np.float64)
    return Judged([s.id for s in samples], samples, texts, vectors, (shares == 1).astype(np.float64), shares)
