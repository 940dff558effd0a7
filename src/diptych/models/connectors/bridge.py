"""Learned words of a fused model as the way into a language model (Muffin)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.fusion.med import med_text
from diptych.models.layers.masks import padding_bias
from diptych.models.part import Part


class Bridge(Part):
    """``tokens`` learned vectors in place of words go through the text transformer of a fused model, whose every block looks at the
    image; a linear layer leads to the language model (Muffin, Yu et al. 2023, arXiv:2310.00653, §3: a pretrained fused model is
    itself the bridge, where BLIP-2 puts a module that no model had before).

    The text part is of kind ``med``, trained in an earlier stage or by another run.
    """

    borrows = True

    def __init__(self, build: Build, *, tokens: Annotated[int, Field(ge=1)] = 64):
        super().__init__()
        text = med_text(build)
        self._text = [text]  # in a list: shared, not owned
        self.tokens, self.width = tokens, build.width_of("lm")
        self.queries = nn.Parameter(torch.randn(tokens, text.width))  # as large as word vectors, which the same norm follows
        self.layer = nn.Linear(text.width, self.width)

    @provides("{image}.prefix", "{image}.tokens")
    def prefix(self, image: Tokens) -> Tensor:
        """What the language model reads of an image, [B, tokens, D]."""
        prefix: Tensor = self(image)
        return prefix

    def forward(self, image: Tokens) -> Tensor:
        """Image tokens [B, N, width of the tower] → [B, tokens, D of the language model]"""
        text = self._text[0]
        x = text.norm(self.queries).expand(len(image.tokens), -1, -1)
        prefix: Tensor = self.layer(text.transformer(x, None, image.tokens, padding_bias(image.mask)))
        return prefix
