"""Fusion: attention between image and text tokens.

A fusion part provides ``text.fused`` and possibly ``image.fused``: the tokens of one side after attention to the other's. If the
two sides are separate computations, only those that an objective needs are computed.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from diptych.core.batch import Tokens
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.fusion.gated import GatedCrossAttention, OpenedCrossAttention
from diptych.models.layers.attention import Activation, Transformer
from diptych.models.layers.masks import attention_bias
from diptych.models.part import Part


class CrossModal(Part):
    """A cross-modal encoder per side: self-attention, then attention to the other modality (MaskVLM, Kwon et al. 2023, §3.1).

    pool: each side's tokens pooled as their mean, or as the first: [BOS] of a text, the ``class`` token of an image (MaskVLM).
    """

    def __init__(
        self,
        build: Build,
        *,
        depth: int | None = None,
        heads: int | None = None,
        pool: Literal["mean", "class"] = "mean",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        super().__init__()
        build.require(
            pool == "mean" or getattr(build.parts.get("vision"), "extra", 0) > 0,
            "pool: class needs a class token of the image; set parts.vision.class_tokens: 1",
        )
        self.pool = pool
        image_width, text_width = build.width_of("vision"), build.width_of("text")
        depth, heads = depth or build.size.depth, heads or build.size.heads
        self.width, self.image_width = text_width, image_width
        activation = build.size.activation
        self.text_side = Transformer(text_width, depth, heads, image_width, activation, dropout)
        self.image_side = Transformer(image_width, depth, heads, text_width, activation, dropout)

    @provides("text.fused", "text.tokens", "image.tokens")
    def text(self, text: Tokens, image: Tokens) -> Tokens:
        """Text tokens [B, T, D] after attention to the image."""
        return self._look(self.text_side, text, image)

    @provides("image.fused", "image.tokens", "text.tokens")
    def image(self, image: Tokens, text: Tokens) -> Tokens:
        """Image tokens [B, N, D] after attention to the text."""
        return self._look(self.image_side, image, text)

    def _look(self, side: Transformer, own: Tokens, other: Tokens) -> Tokens:
        x = own.tokens
        bias = attention_bias(own.mask, x.shape[1], False, x)
        x = side(x, bias, other.tokens, attention_bias(other.mask, x.shape[1], False, x))
        if self.pool == "class":
            return Tokens(x, x[:, 0], own.mask)
        if own.mask is None:
            return Tokens(x, x.mean(1))
        return Tokens(x, (x * own.mask[..., None]).sum(1) / own.mask.sum(1, keepdim=True), own.mask)


class Joint(Part):
    """One encoder over the tokens of both, after its own class token (FLAVA's multimodal encoder, Singh et al. 2022,
    §3.1).
    """

    def __init__(
        self,
        build: Build,
        *,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
        activation: Activation | None = None,
        eps: float = 1e-5,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        super().__init__()
        size = build.size
        self.width = width or size.width
        self.from_image, self.from_text = (nn.Linear(build.width_of(part), self.width) for part in ("vision", "text"))
        self.class_token = nn.Parameter(torch.randn(self.width) * 0.02)
        self.transformer = Transformer(
            self.width, depth or size.depth, heads or size.heads, None, activation or size.activation, dropout, hidden, eps
        )

    @provides(("text.fused", "image.fused"), "text.tokens", "image.tokens")
    def both(self, text: Tokens, image: Tokens) -> tuple[Tokens, Tokens]:
        """Text tokens and image tokens after attention to each other; both pooled as the class token."""
        seen, texts = self.from_image(image.tokens), self.from_text(text.tokens)
        x = torch.cat([self.class_token.to(seen.dtype).expand(len(seen), 1, -1), seen, texts], 1)
        bias = None
        if text.mask is not None:
            real = text.mask.new_ones(len(seen), 1 + seen.shape[1])
            bias = attention_bias(torch.cat([real, text.mask], 1), x.shape[1], False, x)
        x = self.transformer(x, bias)
        n = 1 + seen.shape[1]
        return Tokens(x[:, n:], x[:, 0], text.mask), Tokens(x[:, 1:n], x[:, 0])


FUSION = {
    "cross": CrossModal,
    "joint": Joint,
    "gated": GatedCrossAttention,
    "opened": OpenedCrossAttention,
    "text_cross": "diptych.models.regions.heads:TextCross",
    "med": "diptych.models.fusion.med:MedEncoder",
    "q_former": "diptych.models.fusion.qformer:QFormerEncoder",
    "words": "diptych.models.fusion.words:WordsAndTokens",
    "words_and_codes": "diptych.models.fusion.words:WordsAndCodes",
}
