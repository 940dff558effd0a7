"""Ways of adapting a dual encoder to captions, on its vectors: the model itself does not change.

Shapes: N images, M captions, E width; ``owner`` [M] is the image of each caption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from diptych.core.arrays import unit_rows
from diptych.core.registry import resolve
from diptych.inference.mapped import Maps, SideMap


@dataclass(frozen=True)
class Pairs:
    """Captioned images as unit vectors: x [N, E], t [M, E], owner int [M]. groups: of near-duplicates, int [N]."""

    x: np.ndarray
    t: np.ndarray
    owner: np.ndarray
    groups: np.ndarray

    def rows(self, images: np.ndarray) -> Pairs:
        """Some of the images, with their captions."""
        number = np.full(len(self.x), -1)
        number[images] = np.arange(len(images))
        kept = np.flatnonzero(number[self.owner] >= 0)
        return Pairs(self.x[images], self.t[kept], number[self.owner[kept]], self.groups[images])


@dataclass(frozen=True)
class MapWay:
    """Base class: a frozen dataclass whose fields are its settings; ``grid`` as of ``ways.base.Way``."""

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""
    cite: ClassVar[str] = ""
    learns: ClassVar[bool] = True

    @classmethod
    def grid(cls, pairs: Pairs) -> Sequence[Mapping[str, Any]]:
        """Settings to choose among, the default first."""
        return [{}]

    def fit(self, pairs: Pairs) -> Maps:
        """The maps learned from the pairs."""
        raise NotImplementedError


@dataclass(frozen=True)
class AsIs(MapWay):
    """The model as it is."""

    name = "as-is"
    about = "the model as it is"
    learns = False

    def fit(self, pairs: Pairs) -> Maps:
        """The identity on both sides."""
        return Maps(SideMap.identity(pairs.x.shape[1]), SideMap.identity(pairs.t.shape[1]))


@dataclass(frozen=True)
class Centred(MapWay):
    """Each side minus its mean over the training data, which takes away most of the gap between images and texts (Liang et al.
    2022, arXiv:2203.02053, measure the gap as this difference of means). share: of the mean that is taken away.
    """

    name = "centred"
    about = "minus the mean of each side"
    cite = "Liang et al. 2022, arXiv:2203.02053"
    share: float = 1.0

    @classmethod
    def grid(cls, pairs: Pairs) -> Sequence[Mapping[str, Any]]:
        """All of the mean, or half."""
        return [{"share": 1.0}, {"share": 0.5}]

    def fit(self, pairs: Pairs) -> Maps:
        """Centres alone."""
        return Maps(*(_centred(v, self.share) for v in (pairs.x, pairs.t)))


@dataclass(frozen=True)
class Rotated(MapWay):
    """Centred, then the images turned so that they come closest to their captions: the orthogonal Procrustes problem (Schönemann
    1966), of which the first ``share`` of the way is gone.
    """

    name = "rotated"
    about = "images turned towards their captions, in closed form"
    cite = "Schönemann 1966, A generalized solution of the orthogonal Procrustes problem"
    share: float = 0.5

    @classmethod
    def grid(cls, pairs: Pairs) -> Sequence[Mapping[str, Any]]:
        """How far they are turned."""
        return [{"share": s} for s in (0.5, 0.25, 0.75, 1.0)]

    def fit(self, pairs: Pairs) -> Maps:
        """The image map is (1 − share) I + share R with R = argmin ‖X R^T − T‖ over orthogonal R."""
        image, text = (_centred(v, 1.0) for v in (pairs.x, pairs.t))
        u, _, v = np.linalg.svd(text(pairs.t).T.astype(np.float64) @ image(pairs.x)[pairs.owner])
        turn = u @ v  # [E, E]: texts ≈ turn @ images
        change = self.share * (turn - np.eye(len(turn)))
        return Maps(SideMap(image.centre, change.astype(np.float32)), text)


@dataclass(frozen=True)
class Residual(MapWay):
    """Centred, then a linear map on each side, zero at first and added to the vector, trained by the symmetric contrastive loss
    over all training pairs at once; captions of one image are no negatives of each other. Adam without minibatches, so nothing is
    random. When to stop is chosen by cross-validation.
    """

    name = "residual"
    about = "a linear map on each side, zero at first, trained by contrast"
    cite = "the loss: Radford et al. 2021, arXiv:2103.00020"
    epochs: int = 15
    lr: float = 3e-4
    scale: float = 20.0

    @classmethod
    def grid(cls, pairs: Pairs) -> Sequence[Mapping[str, Any]]:
        """When to stop."""
        return [{"epochs": e} for e in (15, 5, 30, 60)]

    def fit(self, pairs: Pairs) -> Maps:
        """Trained for ``epochs`` steps on all pairs."""
        return self.path(pairs, [self.epochs])[0]

    def path(self, pairs: Pairs, epochs: Sequence[int]) -> list[Maps]:
        """The maps after each of these numbers of epochs, of one training."""
        centres = [_centred(v, 1.0).centre for v in (pairs.x, pairs.t)]
        x, t = (torch.from_numpy(v - c).float() for v, c in zip((pairs.x, pairs.t), centres, strict=True))
        owner = torch.from_numpy(pairs.owner)
        changes = [torch.zeros(x.shape[1], x.shape[1], requires_grad=True) for _ in range(2)]
        optimizer = torch.optim.Adam(changes, lr=self.lr)
        kept: dict[int, Maps] = {}
        for epoch in range(1, max(epochs) + 1):
            optimizer.zero_grad()
            contrast(x + x @ changes[0].T, t + t @ changes[1].T, owner, self.scale).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if epoch in epochs:
                sides = [SideMap(c, w.detach().numpy().copy()) for c, w in zip(centres, changes, strict=True)]
                kept[epoch] = Maps(*sides)
        return [kept[epoch] for epoch in epochs]


def contrast(x: Tensor, t: Tensor, owner: Tensor, scale: float) -> Tensor:
    """The mean of two cross-entropies over cosines times ``scale``: of each caption among the images, and of each of an image's
    captions among that caption and all captions of other images. x [N, E], t [M, E], owner [M].
    """
    logits = scale * torch.nn.functional.normalize(t, dim=1) @ torch.nn.functional.normalize(x, dim=1).T  # [M, N]
    to_image = torch.nn.functional.cross_entropy(logits, owner)
    own = owner[:, None] == torch.arange(len(x))[None]  # [M, N]
    others = logits.masked_fill(own, -torch.inf).logsumexp(0)  # of each image, over captions of others [N]
    right = logits[torch.arange(len(t)), owner]  # [M]
    to_text = (torch.logaddexp(right, others[owner]) - right).mean()
    return (to_image + to_text) / 2


def _centred(v: np.ndarray, share: float) -> SideMap:
    width = v.shape[1]
    return SideMap((share * v.mean(0)).astype(np.float32), np.zeros((width, width), dtype=np.float32))


MAP_WAYS: dict[str, type[MapWay]] = {way.name: way for way in (AsIs, Centred, Rotated, Residual)}


def map_way_named(name: str) -> type[MapWay]:
    """The way of a name. DiptychError for an unknown one."""
    cls: type[MapWay] = resolve(name, MAP_WAYS, "way of adapting to captions")
    return cls


def ranks(maps: Maps, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """By cosines among these images and captions: the rank of each caption's image [M], and of each image's best own caption [N];
    the first is 0, and ties count half.
    """
    scores = unit_rows(maps.text(pairs.t)) @ unit_rows(maps.image(pairs.x)).T  # [M, N]
    own = scores[np.arange(len(pairs.t)), pairs.owner]
    to_image = (scores > own[:, None]).sum(1) + ((scores == own[:, None]).sum(1) - 1) / 2
    mine = pairs.owner[:, None] == np.arange(len(pairs.x))[None]
    best = np.where(mine, scores, -np.inf).max(0)
    other = np.where(mine, -np.inf, scores)
    to_text = (other > best[None]).sum(0) + (other == best[None]).sum(0) / 2
    return to_image, to_text
