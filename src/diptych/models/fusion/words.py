"""One transformer over words and what is seen: that of the text tower (VideoBERT, Sun et al. 2019; MERLOT, Zellers et al. 2021).

Shapes: B rows, T words, N visual tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.core.batch import Texts, Tokens
from diptych.core.graph import provides
from diptych.data.text import PAD, SPECIALS
from diptych.models.build import Build
from diptych.models.layers.masks import padding_bias
from diptych.models.part import Part
from diptych.models.text.towers import TextTransformer


class WordsAndTokens(Part):
    """Words, then visual tokens, in one sequence for the text tower's transformer: ``read(ids [B, T], mask [B, T], image)`` gives
    both. Of its own it has a linear map and a norm for what is seen.
    """

    borrows = True
    called = ("read",)

    def __init__(self, build: Build):
        super().__init__()
        text = build.parts.get("text")
        fits = isinstance(text, TextTransformer) and not (text.causal or text.whole or text.pool == "class")
        build.require(fits, "reads words by the text tower, which must see both ways; set parts.text.kind: bert")
        assert isinstance(text, TextTransformer)
        self.width = text.width
        self._text = [text]  # in a list: shared, not owned
        self._prepare(build)

    def _prepare(self, build: Build) -> None:
        """Its own weights."""
        self.from_image = nn.Linear(build.width_of("vision"), self.width)
        self.norm = nn.LayerNorm(self.width)

    def seen(self, image: Tokens) -> Tensor:
        """Visual tokens as the transformer reads them, [B, N, D]."""
        seen: Tensor = self.norm(self.from_image(image.tokens))
        return seen

    def embed(self, ids: Tensor) -> Tensor:
        """Words as the transformer reads them, [B, T, D]."""
        text = self._text[0]
        x: Tensor = text.norm(text.embedding(ids) + text.positions[: ids.shape[1]])
        return x

    @provides(("text.fused", "image.fused"), "text", "image.tokens")
    def fused(self, text: Texts, image: Tokens) -> tuple[Tokens, Tokens]:
        """Words and visual tokens after attention to each other; both pooled as the first word, [BOS]."""
        return self.read(text.ids, text.mask, image)

    def read(self, ids: Tensor, mask: Tensor, image: Tokens) -> tuple[Tokens, Tokens]:
        """ids, mask [B, T], visual tokens → words [B, T, D] and visual tokens [B, N, D], pooled [B, D]: the first word"""
        seen = self.seen(image)
        there = mask.new_ones(seen.shape[:2]) if image.mask is None else image.mask
        x = torch.cat([self.embed(ids).to(seen.dtype), seen], 1)
        x = self._text[0].transformer(x, padding_bias(torch.cat([mask, there], 1)))
        words, seen = x[:, : ids.shape[1]], x[:, ids.shape[1] :]
        return Tokens(words, x[:, 0], mask), Tokens(seen, x[:, 0], image.mask)


class WordsAndCodes(WordsAndTokens):
    """``WordsAndTokens`` where what is seen are the codes of ``parts.time: {kind: codes}``: each a vector, as a word is, with one
    for its place and one that marks what is seen. The codes begin with [BOS], VideoBERT's [>].
    """

    def _prepare(self, build: Build) -> None:
        time = build.parts.get("time")
        build.require(hasattr(time, "vocabulary"), "reads codes of clips; set parts.time.kind: codes")
        self.codes = nn.Embedding(len(SPECIALS) + int(time.vocabulary), self.width)  # type: ignore[union-attr, arg-type]
        self.places = nn.Parameter(torch.randn(1 + int(time.spans), self.width) * 0.02)  # type: ignore[union-attr, arg-type]
        self.mark = nn.Parameter(torch.randn(self.width) * 0.02)
        self.norm = nn.LayerNorm(self.width)

    def seen(self, image: Tokens) -> Tensor:
        """As they are: ``read_codes`` has made them."""
        return image.tokens

    @provides("{video}.tokens", "{video}.codes")
    def read_codes(self, codes: Tensor) -> Tokens:
        """Codes [B, 1 + S], PAD where there is none, as vectors [B, 1 + S, D], pooled [B, D]: their mean."""
        mask = codes != PAD
        x = self.norm(self.codes(codes) + self.places[: codes.shape[1]] + self.mark)
        return Tokens(x, (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), mask)
