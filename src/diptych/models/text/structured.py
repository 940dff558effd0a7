"""A text tower with the facts of its text (Structure-CLIP, Huang et al. 2024, arXiv:2305.06152, §3.3, the "knowledge-enhanced
encoder").

Shapes: B texts, K facts of a text, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from diptych.core.batch import Tokens
from diptych.data.regions.changes import triples
from diptych.models.build import Build
from diptych.models.layers.attention import Transformer
from diptych.models.layers.masks import attention_bias
from diptych.models.text.towers import TextTransformer


@lru_cache(maxsize=65536)
def facts_of(caption: str) -> tuple[tuple[str, str, str], ...]:
    """``triples``, remembered."""
    return tuple(triples(caption))


class StructuredText(TextTransformer):
    """The pooled vector of a text plus λ times that of its facts. A fact (subject, relation, object) is the sum of three vectors,
    each the mean of the word vectors of its words; a transformer over all facts of a text, and their mean, is the knowledge. A text
    without facts stays as it is.

    knowledge_depth: layers of that transformer (6 in the paper). weight: λ (0.2 in the paper, 0.01 in the authors' code).
    """

    def __init__(
        self,
        build: Build,
        *,
        knowledge_depth: Annotated[int, Field(ge=1)] = 2,
        weight: float = 0.2,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
    ):
        sizes: dict[str, Any] = {"width": width, "depth": depth, "heads": heads, "hidden": hidden}
        super().__init__(build, **sizes)
        self.weight = weight
        self.knowledge = Transformer(self.width, knowledge_depth, heads or build.size.heads, None, build.size.activation)
        self._tokenizer = build.tokenizer

    def forward(self, ids: Tensor, mask: Tensor, captions: Sequence[str] = ()) -> Tokens:
        """ids, mask [B, T], captions (B strings) → tokens [B, T, D], pooled [B, D], mask"""
        if len(captions) != len(ids):
            raise ValueError(f"structured texts are read from captions: got {len(captions)} for a batch of {len(ids)}")
        tokens = super().forward(ids, mask, captions)
        return replace(tokens, pooled=tokens.pooled + self.weight * self.known([facts_of(c) for c in captions], tokens.pooled))

    def known(self, facts: Sequence[Sequence[tuple[str, str, str]]], like: Tensor) -> Tensor:
        """The knowledge of each text, [B, D]; 0 where there are no facts."""
        flat = [part for row in facts for fact in row for part in fact]
        if not flat:
            return torch.zeros_like(like)
        words, real = (torch.from_numpy(x).to(like.device) for x in self._tokenizer.encode_batch(flat))
        real = real & (words != self._tokenizer.bos) & (words != self._tokenizer.eos)
        vectors = (self.embedding(words) * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        vectors = torch.unflatten(vectors, 0, (-1, 3)).sum(1)  # of each fact
        counts = torch.tensor([len(row) for row in facts], device=like.device)
        there = torch.arange(int(counts.max()), device=like.device) < counts[:, None]  # [B, K]
        x = vectors.new_zeros(*there.shape, self.width).masked_scatter(there[..., None], vectors)
        x = self.knowledge(x, attention_bias(there, x.shape[1], False, x))
        result: Tensor = (x * there[..., None]).sum(1) / counts.clamp(min=1)[:, None]
        return result
