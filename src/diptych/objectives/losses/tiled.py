"""Contrastive losses tile by tile, forward and backward: memory grows with the batch, not with its square.

Each function equals its plain form in ``contrastive`` (tests compare them). A tile of logits is computed, used and
forgotten; the backward pass computes it again. Shapes: M rows (queries), N columns (keys), E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 1024  # rows and columns; 4 MB of logits in float32, which stay in the cache
NO_MEANING = -1  # of hard negatives: they have the meaning of no sample (meanings are not negative)


def tiled_info_nce(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    meaning: Tensor | None = None,
    negatives: Tensor | None = None,
    rows: slice | None = None,
    tile: int = TILE,
) -> Tensor:
    """``contrastive.info_nce`` without its [B, B] matrix."""
    scale = torch.as_tensor(scale, dtype=image.dtype, device=image.device)
    meaning = _if_shared(meaning)
    columns = text if negatives is None else torch.cat([text, negatives])
    column_meaning = meaning
    if meaning is not None and negatives is not None:
        column_meaning = torch.cat([meaning, meaning.new_full((len(negatives),), NO_MEANING)])
    if rows is None:  # one pass serves both directions
        return _cross_entropy(image, columns, scale, 0, True, meaning, column_meaning, tile) / (2 * len(image))
    start, own = rows.start, None if meaning is None else meaning[rows]
    to_text = _cross_entropy(image[rows], columns, scale, start, False, own, column_meaning, tile)
    to_image = _cross_entropy(text[rows], image, scale, start, False, own, meaning, tile)
    loss: Tensor = (to_text + to_image) / (2 * (rows.stop - rows.start))
    return loss


def tiled_sigmoid_sum(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    start: int | None,
    meaning: Tensor | None = None,
    text_meaning: Tensor | None = None,
    tile: int = TILE,
) -> Tensor:
    """``contrastive.sigmoid_sum`` without its [M, N] matrix. The gradient needs no normaliser, so one pass over the tiles gives
    loss and gradient.
    """
    scale, bias = (torch.as_tensor(x, dtype=image.dtype, device=image.device) for x in (scale, bias))
    return _sigmoid_sum(image, text, scale, bias, start, meaning, text_meaning, tile)


def _if_shared(meaning: Tensor | None) -> Tensor | None:
    """``meaning`` if any two rows share one, else None: the tiles then need no mask."""
    return meaning if meaning is not None and len(torch.unique(meaning)) < len(meaning) else None


def _tiles(m: int, n: int, tile: int, cut: int) -> Iterator[tuple[slice, slice]]:
    """Row and column ranges that cover [m, n]; none of them crosses column ``cut``."""
    columns = [slice(j, min(j + tile, stop)) for begin, stop in ((0, cut), (cut, n)) for j in range(begin, stop, tile)]
    for i in range(0, m, tile):
        for column in columns:
            yield slice(i, min(i + tile, m)), column


def _same(rows: slice, columns: slice, start: int | None, a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """[rows, columns] bool, True where two different samples mean the same; row i's own column is ``start`` + i."""
    if a is None or b is None:
        return None
    same = a[rows, None] == b[None, columns]
    _own(same, rows, columns, start).fill_(False)
    return same


def _own(matrix: Tensor, rows: slice, columns: slice, start: int | None) -> Tensor:
    """A view of a tile's entries that pair a row with its own column; empty where the tile holds none."""
    if start is None:
        return matrix[:0, 0]
    first = max(rows.start, columns.start - start)
    last = min(rows.stop, columns.stop - start)
    if last <= first:
        return matrix[:0, 0]
    return matrix[first - rows.start : last - rows.start, first + start - columns.start : last + start - columns.start].diagonal()


class _CrossEntropy(torch.autograd.Function):
    """Σ_i −log softmax(scale · a bᵀ)[i, start + i] over the rows of a; with ``both`` (start 0) also over the first M columns."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        scale: Tensor,
        start: int,
        both: bool,
        same_a: Tensor | None,
        same_b: Tensor | None,
        tile: int,
    ) -> Tensor:
        """The sum over rows, a scalar, tile by tile: only the log-sum-exp of each row (and column) is kept for the gradient."""
        m, n = len(a), len(b)
        row, column = (a.new_full((m,), float("-inf")) for _ in range(2))
        for i, j in _tiles(m, n, tile, m if both else n):
            logits = (a[i] * scale) @ b[j].T
            same = _same(i, j, start, same_a, same_b)
            if same is not None:
                logits.masked_fill_(same, float("-inf"))
            row[i] = torch.logaddexp(row[i], torch.logsumexp(logits, 1))
            if both and j.stop <= m:
                column[j] = torch.logaddexp(column[j], torch.logsumexp(logits, 0))
        own = torch.einsum("md,md->m", a, b[start : start + m]) * scale
        ctx.save_for_backward(a, b, scale, row, column, *(t for t in (same_a, same_b) if t is not None))
        ctx.start, ctx.both, ctx.tile = start, both, tile
        loss = (row - own).sum()
        return loss + (column - own).sum() if both else loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of a, b and scale; the logits of each tile are computed again."""
        a, b, scale, row, column, *same = ctx.saved_tensors
        same_a, same_b = same or (None, None)
        m, n = len(a), len(b)
        for_a, for_b = torch.zeros_like(a), torch.zeros_like(b)  # before the factor scale · grad
        for i, j in _tiles(m, n, ctx.tile, m if ctx.both else n):
            logits = (a[i] * scale) @ b[j].T
            share = (logits - row[i, None]).exp_()
            if ctx.both and j.stop <= m:
                share += logits.sub_(column[None, j]).exp_()
            mask = _same(i, j, ctx.start, same_a, same_b)
            if mask is not None:
                share.masked_fill_(mask, 0.0)
            for_a[i] += share @ b[j]
            for_b[j] += share.T @ a[i]
        own = slice(ctx.start, ctx.start + m)
        for_a.sub_(b[own], alpha=1 + ctx.both)
        for_b[own].sub_(a, alpha=1 + ctx.both)
        for_scale = torch.dot(for_a.view(-1), a.reshape(-1)) * grad  # every logit is scale · (a row of a) · (a row of b)
        return for_a.mul_(grad * scale), for_b.mul_(grad * scale), for_scale, None, None, None, None, None


_cross_entropy: Callable[..., Tensor] = _CrossEntropy.apply  # which torch leaves without types


class _SigmoidSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        start: int | None,
        meaning: Tensor | None,
        text_meaning: Tensor | None,
        tile: int,
    ) -> Tensor:
        """The sum over all pairs, a scalar. The same pass over the tiles computes the gradients."""
        total, for_bias = image.new_zeros(()), image.new_zeros(())
        for_image, for_text = torch.zeros_like(image), torch.zeros_like(text)
        for i, j in _tiles(len(image), len(text), tile, len(text)):
            logits = torch.addmm(bias, image[i] * scale, text[j].T)
            slope = torch.sigmoid(logits)  # of −log σ(z · logit): σ(logit), minus 1 where z = 1
            total -= _own(logits, i, j, start).sum()  # softplus(x) − x is the positive's term
            terms = torch.nn.functional.softplus(logits)
            same = _same(i, j, start, meaning, text_meaning)
            if same is not None:
                terms.masked_fill_(same, 0.0)
                slope.masked_fill_(same, 0.0)
            total += terms.sum()
            _own(slope, i, j, start).sub_(1.0)
            for_image[i] += slope @ text[j]
            for_text[j] += slope.T @ image[i]
            for_bias += slope.sum()
        ctx.save_for_backward(for_image, for_text, torch.dot(for_image.view(-1), image.reshape(-1)), for_bias, scale)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The kept gradients of image, text, scale and bias, times the gradient of the sum."""
        for_image, for_text, for_scale, for_bias, scale = ctx.saved_tensors
        factor = grad * scale
        return for_image * factor, for_text * factor, for_scale * grad, for_bias * grad, None, None, None, None


_sigmoid_sum: Callable[..., Tensor] = _SigmoidSum.apply
