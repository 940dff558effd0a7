"""MaPLe: prompts in both towers, those of the vision tower computed from those of the text tower.

Shapes: n vectors, D the text tower's width, V the vision tower's, K blocks with vectors of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.models.adapters.prompt import Vectors, Words, blocks_of, check_depth, check_place, make_room

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part


class Side:
    """What an adapter of both towers puts into one of them (``layers.insertion.Inserted``). Not a module: its weights are the
    adapter's.
    """

    def __init__(self, adapter: Any, part: Part, count: int, first: int | None = None):
        self.adapter, self.count, self.ahead, self.first = adapter, count, count, first
        self._part = part
        part.prompts = [*part.prompts, self]

    def __call__(self, rows: int, dtype: torch.dtype) -> Tensor:
        """The vectors that join: [rows, n, width]."""
        vectors: Tensor = self.adapter.vectors_of(self._part, self.first or 0)
        return vectors.to(dtype).expand(rows, -1, -1)

    def before(self, block: int, vectors: Tensor) -> Tensor:
        """The vectors [B, n, width] that a later block reads."""
        changed: Tensor = self.adapter.changed(self._part, block, vectors)
        return changed

    def used(self, ids: Tensor) -> Tensor | None:
        """All texts get them."""
        return None


class OfBoth(Vectors):
    """Base of adapters of the text part that change the vision tower too. ``vectors_of`` gives a tower's vectors [n, width] of a
    block, ``changed`` those that a later block reads.
    """

    def __init__(self, part: Part, build: Build, where: str):
        super().__init__(part, build, where)
        vision: Any = build.parts.get("vision")
        if vision is None or part is not build.parts.get("text"):
            raise DiptychError(
                f"{where}: it belongs to both towers; set it once, for parts.text, in a recipe that has parts.vision"
            )
        for tower in (part, vision):
            check_place(tower, build, where)
        self._vision = [vision]  # in a list: the part is not a submodule of the adapter

    @property
    def vision(self) -> Any:
        """The vision tower."""
        return self._vision[0]

    @property
    def spans(self) -> tuple[Part, ...]:
        """The text tower and the vision tower."""
        return (self.part, self.vision)

    def vectors_of(self, part: Part, block: int) -> Tensor:
        """The vectors that a block of a tower reads, [n, width]."""
        raise NotImplementedError

    def changed(self, part: Part, block: int, vectors: Tensor) -> Tensor:
        """The vectors [B, n, width] before a later block, from those that left the block before it."""
        raise NotImplementedError


class Maple(OfBoth):
    """``tokens`` learned vectors before each of the first ``depth`` blocks of the text tower, and as many in the vision tower,
    which are a linear map of them, one for each block: F_k(P_k) = W_k P_k + b_k (MaPLe, Khattak et al. 2023, arXiv:2210.03117,
    §3.2). Gradients of the vision tower reach the text's vectors through the maps. Each block's vectors replace those that the
    block before it left; later blocks read what the last ones left.

    Set for parts.text. words: the first vectors begin as the first ``tokens`` of these words; null: at random, as all others, with
    ``std``. depth: None: three quarters of the blocks (9 of 12).

    Checked with the authors' code, also by its numbers: the text's first vectors have positions; the vision tower's pass its norm
    before the first block, if it has one (CLIP); the maps of later blocks begin as copies of one. Their texts are "a photo of a
    NAME." with the first two words replaced, so ``of a {}.`` is the template that belongs to two vectors from "a photo of a".
    """

    def __init__(
        self,
        part: Part,
        build: Build,
        where: str,
        *,
        tokens: Annotated[int, Field(ge=1)] = 2,
        words: str | None = "a photo of a",
        depth: Annotated[int, Field(ge=1)] | None = None,
        std: Annotated[float, Field(gt=0)] = 0.02,
    ):
        super().__init__(part, build, where)
        vision = self.vision
        depth = depth or max(1, round(0.75 * min(blocks_of(part), blocks_of(vision))))
        check_depth(depth, (part, vision), where)
        self.words = None if words is None else Words(words, part, build, where, tokens)
        vectors = torch.randn(depth, tokens, part.width) * std
        if self.words is not None:
            vectors[0] = self.words.read()
        self.vectors = nn.Parameter(vectors)  # [K, n, D]
        first, later = nn.Linear(part.width, vision.width), nn.Linear(part.width, vision.width)
        self.maps = nn.ModuleList(nn.Linear(part.width, vision.width) for _ in range(depth))
        for i, layer in enumerate(self.maps):
            layer.load_state_dict((later if i else first).state_dict())
        self.count = tokens
        Side(self, vision, tokens), Side(self, part, tokens)
        make_room(tokens, build, where)

    def restart(self) -> None:
        """The vectors that begin as words are those of the tower's words now."""
        if self.words is not None:
            with torch.no_grad():
                self.vectors[0] = self.words.read()

    def vectors_of(self, part: Part, block: int) -> Tensor:
        """The vectors that a block of a tower reads, [n, width]."""
        if part is self.part:
            return self.vectors[block]
        mapped: Tensor = self.maps[block](self.vectors[block])
        if block == 0 and self.vision.norm_sum:
            mapped = self.vision.norm(mapped)
        return mapped

    def changed(self, part: Part, block: int, vectors: Tensor) -> Tensor:
        """New vectors before each of the first ``depth`` blocks."""
        if block >= len(self.vectors):
            return vectors
        return self.vectors_of(part, block).to(vectors.dtype).expand(vectors.shape[0], -1, -1)
