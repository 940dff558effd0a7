"""CoCoOp: context vectors that depend on the image.

Shapes: n vectors, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.models.adapters.prompt import Prompt

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part


class Cocoop(Prompt):
    """A context v_m + h(x), where x is the embedding of an image and h a network E → E / reduction → D with a ReLU (CoCoOp, Zhou et
    al. 2022, arXiv:2203.05557, §3.2): every image has text embeddings of its own. Train and score with the objective
    ``cocoop``; a text that is encoded without an image gets the context v_m alone.

    words, std, tokens: as of ``prompt``; with words, ``tokens`` counts for nothing. Checked with the authors' code: x has unit
    length; four vectors begin as "a photo of a".
    """

    def __init__(
        self,
        part: Part,
        build: Build,
        where: str,
        *,
        tokens: Annotated[int, Field(ge=1)] = 4,
        words: str | None = "a photo of a",
        std: Annotated[float, Field(gt=0)] = 0.02,
        reduction: Annotated[int, Field(ge=1)] = 16,
    ):
        super().__init__(part, build, where, tokens=tokens, words=words, std=std)
        width, inner = build.embed_dim, max(1, build.embed_dim // reduction)
        self.meta = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, part.width))
        self._images: Tensor | None = None

    @contextmanager
    def given(self, images: Tensor) -> Iterator[None]:
        """While texts are encoded for images: row i of the texts for row i of these embeddings [rows, E]."""
        self._images = images
        try:
            yield
        finally:
            self._images = None

    def forward(self, rows: int, dtype: torch.dtype) -> Tensor:
        """The vectors for a batch: [rows, n, D]."""
        if self._images is None:
            return super().forward(rows, dtype)
        shift: Tensor = self.meta(self._images.to(self.vectors.dtype))
        return (self.vectors + shift[:, None]).to(dtype)
