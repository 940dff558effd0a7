"""Fusion: image and text tokens look at each other.

A fusion part has ``width``, ``text(text, image) -> Tokens`` and ``image(image, text) -> Tokens``: the first argument's
tokens after they have looked at the second's. The two sides are separate, so that an objective pays only for the one it asks for.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from diptych.batch import Tokens
from diptych.models.attention import Transformer, attention_bias
from diptych.models.build import Build


class CrossModal(nn.Module):
    """A cross-modal encoder a side: self-attention, then attention to the other modality (MaskVLM, Kwon et al. 2023, §3.1)."""

    def __init__(
        self,
        build: Build,
        *,
        depth: int | None = None,
        heads: int | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        super().__init__()
        image_width, text_width = build.width_of("vision"), build.width_of("text")
        depth, heads = depth or build.size.depth, heads or build.size.heads
        self.width = text_width
        activation = build.size.activation
        self.text_side = Transformer(text_width, depth, heads, image_width, activation, dropout)
        self.image_side = Transformer(image_width, depth, heads, text_width, activation, dropout)

    def text(self, text: Tokens, image: Tokens) -> Tokens:
        return self._look(self.text_side, text, image)

    def image(self, image: Tokens, text: Tokens) -> Tokens:
        return self._look(self.image_side, image, text)

    @staticmethod
    def _look(side: Transformer, own: Tokens, other: Tokens) -> Tokens:
        x = own.tokens
        bias = attention_bias(own.mask, x.shape[1], False, x)
        x = side(x, bias, other.tokens, attention_bias(other.mask, x.shape[1], False, x))
        if own.mask is None:
            return Tokens(x, x.mean(1))
        return Tokens(x, (x * own.mask[..., None]).sum(1) / own.mask.sum(1, keepdim=True), own.mask)


FUSION = {"cross": CrossModal}
