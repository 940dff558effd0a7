"""Weighing the sentences of a class by self-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import dropout, layer_norm, normalize

from diptych.choose.ways.base import Support, Way
from diptych.choose.ways.descent import Descent, tensor
from diptych.choose.ways.texts import sentences_of
from diptych.core.arrays import unit_rows
from diptych.inference.heads import Head, Linear


def padded(sentences: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Vectors [C, T, E], zeros where a class has fewer sentences, and which are real [C, T]."""
    longest = max(len(s) for s in sentences)
    vectors = torch.zeros(len(sentences), longest, sentences[0].shape[1])
    real = torch.zeros(len(sentences), longest, dtype=torch.bool)
    for c, own in enumerate(sentences):
        vectors[c, : len(own)], real[c, : len(own)] = tensor(own), True
    return vectors, real


def attended(sentences: Tensor, real: Tensor, weights: Mapping[str, Tensor], ratio: float, drop: float = 0.0) -> Tensor:
    """Class vectors of unit length [C, E]: one head of self-attention over a class's sentences [C, T, E], mixed with them,
    averaged.

    weights: query, key [R, E], value [R, E], out [E, R], offset [E]; ratio: share of the attention's output; drop: share of its
    weights and outputs that is set to zero in training.
    """
    query, key, value = (sentences @ weights[name].T for name in ("query", "key", "value"))
    likeness = query @ key.transpose(1, 2) * key.shape[-1] ** -0.5
    attention = likeness.masked_fill(~real[:, None], -torch.inf).softmax(-1)
    mixed = dropout(attention, drop, drop > 0) @ value @ weights["out"].T + weights["offset"]
    mixed = layer_norm(2 * (ratio * dropout(mixed, drop, drop > 0) + (1 - ratio) * sentences), sentences.shape[-1:])
    mean = (mixed * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    return normalize(mean, dim=-1)


@dataclass(frozen=True)
class SentenceAttention(Way):
    """CLIP-A-self (Maniparambil et al. 2023, arXiv:2307.11661): a self-attention adapter over the sentences that a language model
    wrote of each class, mixed with them by ``ratio``, averaged, trained by cross-entropy on the labelled images.

    Checked with the authors' code: one head of width E / 4, no offsets but the last, initial values, dropout 0.5, the sum doubled
    and normalised over its elements (here without the norm's own scale and offset, which would be 2 E numbers more). Theirs is
    SGD with random crops for 10 epochs or more; here AdamW, ``steps`` steps with all images, without crops. Ratio 0 are the
    descriptions themselves. A class without sentences uses its templates.
    """

    name = "gpt-adapter"
    about = "self-attention weighs the sentences that describe each class"
    cite = "Maniparambil et al. 2023, arXiv:2307.11661"
    needs_text = True
    ratio: float = 0.2
    steps: int = 60
    rate: float = 1e-3

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """The authors' ratios; 0: no adapter."""
        return [{"ratio": ratio} for ratio in (0.2, 0.5, 0.0)]

    def fit(self, support: Support) -> Head:
        """Logits are scaled cosines with the class vectors that the adapter makes."""
        sentences = sentences_of(support)
        if not self.ratio or not len(support.y):
            vectors = unit_rows(np.stack([own.mean(0) for own in sentences]))
            return Linear(support.scale * vectors, np.zeros(support.classes), open=True)
        padded_sentences, real = padded(sentences)
        x, y = tensor(support.x), torch.tensor(support.y)
        weights = start(x.shape[1], support.seed)

        def logits(rows: Tensor) -> Tensor:
            """Of some rows [n]: [n, C]."""
            return support.scale * x[rows] @ attended(padded_sentences, real, weights, self.ratio, 0.5).T

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(support.seed)  # of the dropout
            descent = Descent("adamw", self.rate, self.steps, len(y), by_step=True)
            descent.train(logits, y, list(weights.values()), support.seed)
        vectors = attended(padded_sentences, real, weights, self.ratio).numpy()
        return Linear(support.scale * vectors, np.zeros(support.classes), open=True)


def start(width: int, seed: int) -> dict[str, Tensor]:
    """Initial weights: normal, of Glorot's variance times the gains 1, 1, 0.67, 0.67 squared."""
    generator = torch.Generator().manual_seed(seed)
    inner = max(1, width // 4)
    std = (2 / (width + inner)) ** 0.5
    shapes = {"query": (inner, width, 1.0), "key": (inner, width, 1.0), "value": (inner, width, 0.67), "out": (width, inner, 0.67)}
    weights = {name: gain * std * torch.randn(a, b, generator=generator) for name, (a, b, gain) in shapes.items()}
    return {**weights, "offset": torch.zeros(width)}
