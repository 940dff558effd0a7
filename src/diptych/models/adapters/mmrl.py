"""MMRL and MMRL++: representation tokens that both towers share, in the upper blocks.

Shapes: n tokens, R their width, B images, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.models.adapters.maple import OfBoth, Side
from diptych.models.adapters.prompt import blocks_of
from diptych.models.space import unit

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part


class Aligner(nn.Module):
    """MMRL++'s map of a tower (arXiv:2505.10088, the shared residual aligner): W + A_i B_i for block i, with a bias of its
    own; W is shared, B begins at 0.
    """

    def __init__(self, width: int, out: int, blocks: int, rank: int):
        super().__init__()
        start = nn.Linear(width, out)
        self.weight = start.weight
        self.A, self.B = nn.Parameter(torch.empty(blocks, out, rank)), nn.Parameter(torch.zeros(blocks, rank, width))
        for a in self.A:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self.bias = nn.Parameter(start.bias.detach().repeat(blocks, 1))

    def forward(self, x: Tensor, block: int) -> Tensor:
        """[n, R] → [n, width]"""
        return nn.functional.linear(x, self.weight + self.A[block] @ self.B[block], self.bias[block])


class Maps(nn.ModuleList):
    """MMRL's maps of a tower: one for each block, all of which begin as the same."""

    def __init__(self, width: int, out: int, blocks: int):
        super().__init__(nn.Linear(width, out) for _ in range(blocks))
        for layer in self:
            layer.load_state_dict(self[0].state_dict())

    def forward(self, x: Tensor, block: int) -> Tensor:
        """[n, R] → [n, width]"""
        mapped: Tensor = self[block](x)
        return mapped


class Mmrl(OfBoth):
    """``tokens`` learned vectors of width ``dim``, which a linear map for each tower and block makes into tokens behind [BOS] and
    behind the class token, new ones before each of the blocks ``first`` to ``last`` (counted from 1; Guo & Gu 2025, MMRL,
    arXiv:2503.08497). The mean of the image's, mapped by a projection of their own, is a further feature of the image,
    ``image.representation``; the class feature keeps the frozen projection. Train it with the objective ``mmrl``.

    Set for parts.text. first, last: None: from half of the blocks (6 of 12) to the last that both towers have.

    Checked with the authors' code, also by its numbers: the tokens get no positions; all maps of a tower begin as copies of one;
    the projection of the representation begins at random, width^−½ · N(0, 1), not as a copy of the class feature's.
    """

    def __init__(
        self,
        part: Part,
        build: Build,
        where: str,
        *,
        tokens: Annotated[int, Field(ge=1)] = 5,
        dim: Annotated[int, Field(ge=1)] = 512,
        first: Annotated[int, Field(ge=1)] | None = None,
        last: Annotated[int, Field(ge=1)] | None = None,
        std: Annotated[float, Field(gt=0)] = 0.02,
    ):
        super().__init__(part, build, where)
        vision = self.vision
        if vision.prompts or part.prompts:
            raise DiptychError(f"{where}: it must be the only adapter with prompts on both towers; remove the others")
        least = min(blocks_of(part), blocks_of(vision))
        first, last = first or max(1, least // 2), last or least
        if not first <= last <= least:
            raise DiptychError(f"{where}: first: {first}, last: {last}, of {least} blocks; expected first ≤ last ≤ {least}")
        self.from_block, self.blocks = first - 1, last - first + 1
        self.vectors = nn.Parameter(torch.randn(tokens, dim) * std)
        self.to_vision = self.maps(dim, vision.width)
        self.to_text = self.maps(dim, part.width)
        self.count = tokens
        Side(self, vision, tokens, first - 1), Side(self, part, tokens, first - 1)

    def maps(self, width: int, out: int) -> nn.Module:
        """From the shared vectors to a tower's tokens, for each block."""
        return Maps(width, out, self.blocks)

    def attach(self, build: Build) -> None:
        """Adds the projection of the representation, as wide as the shared space."""
        space: Any = build.parts.get("space")
        layer = getattr(space, "image", None)
        if not isinstance(layer, nn.Linear | nn.Identity):
            raise DiptychError(f"{self.where}: parts.space has no linear map of images; set parts.space.kind: linear")
        if any(len(tower.prompts) > 1 for tower in (self.part, self.vision)):
            raise DiptychError(f"{self.where}: it must be the only adapter with prompts on both towers; remove the others")
        self._space = [space]
        self.add_projection(self.vision.width, int(space.width))

    def add_projection(self, width: int, out: int) -> None:
        """The projection's weights."""
        self.projection = nn.Parameter(torch.randn(out, width) * width**-0.5)

    def projected(self, x: Tensor) -> Tensor:
        """[B, width] → [B, E]"""
        return nn.functional.linear(x, self.projection)

    @provides("image.representation", "image.tokens")
    def representation(self, tokens: Tokens) -> Tensor:
        """[B, E], unit length: of the mean of the representation tokens after the last block and norm."""
        assert tokens.learned is not None
        transformer = self.vision.transformer
        x = transformer.norm(tokens.learned) if transformer.bare else tokens.learned
        return unit(self.projected(x.mean(1)))

    @contextmanager
    def without(self) -> Iterator[None]:
        """Both towers as they are without it."""
        towers = (self.part, self.vision)
        kept = [tower.prompts for tower in towers]
        try:
            for tower in towers:
                tower.prompts = ()
            yield
        finally:
            for tower, prompts in zip(towers, kept, strict=True):
                tower.prompts = prompts

    def vectors_of(self, part: Part, block: int) -> Tensor:
        """The tokens that a block of a tower reads, [n, width]."""
        maps = self.to_text if part is self.part else self.to_vision
        mapped: Tensor = maps(self.vectors, block - self.from_block)
        return mapped

    def changed(self, part: Part, block: int, vectors: Tensor) -> Tensor:
        """New tokens before each of the blocks; later blocks read what the last one left."""
        if not 0 <= block - self.from_block < self.blocks:
            return vectors
        return self.vectors_of(part, block).to(vectors.dtype).expand(vectors.shape[0], -1, -1)


class MmrlPlus(Mmrl):
    """MMRL++ (Guo & Gu 2025, arXiv:2505.10088): fewer weights, and tokens that are handed on.

    Each tower's maps are one matrix with a correction of rank ``rank`` for each block. Before a later block the tokens are
    ``beta`` times the new ones plus 1 − beta times those that the block before it left. The projection of the representation is
    the class feature's plus a correction of rank ``projection_rank``, from 0. Other options as of ``mmrl``. Checked with the
    authors' code, also by its numbers: each block's map has a bias of its own.
    """

    def __init__(
        self,
        part: Part,
        build: Build,
        where: str,
        *,
        tokens: Annotated[int, Field(ge=1)] = 5,
        dim: Annotated[int, Field(ge=1)] = 512,
        first: Annotated[int, Field(ge=1)] | None = None,
        last: Annotated[int, Field(ge=1)] | None = None,
        std: Annotated[float, Field(gt=0)] = 0.02,
        rank: Annotated[int, Field(ge=1)] = 4,
        projection_rank: Annotated[int, Field(ge=1)] = 64,
        beta: Annotated[float, Field(ge=0, le=1)] = 0.9,
    ):
        self.rank, self.projection_rank, self.beta = rank, projection_rank, beta
        super().__init__(part, build, where, tokens=tokens, dim=dim, first=first, last=last, std=std)

    def maps(self, width: int, out: int) -> nn.Module:
        """From the shared vectors to a tower's tokens, for each block."""
        return Aligner(width, out, self.blocks, self.rank)

    def add_projection(self, width: int, out: int) -> None:
        """The correction: B A, with B from 0."""
        self.A, self.B = (
            nn.Parameter(torch.empty(width, self.projection_rank)),
            nn.Parameter(torch.zeros(self.projection_rank, out)),
        )
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def projected(self, x: Tensor) -> Tensor:
        """[B, width] → [B, E]"""
        mapped: Tensor = self._space[0].image(x) + x @ self.A @ self.B
        return mapped

    def changed(self, part: Part, block: int, vectors: Tensor) -> Tensor:
        """A mixture of new tokens and those that the block before left."""
        new = super().changed(part, block, vectors)
        return vectors if new is vectors else self.beta * new + (1 - self.beta) * vectors
