"""Decoders: predict a caption's next token from what stands before it and from the image.

A decoder has ``forward(text: Tokens, image: Tokens) -> logits [B, T, V]``, where logits at position t speak of token t + 1. One that ``reads_codes``
takes word ids and image codes itself (``models/interleaved.py``).
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.batch import Tokens
from diptych.models.attention import AttentionPool, Transformer, attention_bias
from diptych.models.build import Build
from diptych.models.interleaved import InterleavedDecoder


class MultimodalDecoder(nn.Module):
    """The multimodal half of CoCa's decoder (Yu et al. 2022, §3.2): causal blocks over the unimodal text tower's tokens that also look at the image.

    queries: the image is read through that many pooled tokens (256 in the paper); 0: the decoder looks at all image tokens.
    The output layer is tied to the text tower's word vectors.
    """

    def __init__(
        self,
        build: Build,
        *,
        depth: int | None = None,
        heads: int | None = None,
        queries: int = 0,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        super().__init__()
        self.width, image_width = build.width_of("text"), build.width_of("vision")
        heads = heads or build.size.heads
        text: Any = build.parts["text"]
        build.require(
            bool(getattr(text, "causal", False)),
            "a decoder over text that is not causal would see the word it must predict; set parts.text.causal: true",
        )
        self.pool = AttentionPool(self.width, heads, queries, image_width) if queries else None
        seen = self.width if queries else image_width
        self.transformer = Transformer(self.width, depth or build.size.depth, heads, seen, build.size.activation, dropout)
        self.bias = nn.Parameter(torch.zeros(len(build.tokenizer)))
        self._embedding = [text.embedding]  # in a list: shared, not owned

    def forward(self, text: Tokens, image: Tokens) -> Tensor:
        x, seen = text.tokens, image.tokens
        if self.pool is not None:
            seen = self.pool(seen, image.mask)
        x = self.transformer(
            x, attention_bias(text.mask, x.shape[1], True, x), seen, None if self.pool else attention_bias(image.mask, 1, False, x)
        )
        return F.linear(x * self.width**-0.5, self._embedding[0].weight, self.bias)


DECODER = {"multimodal": MultimodalDecoder, "interleaved": InterleavedDecoder}
