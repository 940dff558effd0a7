"""Learned projections of image and text vectors, from sentences as captions: what is left of fine-tuning when towers stay fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from diptych.choose.ways.base import Support, Way
from diptych.choose.ways.descent import descend, tensor
from diptych.choose.ways.linear import LinearProbe
from diptych.choose.ways.texts import sentences_of
from diptych.core.arrays import unit_rows
from diptych.inference.heads import Head, Linear, Projected


def same_class(logits: Tensor, y: Tensor) -> Tensor:
    """The sum of both directions of the contrastive loss in which all pairs of one class are right: for each image the mean of −log
    probability of the texts of its class, and for each text of the images of its class. logits [B, B], y [B].
    """
    same = (y[:, None] == y).to(logits.dtype)
    target = same / same.sum(1, keepdim=True)
    return -(target * logits.log_softmax(1)).sum(1).mean() - (target * logits.T.log_softmax(1)).sum(1).mean()


def own_caption(logits: Tensor) -> Tensor:
    """The mean of both directions of the contrastive loss in which image i belongs to text i alone. logits [B, B]."""
    right = torch.arange(len(logits))
    return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2


def train_projections(
    width: int, draw: Callable[[], tuple[Tensor, Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor], scale: float,
    *, steps: int, rate: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The projections of images A and texts B, [E, E] each, from the identity.

    draw: images [B, E], texts [B, E] and classes [B] of a step; loss: of logits [B, B] and classes; rate: of AdamW, in units of
    1 / E, so that the vectors of models of any width move alike.
    """
    images, texts = torch.eye(width), torch.eye(width)
    temperature = torch.ones(())

    def value() -> Tensor:
        """The loss of a batch, a scalar."""
        x, t, y = draw()
        logits = scale * temperature * normalize(x @ images.T, dim=1) @ normalize(t @ texts.T, dim=1).T
        return loss(logits, y)

    descend(value, [images, texts, temperature], steps=steps, rate=rate / width)
    return images.numpy(), texts.numpy()


def matched(support: Support, sentences: Sequence[np.ndarray], k: int) -> list[np.ndarray]:
    """For each image the k sentences of its own class that are nearest to it, the nearest first: their numbers within the class."""
    return [np.argsort(-(sentences[c] @ x), kind="stable")[:k] for x, c in zip(support.x, support.y, strict=True)]


@dataclass(frozen=True)
class BagOfSentences(Way):
    """AdaptCLIPZS (Saha et al. 2024, arXiv:2401.02460) on fixed vectors: in each step every image has one random sentence of its
    class, and all pairs of one class are right. Its towers and last projections are trained; here a projection behind each tower
    alone.

    Checked with the authors' code: the loss in both directions, its sum, the random sentence. Steps and rate are ours. Classes are
    judged by the mean vector of their sentences.
    steps: of ``batch`` images. rate: ``train_projections``.
    """

    name = "adaptclipzs"
    about = "projections trained on random sentences of each image's class"
    cite = "Saha et al. 2024, arXiv:2401.02460"
    needs_text = True
    steps: int = 60
    rate: float = 0.02
    batch: int = 256

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """Two rates; no step: the descriptions themselves."""
        return [{"rate": 0.02}, {"rate": 0.06}, {"steps": 0}]

    def fit(self, support: Support) -> Head:
        """Projected images and the mean of each class's projected sentences."""
        sentences = sentences_of(support)
        if not self.steps or not len(support.y):
            means = unit_rows(np.stack([own.mean(0) for own in sentences]))
            return Linear(support.scale * means, np.zeros(support.classes), open=True)
        x, y, rng = tensor(support.x), torch.tensor(support.y), np.random.default_rng(support.seed)

        def draw() -> tuple[Tensor, Tensor, Tensor]:
            """Images [n, E], a text for each [n, E], and their classes [n]."""
            rows = rng.permutation(len(support.y))[: self.batch]
            texts = np.stack([sentences[c][rng.integers(len(sentences[c]))] for c in support.y[rows]])
            return x[rows], tensor(texts), y[rows]

        images, texts = train_projections(x.shape[1], draw, same_class, support.scale, steps=self.steps, rate=self.rate)
        means = unit_rows(np.stack([unit_rows(own @ texts.T).mean(0) for own in sentences]))
        return Projected(support.scale * means, np.zeros(support.classes), images, texts)


@dataclass(frozen=True)
class Gist(Way):
    """GIST (Lewis et al. 2023, arXiv:2307.11315) on fixed vectors: each image is paired with the sentences of its own class that
    are nearest to it; projections are trained by InfoNCE on these pairs; then a linear probe on the projected images.

    Checked with the authors' code: the matching within the class, batches of 20 pairs in which every other pair is wrong, also of
    the same class, and both directions averaged. Its towers are trained for 200 epochs; here a projection behind each of them.
    k: sentences of an image (theirs: 3 to 5). c: of the probe.
    """

    name = "gist"
    about = "projections trained on the nearest sentences of each image, then a linear probe"
    cite = "Lewis et al. 2023, arXiv:2307.11315"
    needs_text = True
    k: int = 4
    steps: int = 100
    rate: float = 0.2
    batch: int = 20
    c: float = 10.0

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """Two rates; no step: the plain probe."""
        return [{"rate": 0.2}, {"rate": 0.06}, {"steps": 0}]

    def fit(self, support: Support) -> Head:
        """The probe of the projected images; classes without pictures are never named."""
        sentences = sentences_of(support)
        images = np.eye(support.x.shape[1], dtype=np.float32)
        if self.steps and len(support.y) > 1:
            pairs = [(i, j) for i, own in enumerate(matched(support, sentences, self.k)) for j in own]
            x, rng = tensor(support.x), np.random.default_rng(support.seed)

            def draw() -> tuple[Tensor, Tensor, Tensor]:
                """Images [n, E], a text for each [n, E], and their classes [n]."""
                chosen = [pairs[p] for p in rng.choice(len(pairs), min(self.batch, len(pairs)), replace=False)]
                texts = np.stack([sentences[support.y[i]][j] for i, j in chosen])
                rows = [i for i, _ in chosen]
                return x[rows], tensor(texts), torch.tensor(support.y[rows])

            one = lambda logits, _: own_caption(logits)  # noqa: E731
            images, _ = train_projections(x.shape[1], draw, one, support.scale, steps=self.steps, rate=self.rate)
        probe = LinearProbe(c=self.c).fit(replace(support, x=unit_rows(support.x @ images.T)))
        assert isinstance(probe, Linear)
        return Projected(probe.weight, probe.bias, images, np.zeros((0, 0), dtype=np.float32))
