"""BLIP-2's Q-Former: one transformer for learned queries and for text (Li et al. 2023, arXiv:2301.12597, §3.1 and figure 2).

Self-attention is shared; queries alone look at the image, in every second block; queries and text have feed-forward layers of their
own.

| mode | part | who sees whom |
|---|---|---|
| unimodal | ``text`` | queries see each other (``look``), text sees itself (``forward``) |
| bidirectional | ``fusion`` | queries and text see each other |
| multimodal causal | ``decoder`` | queries see each other, text sees the queries and the text before it; it begins with [DEC] |

``text`` owns the weights, the others borrow them; ``connector`` of kind ``queries`` hands the queries to a language model (§3.2).
Queries without text do not depend on it, so they are computed once per image, and causal text continues from them as from a prefix.

Shapes: B batch, Q queries, N image tokens, T text tokens, D width, E embedding.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.core.batch import Texts, Tokens
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.fusion.med import beginning
from diptych.models.layers.attention import Activation, Attention, Block, Transformer
from diptych.models.layers.cache import Indexed, KVCache, Pair, appended
from diptych.models.layers.masks import attention_bias, causal_bias, joined, padding_bias
from diptych.models.part import Part, TextTower
from diptych.models.text.towers import sinusoids
from diptych.models.vision.towers import sincos_2d


def best_query(images: Tensor, texts: Tensor) -> Tensor:
    """[M, K]: of unit vectors images [M, Q, E] and texts [K, E] the cosine of a text and the nearest query of an image."""
    return torch.einsum("mqe,ke->mkq", images, texts).amax(-1)


class QFormerBlock(Block):
    """A post-norm block in which ``mlp`` and ``norm2`` are the queries' and ``mlp_text`` and ``norm_text`` the text's."""

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self.mlp_text, self.norm_text = copy.deepcopy(self.mlp), copy.deepcopy(self.norm2)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        queries: int,
        bias: Tensor | None = None,
        context: Tensor | None = None,
        context_bias: Tensor | None = None,
        own: Pair | None = None,
    ) -> tuple[Tensor, Pair]:
        """x [B, L, D], of which the first ``queries`` are queries, and the keys and values of everything that self-attention has
        read, ``own`` first.
        """
        k, v = appended(own, *self.attention.read(x))
        x = self.norm1(x + self.attention.look(x, k, v, bias))
        seen, text = x[:, :queries], x[:, queries:]
        if queries:
            if self.cross is not None and self.norm_cross is not None:
                seen = self.norm_cross(seen + self.cross(seen, context, context_bias))
            seen = self.norm2(seen + self.mlp(seen))
        if text.shape[1]:
            text = self.norm_text(text + self.mlp_text(text))
        return torch.cat([seen, text], 1), (k, v)


class QFormerTransformer(Transformer):
    """Blocks for queries and text, the first and then one in ``every`` with a cross-attention of the queries to the image [B, N,
    image width].
    """

    block = QFormerBlock

    def __init__(
        self, width: int, depth: int, heads: int, image_width: int, every: int, activation: str, hidden: int | None, eps: float
    ):
        super().__init__(width, depth, heads, None, activation, hidden=hidden, eps=eps, post_norm=True)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, QFormerBlock)
            block.mlp_text.load_state_dict(block.mlp.state_dict())  # both start with the same weights, as from BERT
            if i % every == 0:
                block.cross, block.norm_cross = Attention(width, heads, image_width), nn.LayerNorm(width, eps)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        queries: int,
        bias: Tensor | None = None,
        context: Tensor | None = None,
        context_bias: Tensor | None = None,
        past: KVCache | None = None,
    ) -> tuple[Tensor, KVCache]:
        """x [B, L, D] after the tokens in ``past``, and the past including it. bias: over all of the past and x."""
        own: list[Pair] = []
        for i, block in enumerate(self.blocks):
            given = (x, queries, bias, context, context_bias, past.own[i] if past else None)
            if self.checkpointing and torch.is_grad_enabled():
                x, pair = checkpoint(block, *given, use_reentrant=False)
            else:
                x, pair = block(*given)
            own.append(pair)
        return x, KVCache(tuple(own))


@dataclass(frozen=True)
class Looked(Indexed):
    """The output of the queries for an image alone, and the cache from which text continues."""

    tokens: Tensor  # [B, Q, D]
    past: KVCache


class QFormerText(TextTower):
    """The Q-Former with its queries and words; as a text tower it reads text alone, pooled at its first token ([BOS], the paper's
    [CLS]).

    queries: their number. every: one of this many blocks has a cross-attention. norm: on the tower's tokens first (the paper's norm
    after its ViT); false if the tower ends in one. places: position waves added to the tower's patches, for feature maps of
    convolutions, which have no positions. The last word is [DEC].
    """

    projection = "affine"
    space = "queries"

    def __init__(
        self,
        build: Build,
        *,
        queries: Annotated[int, Field(ge=1)] = 32,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
        every: Annotated[int, Field(ge=1)] = 2,
        activation: Activation = "gelu",
        eps: float = 1e-12,
        norm: bool = True,
        places: bool = False,
    ):
        super().__init__()
        size = build.size
        self.width, self.every = width or size.width, every
        vision, image_width = build.parts.get("vision"), build.width_of("vision")
        build.require(build.tokenizer is not None, "data.tokenizer.kind: lm needs a part 'lm', which brings the words; use bpe")
        self.bos, self.dec = int(build.tokenizer.bos), len(build.tokenizer)
        self.queries = nn.Parameter(torch.randn(queries, self.width) * 0.02)
        self.embedding = nn.Embedding(self.dec + 1, self.width)
        self.positions = nn.Parameter(sinusoids(build.tokenizer.max_length, self.width) * 0.7)
        self.norm = nn.LayerNorm(self.width, eps)
        self.norm_image: nn.Module = nn.LayerNorm(image_width) if norm else nn.Identity()
        self.places: Tensor | None
        self.register_buffer("places", self._waves(build, vision, image_width) if places else None, persistent=False)
        self.transformer = QFormerTransformer(
            self.width, depth or size.depth, heads or size.heads, image_width, every, activation, hidden, eps
        )

    @staticmethod
    def _waves(build: Build, vision: nn.Module | None, width: int) -> Tensor:
        """[extra + N, width]: nothing on class tokens."""
        n, extra = int(vision.tokens), int(getattr(vision, "extra", 0))  # type: ignore[union-attr, arg-type]
        side = int(n**0.5)
        build.require(
            side**2 == n and width % 4 == 0,
            f"places: the tower gives {n} patches {width} wide; it needs a square of patches and a width divisible by 4",
        )
        return F.pad(sincos_2d(side, side, width), (0, 0, extra, 0))

    # --- alone ---

    def forward(self, ids: Tensor, mask: Tensor, captions: object = ()) -> Tokens:
        """ids, mask [B, T] → tokens [B, T, D], pooled [B, D]: the first"""
        x, _ = self.transformer(self.embed(ids), 0, attention_bias(mask, ids.shape[1], False, self.queries))
        return Tokens(x, x[:, 0], mask)

    @provides("{image}.queries", "{image}.tokens")
    def look(self, image: Tokens) -> Looked:
        """The queries over images, without text."""
        x = self.asked(image.tokens.shape[0])
        return Looked(*self.transformer(x, len(self.queries), None, self.shown(image), padding_bias(image.mask)))

    # --- together ---

    def both(self, ids: Tensor, mask: Tensor, image: Tokens) -> tuple[Tensor, Tensor]:
        """Queries [B, Q, D] and text [B, T, D] that see each other."""
        Q = len(self.queries)
        x = torch.cat([self.asked(ids.shape[0]), self.embed(ids)], 1)
        bias = attention_bias(F.pad(mask, (Q, 0), value=True), x.shape[1], False, x)
        x, _ = self.transformer(x, Q, bias, self.shown(image), padding_bias(image.mask))
        return x[:, :Q], x[:, Q:]

    def tell(self, ids: Tensor, mask: Tensor | None, past: KVCache) -> tuple[Tensor, KVCache]:
        """Text [B, L] that sees everything before it, queries first, and itself up to each token: [B, L, D] and the past including
        it.
        """
        x = self.embed(ids, past.length - len(self.queries))
        padding = None if mask is None else padding_bias(F.pad(mask, (past.length, 0), value=True))
        bias = joined(causal_bias(ids.shape[1], past.length, ids.device), padding)
        result: tuple[Tensor, KVCache] = self.transformer(x, 0, bias, past=past)
        return result

    # --- inputs ---

    def asked(self, rows: int) -> Tensor:
        """The queries for a batch, [rows, Q, D]."""
        queries: Tensor = self.norm(self.queries).expand(rows, -1, -1)
        return queries

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """Embeddings of words [B, L] at the positions from ``start`` on: [B, L, D]."""
        x: Tensor = self.norm(self.embedding(ids) + self.positions[start : start + ids.shape[1]])
        return x

    def shown(self, image: Tokens) -> Tensor:
        """The tower's tokens as cross-attention sees them."""
        x: Tensor = self.norm_image(image.tokens)
        return x if self.places is None else x + self.places


def q_former(build: Build) -> QFormerText:
    """The Q-Former that these modes share. DiptychError if the recipe's text part is another."""
    text = build.parts.get("text")
    build.require(isinstance(text, QFormerText), "a mode of the Q-Former; set parts.text.kind: q_former")
    assert isinstance(text, QFormerText)
    return text


class QFormerEncoder(Part):
    """Queries and text together, ``read(ids [B, T], mask [B, T], image) -> Tokens``: the text's tokens, pooled as the mean
    of the queries, since matching averages a linear head's output over all queries. It has no weights of its own.
    """

    borrows = True

    def __init__(self, build: Build):
        super().__init__()
        text = q_former(build)
        self.width = text.width
        self._text = [text]  # in a list: shared, not owned

    @provides("text.fused", "text", "image.tokens")
    def fused(self, text: Texts, image: Tokens) -> Tokens:
        """Text tokens [B, T, D]; pooled: the mean of the queries."""
        return self.read(text.ids, text.mask, image)

    def read(self, ids: Tensor, mask: Tensor, image: Tokens) -> Tokens:
        """ids, mask [B, T], image tokens → text tokens [B, T, D], pooled [B, D]: the mean of the queries"""
        queries, words = self._text[0].both(ids, mask, image)
        return Tokens(words, queries.mean(1), mask)


class QFormerDecoder(Part):
    """Image-grounded text generation: ``tell(ids [B, T], mask [B, T], looked) -> logits [B, T, V]``, row t predicts token t + 1.

    Its own weights are BERT's output layer: a transform, then the tied word vectors. A loss on its logits teaches the queries what
    the text needs, since words see the image only through them.
    """

    borrows = True
    called = ("tell", "start", "step")
    begins_with = "image.queries"
    can = frozenset({"generate", "decoding", "loglikelihood"})
    limited = True

    def __init__(self, build: Build):
        super().__init__()
        text = q_former(build)
        self.width, self.dec = text.width, text.dec
        self._text = [text]
        first = text.transformer.blocks[0]
        self.transform = nn.Linear(self.width, self.width)
        self.activation: nn.Module = copy.deepcopy(first.mlp[1])  # type: ignore[index, assignment]
        self.norm = nn.LayerNorm(self.width, text.norm.eps)
        nn.init.constant_(self.norm.weight, self.width**-0.5)  # word vectors have unit variance: the first logits are of order 1
        self.bias = nn.Parameter(torch.zeros(self.dec))

    @provides("text.logits", "text", "image.queries")
    def logits(self, text: Texts, queries: Looked) -> Tensor:
        """[B, T − 1, V]: row t predicts token t + 1."""
        return self.tell(text.ids, text.mask, queries)[:, :-1]

    def tell(self, ids: Tensor, mask: Tensor, looked: Looked) -> Tensor:
        """ids, mask [B, T], queries → logits [B, T, V]: row t predicts token t + 1"""
        return self._logits(self._text[0].tell(beginning(ids, self.dec), mask, looked.past)[0])

    def start(self, queries: Looked) -> tuple[Tensor, KVCache]:
        """Logits [B, V] over a caption's first token, and the state after [DEC]."""
        return self.step(torch.full((len(queries.tokens),), self.dec, device=queries.tokens.device), queries.past)

    def step(self, ids: Tensor, past: KVCache) -> tuple[Tensor, KVCache]:
        """Logits [B, V] over the token after ``ids`` [B]."""
        x, past = self._text[0].tell(ids[:, None], None, past)
        return self._logits(x[:, -1]), past

    def _logits(self, x: Tensor) -> Tensor:
        words = self._text[0].embedding.weight[: self.dec]  # [DEC] is never generated
        return F.linear(self.norm(self.activation(self.transform(x))), words, self.bias)


class Queries(Part):
    """A connector: the queries [B, Q, D] through a linear layer, as soft prompts of a language model (§3.2)."""

    def __init__(self, build: Build):
        super().__init__()
        text = q_former(build)
        self.tokens, self.width = len(text.queries), build.width_of("lm")
        self.layer = nn.Linear(text.width, self.width)

    @provides("{image}.prefix", "{image}.queries")
    def prefix(self, queries: Looked) -> Tensor:
        """What the language model reads of an image, [B, Q, D]."""
        prefix: Tensor = self(queries.tokens)
        return prefix

    def forward(self, x: Tensor) -> Tensor:
        """[B, Q, D] → [B, Q, D of the language model]"""
        x = self.layer(x)
        return x
