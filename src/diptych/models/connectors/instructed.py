"""Queries that read an instruction while they look at the image (InstructBLIP).

Shapes: B images, Q queries, N image tokens, R rows of conversations, T tokens, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens, Turns
from diptych.core.graph import provides
from diptych.data.conversations.turns import DESCRIBE
from diptych.models.build import Build
from diptych.models.fusion.qformer import q_former
from diptych.models.part import Part


class Instructed(Part):
    """A text part of kind ``q_former`` reads an instruction next to its queries, which attend to it and to the image; a linear
    layer leads from the queries to the language model, which reads the instruction too (InstructBLIP, Dai et al. 2023,
    arXiv:2305.06500, §2.3).

    In a conversation the instruction of an image is what stands behind it up to the answer: the first question about it, with the
    template's words. instruction: of images outside of conversations, such as those of captions. longest: tokens of an instruction
    that are read; None: as many as the Q-Former has positions for.
    """

    borrows = True
    __call__: Callable[..., Tensor]  # what ``forward`` gives; torch says Any

    def __init__(self, build: Build, *, instruction: str = DESCRIBE, longest: Annotated[int, Field(ge=1)] | None = None):
        super().__init__()
        text = q_former(build)
        self._text = [text]  # in a list: shared, not owned
        self.tokens, self.width = len(text.queries), build.width_of("lm")
        self.layer = nn.Linear(text.width, self.width)
        room = len(text.positions) - 2
        self.longest = min(longest or room, room)
        self.bos, self.eos, self.pad = (int(getattr(build.tokenizer, name)) for name in ("bos", "eos", "pad"))
        self.plain: list[int] = build.tokenizer.pieces([instruction])[0]

    @provides("image.prefix", "image.tokens")
    def prefix(self, image: Tokens) -> Tensor:
        """What the language model reads of an image without a conversation, [B, Q, D]."""
        return self(image, *self.words([self.plain] * len(image.tokens), image.tokens.device))

    @provides("turns.images.prefix", "turns.images.tokens", "turns")
    def of_turns(self, image: Tokens, turns: Turns) -> Tensor:
        """What the language model reads of the images of conversations, each by its own instruction, [B, Q, D]."""
        return self(image, *self.words(instructions(turns, self.tokens), image.tokens.device))

    def words(self, instructions: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """ids and mask [B, T] of instructions, between [BOS] and [EOS]; the end of a long one is left out."""
        rows = [[self.bos, *one[: self.longest], self.eos] for one in instructions]
        ids = torch.full((len(rows), max(map(len, rows))), self.pad)
        for row, own in zip(ids, rows, strict=True):
            row[: len(own)] = torch.tensor(own)
        lengths = torch.tensor([len(own) for own in rows])
        return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)

    def forward(self, image: Tokens, ids: Tensor, mask: Tensor) -> Tensor:
        """Image tokens [B, N, width of the tower], instructions [B, T] → [B, Q, D]"""
        queries, _ = self._text[0].both(ids, mask, image)
        x: Tensor = self.layer(queries)
        return x


def instructions(turns: Turns, tokens: int) -> list[list[int]]:
    """The words of each image's instruction, in the order of the images: what stands behind its ``tokens`` places up to the first
    learned token, the next image or the end of its conversation.
    """
    result = []
    columns = (turns.ids, turns.mask, turns.learned, turns.positions)
    for ids, mask, learned, places in zip(*(x.tolist() for x in columns), strict=True):
        at = 0
        while at < len(ids):
            if ids[at] >= 0:
                at += 1
                continue
            at = end = at + tokens
            while end < len(ids) and mask[end] and not learned[end] and ids[end] >= 0 and places[end]:
                end += 1
            result.append(ids[at:end])
    return result
