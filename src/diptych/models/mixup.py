"""Mixup for contrast (ZeroVL, Cui et al. 2022, arXiv:2112.09331): each step either the images of a batch are mixed, or its texts.

The loss is ``objectives.contrastive.mixed_info_nce``. Shapes: B batch, D width, E embedding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from diptych.core.batch import Images, Tokens
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.models.space import LinearSpace, unit

if TYPE_CHECKING:
    from diptych.models.vlm import VLM


class Mixer(nn.Module):
    """Provides a batch's images and text embeddings, one of them mixed: λ · own + (1 − λ) · partner's.

    A fair coin and λ from Beta(alpha, alpha) are drawn once a step, from a seed and the number of steps, which are saved with the
    run. Images are mixed as pixels; texts as pooled vectors of the tower, before the map into the shared space. In evaluation
    nothing is mixed.

    A sample's partner is its neighbour, so that both are always in the same micro-batch and process. The authors pair a batch with
    itself in reversed order; samples are in random order, so the pairs are drawn alike.
    """

    drawn: Tensor

    def __init__(self, model: VLM, alpha: float):
        super().__init__()
        space = model.parts["space"] if "space" in model.parts else None
        if not isinstance(space, LinearSpace) or not hasattr(space, "text"):
            raise DiptychError(
                "mixup: texts are mixed before the map into the shared space, which this recipe does not have; use a vision and "
                "a text tower with parts.space.kind: linear, or remove mixup"
            )
        self.alpha = alpha
        self._model, self._space = [model], [space]  # in lists: shared, not owned
        self.register_buffer("drawn", torch.tensor([int(torch.randint(2**31 - 1, ())), 0]))  # seed, steps so far

    def draw(self) -> tuple[float, bool]:
        """λ, and whether it is the images that are mixed, at this step."""
        if not self._model[0].training:
            return 1.0, True
        rng = np.random.default_rng(self.drawn.tolist())
        return float(rng.beta(self.alpha, self.alpha)), bool(rng.random() < 0.5)

    def next(self) -> None:
        """The next step draws anew."""
        self.drawn[1] += 1

    @provides("mixed", "image", kind="image")
    def images(self, image: Images) -> Images:
        """The images, mixed if the coin says so."""
        share, chosen = self.draw()
        return replace(image, pixels=mix(image.floats, share)) if chosen and share < 1 else image

    @provides("text.mixed_embedding", "text.tokens")
    def texts(self, tokens: Tokens) -> Tensor:
        """[B, E], of mixed pooled vectors if the coin says so."""
        share, images = self.draw()
        pooled = tokens.pooled if images else mix(tokens.pooled, share)
        return unit(self._space[0].text(pooled))


def partners(n: int, device: torch.device | None = None) -> Tensor:
    """The row with which each of n rows is mixed, int64 [n]: 1, 0, 3, 2, … DiptychError for an odd n."""
    if n % 2:
        raise DiptychError(
            f"mixup: samples are mixed in pairs, and {n} are encoded at once; make the stage's micro_batch, and its batch_size for "
            "each process, even"
        )
    return torch.arange(n, device=device) ^ 1


def mix(x: Tensor, share: float) -> Tensor:
    """share · x + (1 − share) · the partner's, for x [B, …]."""
    return share * x + (1 - share) * x[partners(len(x), x.device)]
