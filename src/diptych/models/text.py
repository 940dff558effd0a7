"""Text towers: token ids in, ``Tokens`` out.

Every tower has ``width`` and ``forward(ids [B, T], mask [B, T], captions) -> Tokens``; ``captions`` are the raw strings, for towers that bring a
tokenizer of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.batch import Tokens
from diptych.models.attention import Transformer, attention_bias
from diptych.models.build import Build


def sinusoids(length: int, width: int, longest: float = 100.0) -> Tensor:
    """Positions [length, width] of waves from 1 to ``longest`` radians (Vaswani et al. 2017, with waves as short as captions)."""
    angles = torch.arange(length)[:, None] * longest ** (-torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], 1)


class TextTransformer(nn.Module):
    """A transformer over byte-pair tokens.

    causal: each token sees only what stands before it (CLIP, CoCa). pool: the last token ([EOS]), the first ([BOS]) or the mean.
    Positions are learned from waves of std 0.5: beside unit-variance word vectors the usual noise of std 0.02 leaves the tower blind to
    word order for the length of a small budget, and waves make "the word before" the same step everywhere.
    """

    def __init__(
        self,
        build: Build,
        *,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        causal: bool = False,
        pool: Literal["eos", "bos", "mean"] = "eos",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        super().__init__()
        size = build.size
        self.width = width or size.width
        self.causal = causal
        self.pool = pool
        self.embedding = nn.Embedding(len(build.tokenizer), self.width)
        self.positions = nn.Parameter(sinusoids(build.tokenizer.max_length, self.width) * 0.7)
        self.transformer = Transformer(self.width, depth or size.depth, heads or size.heads, None, size.activation, dropout)

    def forward(self, ids: Tensor, mask: Tensor, captions: Sequence[str] = ()) -> Tokens:
        x = self.embedding(ids) + self.positions[: ids.shape[1]]
        x = self.transformer(x, attention_bias(mask, ids.shape[1], self.causal, x))  # [B, T, D]
        if self.pool == "eos":
            pooled = x[torch.arange(len(x), device=x.device), mask.sum(1) - 1]
        elif self.pool == "bos":
            pooled = x[:, 0]
        else:
            pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return Tokens(x, pooled, mask)


class MiniLM(nn.Module):
    """all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019), frozen: a 384-d vector a sentence, remembered by text."""

    packaged = ("encoder",)

    def __init__(self, build: Build):
        super().__init__()
        from diptych.models.pretrained import load_minilm

        self.encoder = load_minilm()
        self.width = 384
        build.licences.append("minilm")

    def forward(self, ids: Tensor, mask: Tensor, captions: Sequence[str] = ()) -> Tokens:
        if len(captions) != len(ids):
            raise ValueError(f"MiniLM reads raw captions: got {len(captions)} for a batch of {len(ids)}")
        pooled = self.encoder.embed(list(captions), ids.device)
        return Tokens(pooled[:, None], pooled)


TEXT = {"transformer": TextTransformer, "minilm": MiniLM}
