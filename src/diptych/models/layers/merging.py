"""Token merging inside a vision transformer (ToMe, Bolya et al. 2023, arXiv:2210.09461).

Shapes: B batch, N tokens, n patches, e class tokens before them, r tokens that are merged away, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diptych.core.errors import DiptychError

if TYPE_CHECKING:
    from diptych.models.layers.attention import Attention, Block, Transformer


@dataclass(frozen=True)
class Matching:
    """Which tokens of the first set go into which of the second: indices within the sets, [B, …] int64.

    Tokens are in two sets by turns. first: 0 if the first set begins with the first token, 1 if the second does.
    """

    kept: Tensor  # [B, a − r], in order: tokens of the first set that stay
    gone: Tensor  # [B, r]: those that are merged
    target: Tensor  # [B, r]: the token of the second set into which each is merged
    first: int = 0

    def sets(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, …] as the two sets."""
        return v[:, self.first :: 2], v[:, 1 - self.first :: 2]


def match(metric: Tensor, r: int, first: int = 0) -> Matching:
    """Bipartite soft matching (§3.1): each token of the first set finds its most similar one in the second by cosine; the r best
    pairs are merged. metric [B, n, d]; r at most the size of the first set.
    """
    with torch.no_grad():
        unit = F.normalize(metric.float(), dim=-1)
        best, where = (unit[:, first::2] @ unit[:, 1 - first :: 2].transpose(1, 2)).max(-1)
        order = best.argsort(-1, descending=True)
        kept, gone = order[:, r:].sort(-1).values, order[:, :r]
        return Matching(kept, gone, where.gather(1, gone), first)


def rows_of(v: Tensor, index: Tensor) -> Tensor:
    """Rows of v [B, n, D] at an index [B, k]: [B, k, D]."""
    return v.gather(1, index[..., None].expand(-1, -1, v.shape[-1]))


def merged(x: Tensor, size: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """x [B, n, D] and size [B, n, 1], how many patches each token stands for → [B, n − r, D] and sizes: first the tokens that
    stayed, then the second set. A merged token is the mean of its own weighted by their sizes (§3.1).
    """
    first, second = matching.sets(x)
    first_size, second_size = matching.sets(size)
    moved, moved_size = rows_of(first * first_size, matching.gone), rows_of(first_size, matching.gone)
    target = matching.target[..., None]
    total = second_size.scatter_add(1, target, moved_size)
    summed = (second * second_size).scatter_add(1, target.expand_as(moved), moved)
    tokens = torch.cat([rows_of(first, matching.kept), summed / total], 1)
    return tokens, torch.cat([rows_of(first_size, matching.kept), total], 1)


def rates_of(patches: int, depth: int, merge: int, decreasing: bool = False) -> list[int]:
    """How many tokens each block merges away: ``merge`` in each, or from twice as many in the first down to none in the last
    (§4.1), and at most half of those that are left.
    """
    wanted = [merge] * depth
    if decreasing and depth > 1:
        wanted = [int(2 * merge * (depth - 1 - i) / (depth - 1)) for i in range(depth)]
    rates = []
    for r in wanted:
        rates.append(min(r, patches // 2))
        patches -= rates[-1]
    return rates


def least(patches: int, depth: int) -> int:
    """How few tokens are left if each block merges as many as it can."""
    for _ in range(depth):
        patches -= patches // 2
    return patches


def rates_to(patches: int, depth: int, tokens: int) -> list[int] | None:
    """Equal shares of the tokens that must go so that ``tokens`` are left. Earlier blocks take what does not divide, and what later
    ones could not, since a block merges at most half of its tokens. None if that is too many.
    """
    rates, left = [], patches
    for i in range(depth):
        share = -(-(left - tokens) // (depth - i))
        while least(left - share, depth - i - 1) > tokens:
            share += 1
        rates.append(min(share, left // 2))
        left -= rates[-1]
    return rates if left == tokens else None


class Merging:
    """How the blocks of one transformer merge tokens: between attention and MLP, alike by their keys (§3).

    rates: how many go in each block; fixed: class tokens at the front, which stay. proportional: a token that stands for s patches
    counts s times in attention, log s is added to its logits (§3.2, equation 1).
    After a pass, ``sizes`` [B, N, 1] holds how many patches each token stands for, class tokens first (1).
    """

    def __init__(self, rates: Sequence[int], fixed: int = 0, proportional: bool = True):
        self.rates, self.fixed, self.proportional = tuple(rates), fixed, proportional
        self.sizes: Tensor | None = None

    def left(self, patches: int) -> int:
        """How many of this many patches are left at the end."""
        for r in self.rates:
            patches -= min(r, patches // 2)
        return patches

    def bias(self) -> Tensor | None:
        """What is added to the logits of attention over the last pass's tokens, [B, 1, 1, N]; None if nothing is."""
        return None if self.sizes is None or not self.proportional else self.sizes.log().transpose(1, 2)[:, None]

    def mean(self, x: Tensor) -> Tensor:
        """The mean of the patches in x [B, N, D], class tokens first, weighted by the sizes: [B, D]."""
        assert self.sizes is not None
        share = self.sizes[:, self.fixed :].to(x.dtype)
        return (x[:, self.fixed :] * share).sum(1) / share.sum(1)

    def through(self, transformer: Transformer, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """All blocks, without the last norm: x [B, N, D] → [B, N − all rates, D]. The tokens are in the order of the first patch
        that each was before it took in others.
        """
        if bias is not None:
            raise DiptychError("tokens cannot be merged in a tower with masked attention")
        size = torch.ones_like(x[..., :1], dtype=torch.float32)
        place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        self.sizes = None
        for i, (block, r) in enumerate(zip(transformer.blocks, self.rates, strict=True)):
            if transformer.kept is not None and i == len(self.rates) - 1:
                transformer.kept.append(x)
            if transformer.checkpointing and torch.is_grad_enabled():
                x, size, place = checkpoint(self._block, block, x, size, place, r, use_reentrant=False)
            else:
                x, size, place = self._block(block, x, size, place, r)  # type: ignore[arg-type]
        order = place.argsort(1)
        self.sizes = rows_of(size, order)
        return rows_of(x, order)

    def _block(self, block: Block, x: Tensor, size: Tensor, place: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
        """One block: tokens, sizes and places."""
        attention: Attention = block.attention
        inner = block.norm1(x)
        k, v = attention.read(inner)
        bias = size.log().transpose(1, 2)[:, None] if self.proportional else None
        x = x + block.dropout(attention.look(inner, k, v, bias))
        r = min(r, (x.shape[1] - self.fixed) // 2)
        if r > 0:
            e = self.fixed
            matching = match(k.mean(1)[:, e:], r, first=e % 2)  # by turns from the first token of all, a class token included
            tokens, sizes = merged(x[:, e:], size[:, e:], matching)
            first, second = matching.sets(place[:, e:])
            x, size = torch.cat([x[:, :e], tokens], 1), torch.cat([size[:, :e], sizes], 1)
            place = torch.cat([place[:, :e], first.gather(1, matching.kept), second], 1)
        x = x + block.dropout(block.mlp(block.norm2(x)))
        return x, size, place
