"""Tip-Adapter: class names, and stored examples near the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diptych.choose.ways.base import Support, Way
from diptych.choose.ways.descent import Descent, tensor
from diptych.inference.heads import Cache, Head, blocks


@dataclass(frozen=True)
class TipAdapter(Way):
    """scale · cos(image, name) + α Σ_s exp(−β (1 − cos(image, s))) over the stored images s of the class (Zhang et al. 2022).

    Checked in gaopengcuhk/Tip-Adapter, main.py. α 1 and β 5.5 are the values that the paper reports for ImageNet (from memory,
    not in the code, where α starts at 1.17 and β at 1 and both are searched up to 3–13 and 7–13). The grid is wider than that,
    since cosines of other models spread otherwise. There the stored vectors are means over 10 crops of each image, here the
    image's own.
    """

    name = "tip"
    about = "class names, and stored training images near the image; nothing is trained"
    cite = "Zhang et al. 2022, arXiv:2207.09519"
    needs_text = True
    alpha: float = 1.0
    beta: float = 5.5

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """Six values of α times five of β."""
        return [{"alpha": a, "beta": b} for a in (1.0, 0.1, 0.3, 3.0, 10.0, 30.0) for b in (5.5, 1.0, 2.5, 12.0, 25.0)]

    def fit(self, support: Support) -> Head:
        """The names and the stored images."""
        return Cache(support.scale * support.texts, self._keys(support), support.onehot, self.alpha, self.beta)

    @classmethod
    def logits_of(cls, settings: Sequence[Mapping[str, Any]], support: Support, x: np.ndarray) -> list[np.ndarray]:
        """By keys that are trained once for all α and β, and cosines that are computed once."""
        ways = [cls(**setting) for setting in settings]
        named = np.asarray(x) @ (support.scale * support.texts).T
        logits = [named.copy() for _ in ways]
        order = np.argsort(support.y, kind="stable")
        known, starts = np.unique(support.y[order], return_index=True)
        for training in dict.fromkeys(way._training() for way in ways):
            alike = [i for i, way in enumerate(ways) if way._training() == training]
            keys = ways[alike[0]]._keys(support)[order]
            for rows in blocks(len(x), len(keys)):
                cosines = x[rows] @ keys.T
                for beta in dict.fromkeys(ways[i].beta for i in alike):
                    votes = np.add.reduceat(np.exp(beta * (cosines - 1)), starts, axis=1)
                    for i in alike:
                        if ways[i].beta == beta:
                            logits[i][rows, known] += ways[i].alpha * votes
        return logits

    def _training(self) -> tuple[float, ...]:
        """All settings on which the keys depend."""
        return ()

    def _keys(self, support: Support) -> np.ndarray:
        """The stored vectors [N, E]."""
        return support.x


@dataclass(frozen=True)
class TipAdapterF(TipAdapter):
    """Tip-Adapter with trained keys: the stored vectors change, their classes and the names do not (Zhang et al. 2022).

    The authors' settings (gaopengcuhk/Tip-Adapter, main.py and configs/imagenet.yaml): trained at α 1.17 and β 1, AdamW with rate
    0.001, ε 1e-4 and PyTorch's weight decay of 0.01, a cosine over all updates, 20 epochs of batches of 256; then α and β are
    searched with the trained keys. Keys are not scaled back to unit length. The authors keep the epoch that is best on the test
    images; here the last one is taken. They train on random crops, here on the stored vectors themselves.
    """

    name = "tip-f"
    about = "Tip-Adapter whose stored images are trained"
    alpha: float = 1.17
    beta: float = 1.0
    train_alpha: float = 1.17
    train_beta: float = 1.0
    lr: float = 0.001
    epochs: int = 20
    batch: int = 256

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """Six values of α times five of β, for keys that are trained once."""
        return [{"alpha": a, "beta": b} for a in (1.17, 0.1, 0.3, 3.0, 10.0, 30.0) for b in (1.0, 2.5, 5.5, 12.0, 25.0)]

    def _training(self) -> tuple[float, ...]:
        return self.train_alpha, self.train_beta, self.lr, self.epochs, self.batch

    def _keys(self, support: Support) -> np.ndarray:
        x, keys = tensor(support.x), tensor(support.x)
        y = torch.as_tensor(support.y, dtype=torch.int64)
        named = support.scale * x @ tensor(support.texts).T

        def logits_of(some: torch.Tensor) -> torch.Tensor:
            """Of some rows [n]: [n, C]."""
            affinity = torch.exp(self.train_beta * (x[some] @ keys.T - 1))
            votes = torch.zeros_like(named[some]).index_add(
                1, y, affinity
            )  # = affinity @ one-hot, without its multiplications by 0
            return named[some] + self.train_alpha * votes

        descent = Descent("adamw", self.lr, self.epochs, self.batch, decay=0.01, eps=1e-4, by_step=True)
        descent.train(logits_of, y, [keys], support.seed)
        trained: np.ndarray = keys.numpy()
        return trained
