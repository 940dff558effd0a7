"""Attention and transformer blocks, shared by every tower.

Shapes: B batch, L queries, S keys, D width, H heads. Blocks normalise before each step (Xiong et al. 2020) unless ``post_norm`` is
set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.models.layers.cache import KVCache, Pair, appended
from diptych.models.layers.masks import attention_bias, causal_bias, joined

if TYPE_CHECKING:
    from diptych.models.layers.merging import Merging

WRITTEN_OUT = 2**19  # up to this many entries of a head's attention matrix, the products are computed separately in bf16 on a CPU


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q kᵀ/√d + bias) v for [B, H, L, d] and [B, H, S, d]; ``bias`` broadcasts to [B, H, L, S].

    The only place that chooses an implementation, from the measurements in docs/benchmarks.md (case ``attention``): torch's fused
    kernel, except in bf16 on a CPU below about 700 tokens, where its backward pass is slow and separate products take 0.14 to 0.95
    of its time.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[-2] * k.shape[-2] > WRITTEN_OUT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
    return attend_plainly(q, k, v, bias)


def attend_plainly(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """``attend`` as separate products."""
    logits = (q * (q.shape[-1] ** -0.5)) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return torch.softmax(logits, dim=-1) @ v


class Sizes(TypedDict, total=False):
    """A transformer's sizes; None or missing: those of the recipe's ``size``. hidden: width of the blocks' MLPs."""

    width: int | None
    depth: int | None
    heads: int | None
    hidden: int | None


class Attention(nn.Module):
    """Multi-head attention; with ``context`` given to ``forward`` it is cross-attention."""

    def __init__(self, width: int, heads: int, context_width: int | None = None):
        super().__init__()
        assert width % heads == 0, (width, heads)
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(context_width or width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x [B, L, D], context [B, S, context width] or None for x itself → [B, L, D]"""
        return self.look(x, *self.read(x if context is None else context), bias)

    def read(self, context: Tensor) -> Pair:
        """Keys and values, [B, H, S, d] each."""
        k, v = self.kv(context).view(*context.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return k, v

    def look(self, x: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """``forward`` with keys and values that have been read."""
        B, L, D = x.shape
        q = self.q(x).view(B, L, self.heads, -1).transpose(1, 2)  # [B, H, L, d]
        out: Tensor = self.out(attend(q, k, v, bias).transpose(1, 2).reshape(B, L, D))
        return out


class QuickGELU(nn.Module):
    """x σ(1.702 x), the approximation that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * torch.sigmoid(1.702 * x)


class SquaredReLU(nn.Module):
    """max(x, 0)² (So et al. 2021, Primer; Flamingo's)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "squared_relu": SquaredReLU,
}
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "squared_relu"]


class Block(nn.Module):
    """Self-attention, cross-attention if there is a context, and an MLP, each added to the residual stream.

    hidden: width of the MLP; None: four times the stream's. dropout: on what each adds (residual dropout, Vaswani et al. 2017,
    §5.4).
    post_norm: normalise the sum, as in BERT, instead of the input of each.
    """

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
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = nn.LayerNorm(width, eps)
        self.attention = Attention(width, heads)
        self.cross = Attention(width, heads, context_width) if context_width else None
        self.norm_cross = nn.LayerNorm(width, eps) if context_width else None
        self.norm2 = nn.LayerNorm(width, eps)
        hidden = hidden or 4 * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(
        self, x: Tensor, bias: Tensor | None = None, context: Tensor | None = None, context_bias: Tensor | None = None
    ) -> Tensor:
        """x [B, L, D], context [B, S, context width] → [B, L, D]"""
        look = self.cross if context is not None else None
        if self.post_norm:
            x = self.norm1(x + self.dropout(self.attention(x, bias=bias)))
            if look is not None and self.norm_cross is not None:
                x = self.norm_cross(x + self.dropout(look(x, context, context_bias)))
            x = self.norm2(x + self.dropout(self.mlp(x)))
            return x
        x = x + self.dropout(self.attention(self.norm1(x), bias=bias))
        if look is not None and self.norm_cross is not None:
            x = x + self.dropout(look(self.norm_cross(x), context, context_bias))
        x = x + self.dropout(self.mlp(self.norm2(x)))
        return x

    def step(
        self, x: Tensor, own: Pair | None, seen: Pair | None, bias: Tensor | None, seen_bias: Tensor | None
    ) -> tuple[Tensor, Pair]:
        """``forward`` of the next tokens [B, L, D] after those in ``own``, and the keys and values including them."""

        def of_itself(x: Tensor) -> Tensor:
            """Self-attention of the new tokens over the earlier ones and themselves; adds their keys and values to ``own``."""
            nonlocal own
            own = appended(own, *self.attention.read(x))
            return self.attention.look(x, *own, bias)

        if self.post_norm:
            x = self.norm1(x + of_itself(x))
            if self.cross is not None and self.norm_cross is not None and seen is not None:
                x = self.norm_cross(x + self.cross.look(x, *seen, seen_bias))
            x = self.norm2(x + self.mlp(x))
        else:
            x = x + of_itself(self.norm1(x))
            if self.cross is not None and self.norm_cross is not None and seen is not None:
                x = x + self.cross.look(self.norm_cross(x), *seen, seen_bias)
            x = x + self.mlp(self.norm2(x))
        assert own is not None
        return x, own


class Transformer(nn.Module):
    """A stack of blocks and a last norm. bare: the output is not normalised; others then apply the norm (FLAVA).

    ``checkpointing`` (set by the stage that trains): keep only the blocks' inputs and compute the rest again in the backward pass
    (Chen et al. 2016), dropout included.
    """

    checkpointing = False
    kept: list[Tensor] | None = None  # a list takes what the last block reads (dense features)
    merging: Merging | None = None  # blocks merge tokens (adapter ``tome``)
    block: type[Block] = Block

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        context_width: int | None = None,
        activation: str = "gelu",
        dropout: float = 0.0,
        hidden: int | None = None,
        eps: float = 1e-5,
        post_norm: bool = False,
        bare: bool = False,
    ):
        super().__init__()
        self.bare = bare
        blocks = [self.block(width, heads, context_width, activation, dropout, hidden, eps, post_norm) for _ in range(depth)]
        for block in blocks:  # GPT-2's scaling: the scale of the stream does not depend on the depth
            for layer in (block.attention.out, block.mlp[2]):
                assert isinstance(layer, nn.Linear)
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * max(depth, 1)) * math.sqrt(1024 / width))
                nn.init.zeros_(layer.bias)
        self.blocks = nn.ModuleList(blocks)
        self.norm: nn.Module = nn.Identity() if post_norm else nn.LayerNorm(width, eps)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        context: Tensor | None = None,
        context_bias: Tensor | None = None,
        before: Callable[[int, Tensor, Tensor | None], tuple[Tensor, Tensor | None]] | None = None,
    ) -> Tensor:
        """x [B, L, D], context [B, S, context width] → [B, L, D]. before: gives the tokens and the bias that a block reads, from
        its number, counted from 0, and those that the block before it left (``layers.insertion``).
        """
        if self.merging is not None:
            assert before is None and context is None, "tokens that are merged have no vectors of adapters among them"
            x = self.merging.through(self, x, bias)
            return x if self.bare else self.norm(x)
        for i, block in enumerate(self.blocks):
            if before is not None:
                x, bias = before(i, x, bias)
            if self.kept is not None and i == len(self.blocks) - 1:
                self.kept.append(x)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, bias, context, context_bias, use_reentrant=False)
            else:
                x = block(x, bias, context, context_bias)
        return x if self.bare else self.norm(x)

    def start(self, context: Tensor | None = None) -> KVCache:
        """The empty cache, with the context that cross-attention looks at [B, S, context width]."""
        return KVCache(cross=() if context is None else tuple(block.cross.read(context) for block in self.blocks))  # type: ignore[union-attr, operator]

    def step(
        self, x: Tensor, past: KVCache, bias: Tensor | None = None, context_bias: Tensor | None = None
    ) -> tuple[Tensor, KVCache]:
        """The next tokens [B, L, D] of a causal stream, without dropout: the last L rows of what ``forward`` gives for the whole of
        it.

        bias: [B or 1, 1, L or 1, past and L], if some of the past may not be seen; the L new tokens see each other causally in any
        case.
        """
        bias = joined(bias, causal_bias(x.shape[1], past.length, x.device))
        own: list[Pair] = []
        for i, block in enumerate(self.blocks):
            x, pair = block.step(  # type: ignore[operator]
                x, past.own[i] if past.own else None, past.cross[i] if past.cross else None, bias, context_bias
            )
            own.append(pair)
        return x if self.bare else self.norm(x), KVCache(tuple(own), past.cross)


class AttentionPool(nn.Module):
    """Learned queries that read a sequence: ``n`` tokens from any number (CoCa's attentional pooler). norm_queries: normalise the
    queries, too.
    """

    def __init__(self, width: int, heads: int, n: int, context_width: int | None = None, norm_queries: bool = False):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(n, width) * width**-0.5)
        self.norm = nn.LayerNorm(context_width or width)
        self.norm_queries: nn.Module = nn.LayerNorm(width) if norm_queries else nn.Identity()
        self.attention = Attention(width, heads, context_width)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x [B, N, context width], bias [B, 1, 1, N] added to the logits → [B, n, width]"""
        queries = self.norm_queries(self.queries).expand(x.shape[0], -1, -1)
        bias = joined(attention_bias(mask, len(self.queries), False, x), bias)
        out: Tensor = self.norm_out(self.attention(queries, self.norm(x), bias))
        return out


class CascadePool(nn.Module):
    """CoCa's two attentional poolers in a row (Yu et al. 2022, §3.2): ``tokens``, a pooler with ``n`` queries whose output a
    decoder looks at, and ``pooled``, one with a single query that reads the output of the first.

    Queries are normalised, as open_clip's are: small ones look at all patches alike, and the tokens would start almost equal.
    """

    def __init__(self, width: int, heads: int, n: int):
        super().__init__()
        self.tokens = AttentionPool(width, heads, n, norm_queries=True)
        self.pooled = AttentionPool(width, heads, 1, norm_queries=True)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, N, D], bias as of ``AttentionPool`` → tokens [B, n, D] and pooled [B, D]"""
        tokens = self.tokens(x, bias=bias)
        return tokens, self.pooled(tokens)[:, 0]


class MapPool(nn.Module):
    """One learned query that reads a sequence, then an MLP (SigLIP's pooling; the "MAP head" of Zhai et al. 2022, Scaling Vision
    Transformers).
    """

    def __init__(self, width: int, heads: int, activation: str = "gelu", hidden: int | None = None, eps: float = 1e-5):
        super().__init__()
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.attention = Attention(width, heads)
        self.norm = nn.LayerNorm(width, eps)
        hidden = hidden or 4 * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, width))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [B, N, D], bias [B, 1, 1, N] added to the logits → [B, 1, D]"""
        x = self.attention(self.query.expand(x.shape[0], 1, -1), x, bias)
        x = x + self.mlp(self.norm(x))
        return x
