"""Kosmos-2's language model (Peng et al. 2023, arXiv:2306.14824): a causal decoder with norms inside its blocks (MAGNETO), which
reads an image as a few latent tokens, and writes boxes as location tokens.

Shapes: B batch, N image tokens, n latent tokens, T text tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Texts, Tokens
from diptych.core.graph import provides
from diptych.data.regions.locations import GROUNDING, OBJECT, PHRASE, PHRASE_END, LocationTokenizer, location
from diptych.models.build import Build
from diptych.models.layers.attention import ACTIVATIONS, Activation, Attention, Block, Transformer, attend
from diptych.models.layers.cache import DecoderState
from diptych.models.layers.masks import attention_bias
from diptych.models.part import Part

FIRST = 2  # the first position's row of the waves: two rows are reserved, as in fairseq


def waves(length: int, width: int) -> Tensor:
    """Positions [length, width]: sines of all frequencies, then cosines, from the third row of the table on."""
    half = width // 2
    frequency = torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1)))
    angles = torch.arange(FIRST, FIRST + length)[:, None] * frequency
    return torch.cat([angles.sin(), angles.cos()], 1)


class InnerNormAttention(Attention):
    """Attention with a norm before its output layer (sub-LayerNorm; MAGNETO, Wang et al. 2022)."""

    def __init__(self, width: int, heads: int, eps: float):
        super().__init__(width, heads)
        self.inner = nn.LayerNorm(width, eps)

    def look(self, x: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """``forward`` with keys and values that have been read."""
        B, L, D = x.shape
        q = self.q(x).view(B, L, self.heads, -1).transpose(1, 2)
        result: Tensor = self.out(self.inner(attend(q, k, v, bias).transpose(1, 2).reshape(B, L, D)))
        return result


class InnerNormBlock(Block):
    """A block with a norm inside attention and one inside the MLP."""

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
        super().__init__(width, heads, context_width, activation, dropout, hidden, eps, post_norm)
        hidden = hidden or 4 * width
        self.attention = InnerNormAttention(width, heads, eps)
        inside = nn.Sequential(ACTIVATIONS[activation](), nn.LayerNorm(hidden, eps))
        self.mlp = nn.Sequential(nn.Linear(width, hidden), inside, nn.Linear(hidden, width))


class InnerNormTransformer(Transformer):
    """A stack of ``InnerNormBlock``."""

    block = InnerNormBlock


class LatentTokens(nn.Module):
    """n learned queries that read the image and themselves (Kosmos-2's "resampler"): [B, N, D of the tower] → [B, n, D]."""

    def __init__(self, seen: int, width: int, heads: int, n: int):
        super().__init__()
        self.layer = nn.Linear(seen, width)
        self.queries = nn.Parameter(torch.randn(n, width) * width**-0.5)
        self.attention = Attention(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        """x: tokens of unit length."""
        queries = self.queries.to(x.dtype).expand(len(x), -1, -1)
        result: Tensor = self.attention(queries, torch.cat([self.layer(x), queries], 1))
        return result


class KosmosDecoder(Part):
    """[BOS], the latent tokens of the image, the text: each position predicts the next token. The output layer is the word vectors.

    latent: tokens of an image (64 in the paper).
    """

    begins_with = "image.tokens"
    can = frozenset({"generate", "decoding", "loglikelihood"})
    limited = True

    def __init__(
        self,
        build: Build,
        *,
        latent: Annotated[int, Field(ge=1)] = 16,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
        activation: Activation | None = None,
        eps: float = 1e-5,
    ):
        super().__init__()
        size = build.size
        self.width, heads, self.latent = width or size.width, heads or size.heads, latent
        self.embedding = nn.Embedding(len(build.tokenizer), self.width)
        nn.init.normal_(self.embedding.weight, std=self.width**-0.5)
        self.register_buffer("positions", waves(build.tokenizer.max_length + latent, self.width), persistent=False)
        self.image = LatentTokens(build.width_of("vision"), self.width, heads, latent)
        self.transformer = InnerNormTransformer(
            self.width, depth or size.depth, heads, None, activation or size.activation, 0.0, hidden, eps
        )
        self.bos = int(build.tokenizer.bos)

    positions: Tensor

    @provides("text.logits", "text", "image.tokens")
    def logits(self, text: Texts, image: Tokens) -> Tensor:
        """[B, T − 1, V]: row t predicts token t + 1."""
        return self.read(text.ids, text.mask, image)[:, :-1]

    def read(self, ids: Tensor, mask: Tensor, image: Tokens) -> Tensor:
        """ids, mask [B, T], image tokens → logits [B, T, V]: row t predicts token t + 1."""
        n = self.latent
        words = self.embedding(ids)
        x = torch.cat([words[:, :1], self.latents(image), words[:, 1:]], 1)
        seen = torch.cat([mask.new_ones(len(mask), 1 + n), mask[:, 1:]], 1)
        x = x * self.width**0.5 + self.positions[: x.shape[1]]
        x = self.transformer(x, attention_bias(seen, x.shape[1], True, x))
        return self._logits(x[:, n:])  # the last latent token stands where [BOS] predicted: it has seen the image

    def latents(self, image: Tokens) -> Tensor:
        """The image as the decoder reads it, [B, n, D]."""
        result: Tensor = self.image(F.normalize(image.tokens, dim=-1))
        return result

    def start(self, image: Tokens) -> tuple[Tensor, DecoderState]:
        """Logits [B, V] over a caption's first token, and the state after the image."""
        first = self.embedding(torch.full((len(image.tokens), 1), self.bos, device=image.tokens.device))
        x = torch.cat([first, self.latents(image)], 1) * self.width**0.5 + self.positions[: 1 + self.latent]
        x, past = self.transformer.step(x, self.transformer.start())
        return self._logits(x[:, -1]), DecoderState(past)

    def step(self, ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Logits [B, V] over the token after ``ids`` [B]."""
        x = self.embedding(ids[:, None]) * self.width**0.5 + self.positions[state.cache.length]
        x, past = self.transformer.step(x, state.cache)
        return self._logits(x[:, -1]), DecoderState(past)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embedding.weight)


class LocationBox(Part):
    """The box that the decoder writes for a text: after "<grounding><phrase>text</phrase><object>", its likeliest location, then
    the likeliest one to the right and below, or in the same row or column. It has no weights of its own.
    """

    borrows = True

    def __init__(self, build: Build):
        super().__init__()
        self.tokenizer: LocationTokenizer = build.tokenizer
        build.require(
            isinstance(build.tokenizer, LocationTokenizer),
            "needs a tokenizer with locations; set data.tokenizer.kind to diptych.data.regions.locations:LocationTokenizer",
        )
        self.bins = build.tokenizer.bins
        self.first = build.tokenizer.mark(location(0))
        self._decoder: list[Any] = []

    def attach(self, build: Build) -> None:
        """Find the decoder."""
        build.require("decoder" in build.parts, "needs a part 'decoder' that writes locations")
        self._decoder = [build.parts["decoder"]]

    @provides("text.box", "text", "image.tokens")
    def box(self, text: Texts, image: Tokens) -> Tensor:
        """[B, 4], float32"""
        decoder, bins = self._decoder[0], self.bins
        ids, last = self.asked(text)
        rows = torch.arange(len(ids), device=ids.device)
        one = self._cells(decoder.read(ids, self._real(ids, last), image)[rows, last]).argmax(1)
        ids[rows, last + 1] = self.first + one
        logits = self._cells(decoder.read(ids, self._real(ids, last + 1), image)[rows, last + 1])
        cell = torch.arange(bins**2, device=ids.device)
        after = (cell // bins >= (one // bins)[:, None]) & (cell % bins >= (one % bins)[:, None])
        two = logits.masked_fill(~after, float("-inf")).argmax(1)
        return box_of(one, two, bins)

    def asked(self, text: Texts) -> tuple[Tensor, Tensor]:
        """Ids [B, T + 5] of the question, with room for a location, and the place of its last token [B]. Texts are cut where the
        decoder's positions end.
        """
        tokenizer = self.tokenizer
        before, after = ([tokenizer.mark(m) for m in marks] for marks in ((GROUNDING, PHRASE), (PHRASE_END, OBJECT)))
        words = (text.mask.sum(1) - 2).clamp(max=tokenizer.max_length - 7)  # without [BOS] and [EOS]
        longest = int(words.max())
        ids = text.ids.new_full((len(words), longest + 6), tokenizer.pad)
        ids[:, 0] = tokenizer.bos
        ids[:, 1:3] = torch.tensor(before, device=ids.device)
        place = torch.arange(longest, device=ids.device)
        own = text.ids[:, 1 : 1 + longest]
        ids[:, 3 : 3 + longest] = torch.where(place < words[:, None], own, tokenizer.pad)
        rows = torch.arange(len(ids), device=ids.device)
        for k, mark in enumerate(after):
            ids[rows, 3 + words + k] = mark
        return ids, 4 + words

    def _cells(self, logits: Tensor) -> Tensor:
        return logits[:, self.first : self.first + self.bins**2].float()

    @staticmethod
    def _real(ids: Tensor, last: Tensor) -> Tensor:
        return torch.arange(ids.shape[1], device=ids.device) <= last[:, None]


def box_of(first: Tensor, last: Tensor, bins: int) -> Tensor:
    """``data.regions.locations.box_of_cells`` of tensors of cells [B]: [B, 4], float32."""
    left, top, right, bottom = first % bins, first // bins, last % bins, last // bins
    whole = ((left == right) | (top == bottom))[:, None]
    edges = torch.stack([left, top, right + 1, bottom + 1], 1)
    middles = torch.stack([left + 0.5, top + 0.5, right + 0.5, bottom + 0.5], 1)
    return torch.where(whole, edges, middles).float() / bins
