"""Text towers: token ids in, ``Tokens`` out.

``models.part.TextTower`` describes what every tower has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Unpack

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.data.text import PAD
from diptych.models.build import Build
from diptych.models.layers.attention import Activation, Sizes, Transformer
from diptych.models.layers.cache import KVCache
from diptych.models.layers.insertion import Insertion
from diptych.models.layers.masks import attention_bias
from diptych.models.part import TextTower


def sinusoids(length: int, width: int, longest: float = 100.0) -> Tensor:
    """Positions [length, width] of waves from 1 to ``longest`` radians (Vaswani et al. 2017, with waves as short as captions)."""
    angles = torch.arange(length)[:, None] * longest ** (-torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], 1)


class TextTransformer(TextTower):
    """A transformer over byte-pair tokens.

    causal: each token sees only the tokens before it (CLIP, CoCa). pool: the last token ([EOS]), the first ([BOS]), the mean, or
    ``class``: a learned token after the text, which reads all of it and which no word sees (CoCa, Yu et al. 2022, §3.2).
    hidden: width of the blocks' MLPs. embedding_norm: a norm on words plus positions, post_norm: after each step instead of before
    it (both as in BERT).
    whole: texts are read at full length with their padding, and pooled at the very last position (SigLIP). bare: tokens are
    returned before the last norm, the pooled vector after it (FLAVA). Positions are learned from waves of std 0.5: with word
    vectors of unit variance the usual noise of std 0.02 would hide the word order throughout a small budget, and with waves "the
    previous word" is the same step everywhere.
    """

    def __init__(
        self,
        build: Build,
        *,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
        causal: bool = False,
        pool: Literal["eos", "bos", "mean", "class"] = "eos",
        whole: bool = False,
        activation: Activation | None = None,
        eps: float = 1e-5,
        embedding_norm: bool = False,
        post_norm: bool = False,
        bare: bool = False,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        super().__init__()
        size = build.size
        self.width = width or size.width
        self.causal = causal
        self.pool, self.whole = pool, whole
        build.require(
            pool != "class" or (causal and not whole), "pool: class is for causal texts that are not whole; set causal: true"
        )
        self.embedding = nn.Embedding(len(build.tokenizer), self.width)
        self.positions = nn.Parameter(sinusoids(build.tokenizer.max_length, self.width) * 0.7)
        # It has no position: its own vector would learn one that is the same for every text.
        self.class_token = nn.Parameter(torch.randn(self.width) * 0.02) if pool == "class" else None
        self.norm: nn.Module = nn.LayerNorm(self.width, eps) if embedding_norm else nn.Identity()
        self.transformer = Transformer(
            self.width,
            depth or size.depth,
            heads or size.heads,
            activation=activation or size.activation,
            dropout=dropout,
            hidden=hidden,
            eps=eps,
            post_norm=post_norm,
            bare=bare,
        )

    takes_prompts = True

    def forward(self, ids: Tensor, mask: Tensor, captions: Sequence[str] = ()) -> Tokens:
        """ids, mask [B, T] → tokens [B, T, D], pooled [B, D], mask"""
        if self.whole:
            return self._read_whole(ids, mask)
        x, seen, vectors = self.embedding(ids), mask, None
        if self.prompts:
            vectors = Insertion(self.prompts, 1, self.causal)
            x = vectors.join(x, mask, ids, mask)
        x = x + (self.positions[: x.shape[1]] if vectors is None else vectors.positions(self.positions, x.shape[1]))
        if self.class_token is not None:
            x = torch.cat([x, self.class_token.to(x.dtype).expand(x.shape[0], 1, -1)], 1)
            seen = F.pad(seen, (0, 1), value=True)
            if vectors is not None:
                vectors.append(1)
        x = self.norm(x)
        if vectors is None:
            x = self.transformer(x, attention_bias(seen, x.shape[1], self.causal, x))
        else:
            x = self.transformer(x, vectors.bias(x), before=vectors.before)
        last = x[:, -1]
        x = x if self.class_token is None else x[:, :-1]
        x, learned = (x, None) if vectors is None else vectors.leave(x)  # [B, T, D]
        if self.pool == "class":
            pooled = last
        elif self.pool == "eos":
            pooled = x[torch.arange(x.shape[0], device=x.device), mask.sum(1) - 1]
        elif self.pool == "bos":
            pooled = x[:, 0]
        else:
            pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return Tokens(x, self.transformer.norm(pooled) if self.transformer.bare else pooled, mask, learned)

    def step(self, ids: Tensor, past: KVCache) -> tuple[Tensor, KVCache]:
        """The next tokens [B, L] of causal texts without padding: their vectors [B, L, D], as ``forward`` gives them, and the past
        including them.
        """
        x = self.norm(self.embedding(ids) + self.positions[past.length : past.length + ids.shape[1]])
        return self.transformer.step(x, past)

    def _read_whole(self, ids: Tensor, mask: Tensor) -> Tokens:
        T, vectors = ids.shape[1], Insertion(self.prompts, 1, self.causal) if self.prompts else None
        rest = len(self.positions) - self.places_taken - T  # places without a word
        ids, real = F.pad(ids, (0, rest), value=PAD), F.pad(mask, (0, rest))
        x = self.embedding(ids)
        if vectors is None:
            x = self.norm(x + self.positions)
            x = self.transformer(x, attention_bias(None, x.shape[1], self.causal, x))
            return Tokens(x[:, :T], x[:, -1], mask)
        x = vectors.join(x, None, ids, real)
        x = self.norm(x + vectors.positions(self.positions, x.shape[1]))
        x, learned = vectors.leave(self.transformer(x, vectors.bias(x), before=vectors.before))
        return Tokens(x[:, :T], x[:, -1], mask, learned)


class ClipText(TextTransformer):
    """The text tower of CLIP as in transformers and open_clip: causal, read at [EOS]."""

    def __init__(
        self,
        build: Build,
        *,
        activation: Activation = "quick_gelu",
        eps: float = 1e-5,
        **sizes: Unpack[Sizes],
    ):
        super().__init__(build, activation=activation, eps=eps, **sizes, causal=True, pool="eos")


class SiglipText(TextTransformer):
    """The text tower of SigLIP as in transformers: texts are read whole, with their padding, and pooled at the last position."""

    projection = "affine"

    def __init__(
        self,
        build: Build,
        *,
        activation: Activation = "gelu_tanh",
        eps: float = 1e-6,
        **sizes: Unpack[Sizes],
    ):
        super().__init__(build, activation=activation, eps=eps, **sizes, whole=True)


class BertText(TextTransformer):
    """A text tower read at its first token, with a norm on its embeddings. post_norm: true in BERT and BLIP, false in FLAVA."""

    projection = "affine"

    def __init__(
        self,
        build: Build,
        *,
        activation: Activation = "gelu",
        eps: float = 1e-12,
        post_norm: bool = True,
        bare: bool = False,
        **sizes: Unpack[Sizes],
    ):
        super().__init__(
            build, activation=activation, eps=eps, post_norm=post_norm, bare=bare, embedding_norm=True, pool="bos", **sizes
        )


class MiniLM(TextTower):
    """all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019), frozen: a 384-d vector per sentence, cached by text.

    project: into the shared space by a learned map; false: its own space is the shared one.
    """

    packaged = ("encoder",)
    weights = "minilm"

    def __init__(self, build: Build, *, project: bool = True):
        super().__init__()
        from diptych.models.pretrained import load_minilm

        self.projection = "linear" if project else "none"

        self.encoder = load_minilm()
        self.width = 384
        build.licences.append("minilm")

    def forward(self, ids: Tensor, mask: Tensor, captions: Sequence[str] = ()) -> Tokens:
        """captions (B strings) → tokens [B, 1, 384] and pooled [B, 384]"""
        if len(captions) != len(ids):
            raise ValueError(f"MiniLM reads raw captions: got {len(captions)} for a batch of {len(ids)}")
        pooled = self.encoder.embed(list(captions), ids.device)
        return Tokens(pooled[:, None], pooled)


TEXT = {
    "transformer": TextTransformer,
    "clip": ClipText,
    "siglip": SiglipText,
    "bert": BertText,
    "coca": "diptych.models.decoders.coca:CocaText",
    "med": "diptych.models.fusion.med:MedText",
    "q_former": "diptych.models.fusion.qformer:QFormerText",
    "minilm": MiniLM,
    "structured": "diptych.models.text.structured:StructuredText",
    "stretched": "diptych.models.text.stretched:Stretched",
}
