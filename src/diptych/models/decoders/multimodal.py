"""Decoders: predict a caption's next token from the tokens before it and from the image.

A decoder provides ``text.logits``: row t predicts token t + 1. It generates from the encoding that ``begins_with`` names, by
``start(encoding) -> (logits [B, V], state)`` and ``step(ids [B], state)``, which give the same logits (``inference/generate.py``).
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.decoders.interleaved import InterleavedDecoder
from diptych.models.layers.attention import AttentionPool, Transformer
from diptych.models.layers.cache import DecoderState
from diptych.models.layers.masks import attention_bias, padding_bias
from diptych.models.part import Part


class MultimodalDecoder(Part):
    """The multimodal half of CoCa's decoder (Yu et al. 2022, §3.2): causal blocks over the unimodal text tower's tokens that also
    look at the image.

    queries: the image is read through this many pooled tokens (256 in the paper); 0: the decoder looks at all image tokens.
    The output layer is tied to the text tower's word vectors.
    """

    borrows = True
    begins_with = "image.tokens"
    can = frozenset({"generate", "decoding", "loglikelihood"})
    limited = True

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
        self._text = [text]  # in a list: shared, not owned
        self.bos = int(build.tokenizer.bos)

    def attach(self, build: Build) -> None:
        """DiptychError if there are prompts before the words, which ``step`` would not read."""
        build.require(not self._text[0].prompts, "it writes without prompts; adapt parts.text by kind: lora, or remove the decoder")

    @provides("text.logits", "text.tokens", "image.tokens")
    def logits(self, text: Tokens, image: Tokens) -> Tensor:
        """[B, T − 1, V]: row t predicts token t + 1."""
        logits: Tensor = self(text, image)[:, :-1]
        return logits

    def forward(self, text: Tokens, image: Tokens) -> Tensor:
        """[B, T, V]: row t predicts token t + 1"""
        seen, seen_bias = self._look(image)
        x = text.tokens
        return self._logits(self.transformer(x, attention_bias(text.mask, x.shape[1], True, x), seen, seen_bias))

    def start(self, image: Tokens) -> tuple[Tensor, DecoderState]:
        """Logits [B, V] over a caption's first token, and the state after [BOS]."""
        seen, seen_bias = self._look(image)
        state = DecoderState(self.transformer.start(seen), seen_bias)
        return self.step(torch.full((len(seen),), self.bos, device=seen.device), state)

    def step(self, ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Logits [B, V] over the token after ``ids`` [B]."""
        x, text = self._text[0].step(ids[:, None], state.text)
        x, both = self.transformer.step(x, state.cache, context_bias=state.bias)
        return self._logits(x[:, -1]), DecoderState(both, state.bias, text)

    def _look(self, image: Tokens) -> tuple[Tensor, Tensor | None]:
        """The tokens that cross-attention sees, and their bias."""
        if self.pool is not None:
            return self.pool(image.tokens, image.mask), None
        return image.tokens, padding_bias(image.mask)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(x * self.width**-0.5, self._text[0].embedding.weight, self.bias)


DECODER = {
    "multimodal": MultimodalDecoder,
    "interleaved": InterleavedDecoder,
    "med": "diptych.models.fusion.med:MedDecoder",
    "q_former": "diptych.models.fusion.qformer:QFormerDecoder",
    "kosmos": "diptych.models.decoders.kosmos:KosmosDecoder",
    "coca": "diptych.models.decoders.coca:CocaDecoder",
}
