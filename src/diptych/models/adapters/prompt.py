"""Learned vectors among a tower's tokens: CoOp's context words, VPT's prompts.

Shapes: n vectors, D width, B texts or images, T tokens, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.models.adapters.base import Adapter

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part

Position = Literal["end", "middle", "front"]


class Vectors(Adapter):
    """Base of adapters that put learned vectors among a tower's tokens (``layers.insertion.Inserted``).

    count: how many. first: the block before which they join; None: with the tower's own tokens. ahead: how many stand before a
    text's words.
    """

    count: int
    first: int | None = None
    ahead: int

    def before(self, block: int, vectors: Tensor) -> Tensor:
        """The vectors [B, n, D] that a later block reads, from those that left the block before it: the same."""
        return vectors

    def used(self, ids: Tensor) -> Tensor | None:
        """Which of the texts [B, T] get the vectors, bool [B]; None: all."""
        return None

    def merge(self) -> None:
        """DiptychError: learned vectors cannot be merged into the tower's weights."""
        raise DiptychError(
            f"{self.where}: prompts cannot be merged into a part, since no class of another library supports them; use the run "
            "itself (`diptych evaluate RUN`), or adapt by kind: lora, which can be merged"
        )


class Words:
    """Word vectors that learned ones begin as. most: no more than this many of the words' tokens; None: all of them."""

    def __init__(self, words: str, part: Part, build: Build, where: str, most: int | None = None):
        embedding = getattr(part, "embedding", None)
        if embedding is None:
            raise DiptychError(f"{where}.words: a vision tower has no words; set tokens")
        ids, mask = build.tokenizer.encode_batch([words])
        self.ids = torch.from_numpy(ids[0])[1 : int(mask.sum()) - 1][:most]
        if most is not None and len(self.ids) < most:
            raise DiptychError(f"{where}.words: '{words}' has {len(self.ids)} tokens, fewer than tokens: {most}")
        self._part = [part]

    def read(self) -> Tensor:
        """Their vectors [n, D], as the tower has them now."""
        table: Any = self._part[0].embedding
        vectors: Tensor = table.weight.detach()[self.ids.to(table.weight.device)].clone()
        return vectors


def check_place(part: Part, build: Build, where: str) -> None:
    """DiptychError if a part has no place for learned vectors."""
    if not part.takes_prompts:
        name = next(name for name, other in build.parts.items() if other is part)
        raise DiptychError(
            f"{where}: parts.{name} ({type(part).__name__}) has no place for prompt tokens; transformer towers have "
            "(vision: vit, clip, siglip; text: transformer, clip, bert)"
        )


def check_depth(depth: int, parts: tuple[Part, ...], where: str) -> None:
    """DiptychError if a tower has fewer blocks than get vectors of their own."""
    least = min(blocks_of(part) for part in parts)
    if depth > least:
        raise DiptychError(f"{where}.depth: {depth} of {least} blocks; set depth to {least} or less")


def blocks_of(part: Any) -> int:
    """The number of a tower's blocks."""
    return len(part.transformer.blocks)


def make_room(count: int, build: Build, where: str) -> None:
    """Shorten the texts by the positions that learned vectors take. DiptychError if too few are left for words."""
    room = build.tokenizer.max_length - count
    if room < 4:
        raise DiptychError(f"{where}: {count} prompt tokens leave no room for words; raise data.tokenizer.max_length")
    build.tokenizer.max_length = room


class Prompt(Vectors):
    """``tokens`` learned vectors [n, D]: in a text tower between [BOS] and the words, with their own positions (CoOp, Zhou et al.
    2022, §3.2: a context that all classes share); in a vision tower behind the class tokens, before the first block (VPT-shallow,
    Jia et al. 2022, §3.2). They are removed after the last block, so the output has the same shape as without them.

    words: the vectors begin as those of these words, in a text tower; their number is then that of the words' tokens. std:
    otherwise, of the random initial values. depth: how many blocks, from the first on, read vectors of their own, which replace
    those that the block before it left; ``all``: every block (VPT-deep, ibid.). position: where a text's words stand: ``end``,
    behind the vectors; ``middle``, between their halves; ``front``, before them (CoOp, §3.2).

    Checked with the authors' code: the first half of an odd number is the smaller one; VPT's begin from a uniform distribution of
    about the same size as 0.03 (std), and CoOp's front and middle put a full stop behind the vectors, here it stays with the words.
    """

    def __init__(
        self,
        part: Part,
        build: Build,
        where: str,
        *,
        tokens: Annotated[int, Field(ge=1)] = 16,
        words: str | None = None,
        std: Annotated[float, Field(gt=0)] = 0.02,
        depth: Annotated[int, Field(ge=1)] | Literal["all"] = 1,
        position: Position = "end",
    ):
        super().__init__(part, build, where)
        check_place(part, build, where)
        start = torch.randn(tokens, part.width) * std
        self.words = None if words is None else Words(words, part, build, where)
        self.vectors = nn.Parameter(start if self.words is None else self.words.read())
        self.count = len(self.vectors)
        depth = blocks_of(part) if depth == "all" else depth
        check_depth(depth, (part,), where)
        deeper = torch.randn(depth - 1, self.count, part.width) * std if depth > 1 else None
        self.deeper = None if deeper is None else nn.Parameter(deeper)  # [depth − 1, n, D]
        reads = hasattr(part, "embedding")
        if position != "end" and not reads:
            raise DiptychError(f"{where}.position: a vision tower has no words; remove it")
        self.ahead = {"end": self.count, "middle": self.count // 2, "front": 0}[position]
        part.prompts = [*part.prompts, self]
        if reads:
            make_room(self.count, build, where)

    def restart(self) -> None:
        """The vectors that begin as words are those of the tower's words now."""
        if self.words is not None:
            with torch.no_grad():
                self.vectors.copy_(self.words.read())

    def forward(self, rows: int, dtype: torch.dtype) -> Tensor:
        """The vectors for a batch: [rows, n, D]."""
        return self.vectors.to(dtype).expand(rows, -1, -1)

    def before(self, block: int, vectors: Tensor) -> Tensor:
        """New vectors before each of the first ``depth`` blocks; later ones read what the block before them left."""
        if self.deeper is None or block > len(self.deeper):
            return vectors
        return self.deeper[block - 1].to(vectors.dtype).expand(vectors.shape[0], -1, -1)
