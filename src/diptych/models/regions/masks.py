"""Masks by mask tokens (UFO, Tang et al. 2025, arXiv:2503.01342): sixteen tokens after the text ask the patches which of their
parts belong to it.

Shapes: B pairs of an image and a text, N = grid² patches, T text tokens, D width, k = side² mask tokens.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.layers.attention import Transformer
from diptych.models.layers.masks import attention_bias
from diptych.models.part import Part


class MaskTokens(Part):
    """A transformer over patches, words and ``side``² mask tokens. The logit of a patch and a mask token is ⟨h_mask, h_patch⟩ / √D;
    the k-th token stands for the k-th of side × side parts of every patch, so a mask is ``side`` times finer than the patches.
    """

    def __init__(
        self,
        build: Build,
        *,
        side: Annotated[int, Field(ge=1)] = 4,
        depth: Annotated[int, Field(ge=1)] = 2,
        heads: int | None = None,
        width: int | None = None,
    ):
        super().__init__()
        vision: Any = build.parts.get("vision")
        seen, read = build.width_of("vision"), build.width_of("text")
        self.extra, self.grid = int(getattr(vision, "extra", 0)), math.isqrt(int(vision.tokens))
        square = self.grid**2 == vision.tokens and getattr(vision, "grid", self.grid) == self.grid
        build.require(square, f"the tower gives {vision.tokens} tokens, which do not form a square of patches")
        self.side, self.width = side, width or seen
        self.from_image, self.from_text = nn.Linear(seen, self.width), nn.Linear(read, self.width)
        self.tokens = nn.Parameter(torch.randn(side**2, self.width) * 0.5)
        self.transformer = Transformer(self.width, depth, heads or build.size.heads, None, build.size.activation)
        self.bias = nn.Parameter(torch.tensor(-2.0))  # most of a picture is not what a text is about

    @provides("text.mask_logits", "text.tokens", "image.tokens")
    def logits(self, text: Tokens, image: Tokens) -> Tensor:
        """[B, side · grid, side · grid], float32"""
        patches, words = self.from_image(image.tokens[:, self.extra :]), self.from_text(text.tokens)
        n, T, k = patches.shape[1], words.shape[1], len(self.tokens)
        x = torch.cat([patches, words, self.tokens.to(words.dtype).expand(len(words), -1, -1)], 1)
        bias = None
        if text.mask is not None:
            real = torch.cat([text.mask.new_ones(len(x), n), text.mask, text.mask.new_ones(len(x), k)], 1)
            bias = attention_bias(real, x.shape[1], False, x)
        x = self.transformer(x, bias)
        logits = x[:, n + T :].float() @ x[:, :n].float().transpose(1, 2) * self.width**-0.5 + self.bias  # [B, k, N]
        parts = logits.view(-1, self.side, self.side, self.grid, self.grid).permute(0, 3, 1, 4, 2)  # row, part, column, part
        result: Tensor = parts.reshape(len(x), self.side * self.grid, self.side * self.grid)
        return result

    @provides("text.heat", "text.mask_logits")
    def heat(self, logits: Tensor) -> Tensor:
        """How likely each part belongs to the text, [B, side · grid, side · grid], 0 … 1."""
        return logits.sigmoid()
