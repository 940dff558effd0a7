"""Contrast with a momentum copy of the encoders (He et al. 2020, MoCo): its embeddings are the keys, its similarities soften the
targets, and a queue keeps those of earlier batches (ALBEF, Li et al. 2021, §3.4; BLIP, Li et al. 2022, §3.2).

Shapes: B batch, E embedding, R the rows that this process computes, N entries of the queue, K = B + N keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNKNOWN = -1  # the meaning of a caption whose source gives none; meanings are never negative


def soft_targets(logits: Tensor, own: Tensor, alpha: float) -> Tensor:
    """α · softmax(logits) + (1 − α) · one-hot, of logits [R, K]; own [R]: the column of each row's own partner."""
    return alpha * torch.softmax(logits, 1) + (1 - alpha) * F.one_hot(own, logits.shape[1]).to(logits.dtype)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−Σ_k targets · log softmax(logits), averaged over the rows of [R, K]. Columns with a logit of −∞ must have the target 0."""
    log_p = torch.log_softmax(logits, 1)
    return -(targets * log_p.masked_fill(targets == 0, 0.0)).sum(1).mean()


def momentum_info_nce(
    image: Tensor,
    text: Tensor,
    image_keys: Tensor,
    text_keys: Tensor,
    scale: Tensor,
    alpha: float,
    meaning: Tensor | None = None,
    key_meaning: Tensor | None = None,
    rows: slice | None = None,
) -> Tensor:
    """Half the sum of both directions' cross-entropy, an image against the momentum texts and a text against the momentum images,
    with the targets that the momentum encoders' own similarities soften.

    image, text: [B, E] unit vectors that learn; image_keys, text_keys: [K, E] unit vectors of the momentum encoders, the batch's
    first; scale: 1 / temperature, of the targets too; alpha: the share of the soft targets. meaning [B], key_meaning [K]: keys that
    mean the same as a row's partner, but are not it, are left out of both softmaxes. rows: as for ``info_nce``.
    """
    own = slice(0, len(image)) if rows is None else rows
    target = torch.arange(own.start, own.stop, device=image.device)
    same = None
    if meaning is not None and key_meaning is not None:
        same = meaning[own, None] == key_meaning
        same[torch.arange(len(target), device=same.device), target] = False
    image_keys, text_keys = image_keys.detach(), text_keys.detach()
    losses = []
    for queries, of_copy, keys in ((image, image_keys, text_keys), (text, text_keys, image_keys)):
        logits, taught = scale * queries[own] @ keys.T, scale.detach() * of_copy[own] @ keys.T  # [R, K]
        if same is not None:
            logits, taught = (x.masked_fill(same, float("-inf")) for x in (logits, taught))
        losses.append(soft_cross_entropy(logits, soft_targets(taught, target, alpha)))
    return (losses[0] + losses[1]) / 2


class FeatureQueue(nn.Module):
    """The last ``size`` pairs of momentum embeddings, with what their captions mean. All of it is in checkpoints.

    Before it is full it has fewer entries; the authors' programs fill it with random vectors first.
    """

    image: Tensor
    text: Tensor
    meaning: Tensor
    count: Tensor

    def __init__(self, size: int, width: int):
        super().__init__()
        self.register_buffer("image", torch.zeros(size, width))
        self.register_buffer("text", torch.zeros(size, width))
        self.register_buffer("meaning", torch.full((size,), UNKNOWN))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))  # of pairs so far

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Image and text embeddings [n, E] and meanings [n] of the pairs it holds, in no particular order. They are copies: the
        queue may go on before a gradient is computed.
        """
        n = min(int(self.count), len(self.meaning))
        return self.image[:n].clone(), self.text[:n].clone(), self.meaning[:n].clone()

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor, meaning: Tensor | None) -> None:
        """Add pairs [B, E], in place of the oldest ones. meaning: [B]; None: unknown."""
        size, n = len(self.meaning), len(image)
        meaning = torch.full((n,), UNKNOWN, device=image.device) if meaning is None else meaning
        kept = min(n, size)
        places = (int(self.count) + torch.arange(n - kept, n, device=image.device)) % size
        for held, new in ((self.image, image), (self.text, text), (self.meaning, meaning)):
            held[places] = new[n - kept :].to(held.dtype)
        self.count += n
