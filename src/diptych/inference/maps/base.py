"""What every model with maps offers, and how maps are made from recorded attentions and gradients."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from diptych.core.capabilities import Image
from diptych.core.errors import DiptychError, counted, nearest
from diptych.inference.maps import formulas
from diptych.inference.maps.geometry import Box, placed, square, view_of
from diptych.inference.maps.watching import Watched, scrambled

CHUNK = 16  # pictures at a time
ONE = threading.RLock()  # what records a model is put into it for a while: one map at a time

# name: (what it is, source)
METHODS = {
    "words": "how well each patch fits the text's words, as the model was trained to compare them (FILIP, SPARC)",
    "mixture": "the patches in the mixture tokens that the text chooses (Llip)",
    "dense": "how well each patch fits the text by itself, through the map into the shared space",
    "cross": "attention from words to patches times its gradient (Grad-CAM of cross-attention, ALBEF)",
    "answer": "attention from each written word to the patches times its gradient",
    "gradient": "attention times gradient through all layers (Chefer et al. 2021)",
    "legrad": "the positive gradient at every attention matrix (after LeGrad)",
    "grad-cam": "activations of the last block times their gradients (Selvaraju et al. 2017)",
    "rollout": "attention through all layers, the same for every text (Abnar & Zuidema 2020)",
    "occlusion": "how much the score falls when a part is covered; for any model that scores",
}


class Maps:
    """The maps of one model. Subclasses give ``grids`` and ``score``.

    methods: names from ``METHODS``, the one that is used unless another is named first. name: of the model. modules: the layers
    that read pictures, for the control with scrambled weights; none: not known.
    """

    name: str = "model"
    methods: tuple[str, ...] = ()
    how: ClassVar[dict[str, str]] = METHODS

    @property
    def modules(self) -> Sequence[Any]:
        """Layers that read pictures."""
        return ()

    def method(self, name: str = "") -> str:
        """The method of a name, or the first. DiptychError if the model does not have it."""
        if name and name not in self.methods:
            raise DiptychError(
                f"model '{self.name}' has no map '{name}'{nearest(name, self.methods)}; it has: {', '.join(self.methods) or 'none'}"
            )
        if not self.methods:
            raise DiptychError(f"model '{self.name}' has no maps")
        return name or self.methods[0]

    def view(self, height: int, width: int) -> Box:
        """The part of a picture that the model reads, in pixels."""
        return view_of(height, width)

    def score(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        """How well text i fits picture i, float32 [n]."""
        raise NotImplementedError

    def grids(self, images: Sequence[Image], texts: Sequence[str], method: str = "") -> list[np.ndarray]:
        """The map of each pair on the grid of patches, float32 [h, w]; higher: more of the text is there."""
        name = self.method(method)
        if len(images) != len(texts):
            raise DiptychError(f"{counted(len(texts), 'text')} for {counted(len(images), 'image')}; give one for each")
        found: list[np.ndarray] = []
        for start in range(0, len(images), CHUNK):
            with ONE:
                found += self._grids(images[start : start + CHUNK], texts[start : start + CHUNK], name)
        return found

    def _grids(self, images: Sequence[Image], texts: Sequence[str], method: str) -> list[np.ndarray]:
        raise NotImplementedError

    def heats(self, images: Sequence[Image], texts: Sequence[str], method: str = "") -> list[np.ndarray]:
        """The map of each pair in pixels of its picture, float32 [height, width]."""
        grids = self.grids(images, texts, method)
        shapes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
        return [placed(grid, h, w, self.view(h, w)) for grid, (h, w) in zip(grids, shapes, strict=True)]

    def random(self, seed: int = 0) -> AbstractContextManager[None]:
        """The model with scrambled weights in ``modules`` until the end of the block; as it is, if there are none."""
        return scrambled(self.modules, seed) if self.modules else nullcontext()


def gradients_of(scores: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of each pair's score at each tensor, whose first dimension counts pairs; zeros where there is none."""
    if not of:
        return []
    found = torch.autograd.grad(scores.sum(), list(of), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g.detach() for x, g in zip(of, found, strict=True)]


def flow_map(seen: Watched, scores: Tensor, method: str, read: str, extra: int) -> Tensor:
    """[B, N]: the map of attention through a tower. read: how its output is read, ``class``, ``mean`` or ``pool`` (by learned
    queries, recorded in ``seen.pools``); extra: tokens before the patches.
    """
    if not seen.own:
        raise DiptychError("attention was not recorded: the tower computes it in a way that is not known here")
    own = [a.detach() for a in seen.own]
    pools = [a.detach() for a in seen.pools]
    if method == "rollout":
        flow = formulas.rollout(own)
        for pool in pools:
            flow = pool.mean(1) @ flow
        return _row(flow, read, extra)
    gradients = gradients_of(scores, [*seen.own, *seen.pools])
    if method == "legrad":
        return formulas.legrad(gradients[: len(own) + 1])[:, extra:]  # a second pooler reads no patches
    flow = formulas.relevance(own, gradients[: len(own)])
    for pool, gradient in zip(pools, gradients[len(own) :], strict=True):
        flow = formulas.weighted(pool, gradient) @ flow
    return _row(flow, read, extra)


def _row(flow: Tensor, read: str, extra: int) -> Tensor:
    """What is read of [B, to, from]: the map over patches."""
    if read == "class":
        return flow[:, 0, extra:]
    return flow[:, extra if read == "mean" else 0 :, extra:].mean(1)


def cam_map(seen: Watched, scores: Tensor, extra: int) -> Tensor:
    """Grad-CAM [B, N] at what the last block gives; at what it reads, if the score does not depend on the patches that it gives."""
    given, before = seen.given, seen.read
    if given is None:
        raise DiptychError("no block was recorded: Grad-CAM needs a tower with blocks or a feature map")
    if given.ndim == 4:
        given = given.flatten(2).transpose(1, 2)
        (gradient,) = gradients_of(scores, [seen.given]) if seen.given is not None else [given]
        return formulas.grad_cam(given.detach(), gradient.flatten(2).transpose(1, 2))
    (gradient,) = gradients_of(scores, [given])
    if before is not None and not bool(gradient[:, extra:].any()):
        given, (gradient,) = before, gradients_of(scores, [before])
    return formulas.grad_cam(given.detach()[:, extra:], gradient[:, extra:])


def arrays(tokens: Tensor) -> list[np.ndarray]:
    """[B, N] → a square [h, w], float32, for each."""
    return [square(row) for row in tokens.detach().float().cpu().numpy()]
