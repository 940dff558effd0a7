"""BLIP's mixture of encoder and decoder (MED): one text transformer in three modes (Li et al. 2022, arXiv:2201.12086, §3.1).

| mode | part | self-attention | looks at the image | begins with |
|---|---|---|---|---|
| alone | ``text`` | both ways | no | [BOS] (the paper's [CLS]) |
| image-grounded encoder | ``fusion`` | both ways | yes | [ENC] |
| image-grounded decoder | ``decoder`` | causal | yes | [DEC] |

The first two have the same weights; the decoder shares all but self-attention with them. ``fusion`` and ``decoder`` read words, not
the output of ``text``.
"""

from __future__ import annotations

import copy
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.batch import Texts, Tokens
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.layers.attention import Activation, Attention, Block, Sizes, Transformer
from diptych.models.layers.cache import DecoderState
from diptych.models.layers.masks import attention_bias, padding_bias
from diptych.models.part import Part
from diptych.models.text.towers import BertText


class MedText(BertText):
    """BERT with a cross-attention in every block, which only the image-grounded modes use.

    marks: the grounded modes begin with their own tokens, [DEC] and [ENC], the last two rows of the vocabulary; false: with
    [BOS].
    """

    takes_prompts = False  # the grounded modes would not read them

    def __init__(
        self,
        build: Build,
        *,
        activation: Activation = "gelu",
        eps: float = 1e-12,
        marks: bool = True,
        **sizes: Unpack[Sizes],
    ):
        super().__init__(build, activation=activation, eps=eps, **sizes)
        seen = build.width_of("vision")
        depth, heads = sizes.get("depth") or build.size.depth, sizes.get("heads") or build.size.heads
        self.transformer = Transformer(
            self.width, depth, heads, seen, activation=activation, hidden=sizes.get("hidden"), eps=eps, post_norm=True
        )
        self.bos, words = int(build.tokenizer.bos), len(build.tokenizer)
        self.dec, self.enc = (words, words + 1) if marks else (self.bos, self.bos)
        self.embedding = nn.Embedding(words + 2 * marks, self.width)

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """Embeddings of words [B, L] at the positions from ``start`` on: [B, L, D]."""
        x: Tensor = self.norm(self.embedding(ids) + self.positions[start : start + ids.shape[1]])
        return x


def beginning(ids: Tensor, mark: int) -> Tensor:
    """ids [B, T] with another first token."""
    return torch.cat([torch.full_like(ids[:, :1], mark), ids[:, 1:]], 1)


def med_text(build: Build) -> MedText:
    """The text transformer that these modes share. DiptychError if the recipe's is another."""
    text = build.parts.get("text")
    build.require(isinstance(text, MedText), "a mode of the text transformer; set parts.text.kind: med")
    assert isinstance(text, MedText)
    return text


class MedEncoder(Part):
    """The image-grounded encoder, ``read(ids [B, T], mask [B, T], image) -> Tokens`` pooled at its first token. It has no weights
    of its own.
    """

    borrows = True

    def __init__(self, build: Build):
        super().__init__()
        text = med_text(build)
        self.width = text.width
        self._text = [text]  # in a list: shared, not owned

    @provides("text.fused", "text", "image.tokens")
    def fused(self, text: Texts, image: Tokens) -> Tokens:
        """Text tokens [B, T, D] after attention to the image."""
        return self.read(text.ids, text.mask, image)

    def read(self, ids: Tensor, mask: Tensor, image: Tokens) -> Tokens:
        """ids, mask [B, T], image tokens → text tokens [B, T, D], pooled [B, D]: the first"""
        text = self._text[0]
        x = text.embed(beginning(ids, text.enc))
        x = text.transformer(x, attention_bias(mask, ids.shape[1], False, x), image.tokens, padding_bias(image.mask))
        return Tokens(x, x[:, 0], mask)


class Sharing(Block):
    """A block with its own self-attention and the norm after it; everything else is from another block."""

    def __init__(self, of: Block):
        nn.Module.__init__(self)
        self._of = [of]
        self.attention: Attention = copy.deepcopy(of.attention)
        self.norm1: nn.LayerNorm = copy.deepcopy(of.norm1)
        self.post_norm = of.post_norm

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """Attributes that the block does not have itself come from the other block."""
        return (
            getattr(self._of[0], name) if name in ("cross", "norm_cross", "norm2", "mlp", "dropout") else super().__getattr__(name)
        )


class SharingTransformer(Transformer):
    """Blocks that share all but self-attention with those of a post-norm transformer."""

    def __init__(self, of: Transformer):
        nn.Module.__init__(self)
        self.blocks = nn.ModuleList(Sharing(block) for block in of.blocks)  # type: ignore[arg-type]
        self.norm: nn.Module = nn.Identity()
        self.bare = of.bare


class MedDecoder(Part):
    """The image-grounded decoder, ``read(ids [B, T], mask [B, T], image) -> logits [B, T, V]``: row t predicts token t + 1.

    share: all but self-attention with the encoder, as in the paper; false: a separate transformer, as in the classes of
    transformers. The output layer is BERT's: a transform, then the word vectors, tied.
    """

    called = ("read", "start", "step")
    begins_with = "image.tokens"
    can = frozenset({"generate", "decoding", "loglikelihood"})
    limited = True

    def __init__(self, build: Build, *, share: bool = True):
        super().__init__()
        text = med_text(build)
        self.width, self.share, self.dec = text.width, share, text.dec
        self.borrows = share
        self.own = None if share else copy.deepcopy(text)
        self._text = [text]
        self.transformer = SharingTransformer(text.transformer) if share else None
        first = text.transformer.blocks[0]
        self.transform = nn.Linear(self.width, self.width)
        self.activation: nn.Module = copy.deepcopy(first.mlp[1])  # type: ignore[index, assignment]
        self.norm = nn.LayerNorm(self.width, first.norm1.eps)  # type: ignore[union-attr, arg-type]
        nn.init.constant_(self.norm.weight, self.width**-0.5)  # word vectors have unit variance: the first logits are of order 1
        self.bias = nn.Parameter(torch.zeros(text.embedding.num_embeddings))

    @property
    def reader(self) -> MedText:
        """The text transformer that provides word and position embeddings."""
        return self.own or self._text[0]

    @property
    def blocks(self) -> Transformer:
        """The transformer of this mode."""
        return self.transformer or self.reader.transformer

    @provides("text.logits", "text", "image.tokens")
    def logits(self, text: Texts, image: Tokens) -> Tensor:
        """[B, T − 1, V]: row t predicts token t + 1."""
        return self.read(text.ids, text.mask, image)[:, :-1]

    def read(self, ids: Tensor, mask: Tensor, image: Tokens) -> Tensor:
        """ids, mask [B, T], image tokens → logits [B, T, V]: row t predicts token t + 1"""
        x = self.reader.embed(beginning(ids, self.dec))
        x = self.blocks(x, attention_bias(mask, ids.shape[1], True, x), image.tokens, padding_bias(image.mask))
        return self._logits(x)

    def start(self, image: Tokens) -> tuple[Tensor, DecoderState]:
        """Logits [B, V] over a caption's first token, and the state after [DEC]."""
        state = DecoderState(self.blocks.start(image.tokens), padding_bias(image.mask))
        return self.step(torch.full((len(image.tokens),), self.dec, device=image.tokens.device), state)

    def step(self, ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Logits [B, V] over the token after ``ids`` [B]."""
        x = self.reader.embed(ids[:, None], state.cache.length)
        x, past = self.blocks.step(x, state.cache, context_bias=state.bias)
        return self._logits(x[:, -1]), DecoderState(past, state.bias)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(self.activation(self.transform(x))), self.reader.embedding.weight, self.bias)
