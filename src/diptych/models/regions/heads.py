"""Heads that say where in an image a text is: ``text.box``, left, top, right, bottom as shares of the square that the model reads.

Shapes: B pairs of an image and a text, T text tokens, N image tokens, D width.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.layers.attention import Activation, Transformer
from diptych.models.layers.masks import attention_bias
from diptych.models.part import Part
from diptych.models.regions.boxes import to_corners


class BoxHead(Part):
    """σ(MLP(x)) of the fused text's pooled vector x, as centre, width and height (X-VLM, Zeng et al. 2022, §3.2, equation 1). The
    MLP has one layer of twice the width, with a norm and GELU.
    """

    def __init__(self, build: Build):
        super().__init__()
        self.width = build.width_of("fusion")
        inner = 2 * self.width
        self.mlp = nn.Sequential(nn.Linear(self.width, inner), nn.LayerNorm(inner), nn.GELU(), nn.Linear(inner, 4))

    @provides("text.box", "text.fused")
    def box(self, fused: Tokens) -> Tensor:
        """[B, 4], float32"""
        return to_corners(torch.sigmoid(self.mlp(fused.pooled).float()))


class TextCross(Part):
    """Text tokens that look at the image, layer by layer: the upper half of ALBEF's and X-VLM's text encoder (Li et al. 2021,
    §3.1). Pooled at the first token. An image may be a region of one, of which ``mask`` admits the patches.
    """

    def __init__(
        self,
        build: Build,
        *,
        depth: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
        activation: Activation | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        super().__init__()
        size = build.size
        self.width = build.width_of("text")
        self.transformer = Transformer(
            self.width,
            depth or size.depth,
            heads or size.heads,
            build.width_of("vision"),
            activation or size.activation,
            dropout,
            hidden,
        )

    @provides("text.fused", "text.tokens", "image.tokens")
    def fused(self, text: Tokens, image: Tokens) -> Tokens:
        """tokens [B, T, D], pooled [B, D]: the first"""
        x = text.tokens
        bias = attention_bias(text.mask, x.shape[1], False, x)
        x = self.transformer(x, bias, image.tokens, attention_bias(image.mask, x.shape[1], False, x))
        return Tokens(x, x[:, 0], text.mask)
