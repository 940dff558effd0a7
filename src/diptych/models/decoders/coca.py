"""CoCa in the geometry of open_clip's weights (Yu et al. 2022, arXiv:2205.01917; open_clip 3.3, ``coca_ViT-B-32`` and its like).

It has the same components as the recipe's own parts, in other places: a class token after the text, one pooler (its first query is
the image's embedding, the decoder looks at the others), and an MLP after each of the decoder's two attentions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Unpack

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.data.text import PAD
from diptych.models.build import Build
from diptych.models.decoders.multimodal import MultimodalDecoder
from diptych.models.layers.attention import (
    ACTIVATIONS,
    Activation,
    Attention,
    AttentionPool,
    Block,
    Sizes,
    Transformer,
)
from diptych.models.layers.cache import Pair
from diptych.models.layers.masks import attention_bias
from diptych.models.part import Part
from diptych.models.text.towers import TextTransformer, sinusoids
from diptych.models.vision.towers import ClipViT


class CocaViT(ClipViT):
    """CLIP's tower, read by ``queries`` learned ones: pooled is the output of the first, tokens are those of the others, [B,
    queries − 1, pooled_width].

    pooled_width: of both; default: the size's width. pool_heads: of the pooler; default: as many as the tower's.
    """

    def __init__(
        self,
        build: Build,
        *,
        patch: int | None = None,
        activation: Activation = "gelu",
        pooled_width: int | None = None,
        queries: Annotated[int, Field(ge=2)] = 256,
        pool_heads: int | None = None,
        **sizes: Unpack[Sizes],
    ):
        super().__init__(build, patch=patch, activation=activation, **sizes)
        seen, self.width = self.width, pooled_width or build.size.width
        self.transformer.norm = nn.Identity()  # the pooler has its own
        self.read = AttentionPool(
            self.width, pool_heads or sizes.get("heads") or build.size.heads, queries, seen, norm_queries=True
        )

    def forward(self, pixels: Tensor, keep: Tensor | None = None, hidden: Tensor | None = None) -> Tokens:
        """tokens [B, extra + N or K, D]: class tokens first."""
        x = self.read(super().forward(pixels, keep, hidden).tokens)
        return Tokens(x[:, 1:], x[:, 0])


class CocaText(TextTransformer):
    """A causal tower with a learned token after the text, which reads all of it and is pooled; words are returned before the last
    norm.

    The token is after the padding, which fills the text up to the greatest length. As in open_clip it sees the first position of
    the padding, and itself only if there is no padding: open_clip's padding mask is off by one.
    """

    class_token: nn.Parameter
    takes_prompts = False  # its positions are fixed, up to that of the class token

    def __init__(
        self,
        build: Build,
        *,
        activation: Activation = "gelu",
        **sizes: Unpack[Sizes],
    ):
        super().__init__(build, activation=activation, causal=True, bare=True, **sizes)
        self.positions = nn.Parameter(sinusoids(build.tokenizer.max_length + 1, self.width) * 0.7)
        self.class_token = nn.Parameter(torch.randn(self.width) * 0.02)

    def forward(self, ids: Tensor, mask: Tensor, captions: Sequence[str] = ()) -> Tokens:
        """ids, mask [B, T] → tokens [B, T, D], pooled [B, D]: the class token's"""
        (B, T), L = ids.shape, len(self.positions)
        words = self.embedding(F.pad(ids, (0, L - 1 - T), value=PAD))
        x = torch.cat([words, self.class_token.to(words.dtype).expand(B, 1, -1)], 1) + self.positions
        # The mask of each position is that of the one before it.
        seen = torch.cat([mask.new_ones(B, 1), F.pad(mask, (0, L - 1 - T))], 1)
        x = self.transformer(x, attention_bias(seen, L, True, x))
        return Tokens(x[:, :T], self.transformer.norm(x[:, -1]), mask)


class NormedAttention(Attention):
    """Attention to a context that is normalised first."""

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__(width, heads, context_width)
        self.norm = nn.LayerNorm(context_width)

    def read(self, context: Tensor) -> Pair:
        """Keys and values, [B, H, S, d] each."""
        return super().read(self.norm(context))


class CocaBlock(Block):
    """A self-attention block, then attention to the image and a second MLP."""

    def __init__(
        self,
        width: int,
        heads: int,
        context_width: int | None = None,
        activation: str = "gelu",
        dropout: float = 0.0,
        hidden: int | None = None,
        eps: float = 1e-5,
        post_norm: bool = False,
    ):
        assert context_width and not post_norm
        super().__init__(width, heads, context_width, activation, dropout, hidden, eps)
        hidden = hidden or 4 * width
        self.cross = NormedAttention(width, heads, context_width)
        self.norm_mlp = nn.LayerNorm(width, eps)
        self.mlp_cross = nn.Sequential(nn.Linear(width, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, width))

    def forward(
        self, x: Tensor, bias: Tensor | None = None, context: Tensor | None = None, context_bias: Tensor | None = None
    ) -> Tensor:
        """x [B, L, D], context [B, S, context width] → [B, L, D]"""
        assert context is not None and self.cross is not None
        return self._look(super().forward(x, bias), self.cross.read(context), context_bias)

    def step(
        self, x: Tensor, own: Pair | None, seen: Pair | None, bias: Tensor | None, seen_bias: Tensor | None
    ) -> tuple[Tensor, Pair]:
        """``forward`` of the next tokens [B, L, D] after those in ``own``, and the keys and values including them."""
        x, own = super().step(x, own, None, bias, None)
        assert seen is not None
        return self._look(x, seen, seen_bias), own

    def _look(self, x: Tensor, seen: Pair, bias: Tensor | None) -> Tensor:
        assert self.cross is not None and self.norm_cross is not None
        x = x + self.dropout(self.cross.look(self.norm_cross(x), *seen, bias))
        x = x + self.dropout(self.mlp_cross(self.norm_mlp(x)))
        return x


class CocaTransformer(Transformer):
    """A stack of ``CocaBlock``."""

    block = CocaBlock


class CocaDecoder(MultimodalDecoder):
    """The multimodal half over a text tower of kind ``coca``; the output layer is a separate matrix."""

    borrows = False

    def __init__(
        self,
        build: Build,
        *,
        depth: int | None = None,
        heads: int | None = None,
        activation: Activation = "gelu",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        Part.__init__(self)
        self.width, image_width = build.width_of("text"), build.width_of("vision")
        text: Any = build.parts["text"]
        build.require(isinstance(text, CocaText), "needs a text tower of its kind; set parts.text.kind: coca")
        depth, heads = depth or build.size.depth, heads or build.size.heads
        self.pool = None
        self.transformer = CocaTransformer(self.width, depth, heads, image_width, activation, dropout)
        self.output = nn.Linear(self.width, len(build.tokenizer), bias=False)
        self._text = [text]  # in a list: shared, not owned
        self.bos = int(build.tokenizer.bos)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.output(x)
        return logits
