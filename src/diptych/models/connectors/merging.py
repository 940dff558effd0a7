"""Patches of pictures of any shape for a language model: neighbours joined, then an MLP.

Shapes: B pictures, N patches of the largest, m × m neighbours that become one, D width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Images, Tokens
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.connectors.base import Connector, perceptron
from diptych.models.layers.ragged import ImageTokens, Ragged
from diptych.models.vision.native import NativeViT, grids_of


class NativeMerge(Connector):
    """A LayerNorm on each patch, ``side`` × ``side`` neighbours next to each other, an MLP (Qwen2-VL's merger, which CoMP keeps;
    checked with both). Pictures have as many tokens as their size asks for, so the prefix is ``Ragged``.
    """

    def __init__(self, build: Build, *, side: Annotated[int, Field(ge=1)] = 2, eps: float = 1e-6):
        super().__init__(build)
        tower = build.parts["vision"]
        build.require(isinstance(tower, NativeViT), "it reads pictures of any shape; set parts.vision.kind: native")
        assert isinstance(tower, NativeViT)
        self.side, self.patch = side, tower.patch
        self.tokens = self.divided(build, side) ** 2
        inner = side**2 * self.image_width
        self.norm = nn.LayerNorm(self.image_width, eps)
        self.layers = perceptron(inner, self.width, 2, inner)

    @provides("{image}.prefix", "{image}", "{image}.tokens")
    def prefix(self, image: Images, tokens: Tokens) -> ImageTokens:  # type: ignore[override]
        """What the language model reads of pictures: [B, N / side², D], or ``Ragged`` if their numbers differ."""
        grids = grids_of(image, self.patch)
        if any(r % self.side or c % self.side for r, c in grids):
            raise DiptychError(
                f"parts.connector joins {self.side} × {self.side} patches, and a picture's rows or columns do not divide by that; "
                f"set data.fields.image.multiple to {self.side * self.patch}"
            )
        orders = [neighbours(r, c, self.side) + i * tokens.tokens.shape[1] for i, (r, c) in enumerate(grids)]
        source = torch.from_numpy(np.concatenate(orders)).to(tokens.tokens.device)
        x = self.norm(tokens.tokens.flatten(0, 1))[source]  # [n, m², D]
        x = self.layers(x.flatten(1))
        lengths = [len(order) for order in orders]
        longest = max(lengths)
        if len(set(lengths)) == 1:
            return x.view(len(grids), longest, -1)  # type: ignore[no-any-return]
        counts = torch.tensor(lengths, device=x.device)
        mask = torch.arange(longest, device=x.device) >= longest - counts[:, None]
        return Ragged(x.new_zeros(len(grids), longest, x.shape[1]).masked_scatter(mask[..., None], x), mask)

    def count(self, picture: np.ndarray) -> int:
        """The number of tokens of a picture [height, width, 3] at its own size."""
        return int(picture.shape[0] * picture.shape[1] // (self.side * self.patch) ** 2)


@lru_cache(1024)
def neighbours(rows: int, columns: int, side: int) -> np.ndarray:
    """The patches of each square of ``side`` × ``side``, int64 [squares, side²]: squares and patches within them row by row."""
    grid = np.arange(rows * columns).reshape(rows // side, side, columns // side, side)
    return grid.swapaxes(1, 2).reshape(-1, side * side)


def mean_of(prefix: ImageTokens) -> Tensor:
    """The mean of each picture's tokens, [B, D]."""
    if not isinstance(prefix, Ragged):
        return prefix.mean(1)
    return (prefix.tokens * prefix.mask[..., None]).sum(1) / prefix.counts[:, None]
