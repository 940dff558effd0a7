"""Maps from recorded attentions, activations and their gradients.

Shapes: B pictures, H heads, L tokens of a tower, n queries of a pooling layer, D width. Attention matrices are [B, H, to, from],
rows sum to 1. Everything is computed in the precision of what is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    """How much of each token is in each token at the end, [B, L, L]: the product over layers of half the mean over heads and half
    the identity (Abnar & Zuidema 2020, section 3: attention rollout).
    """
    flow = _identity(attentions[0])
    for attention in attentions:
        flow = 0.5 * (attention.mean(1) @ flow + flow)
    return flow


def relevance(attentions: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """The relevance of each token for each token at the end, [B, L, L]: R ← R + mean over heads of (gradient ⊙ attention)⁺ · R,
    from R = 1 on (Chefer, Gur & Wolf 2021, arXiv:2103.15679, equations 5 and 6).
    """
    flow = _identity(attentions[0])
    for attention, gradient in zip(attentions, gradients, strict=True):
        flow = flow + weighted(attention, gradient) @ flow
    return flow


def weighted(attention: Tensor, gradient: Tensor) -> Tensor:
    """The mean over heads of the positive part of gradient ⊙ attention, [B, to, from] (Chefer et al., equation 5)."""
    return (gradient * attention).clamp(min=0).mean(1)


def legrad(gradients: Sequence[Tensor]) -> Tensor:
    """[B, L]: the positive part of the gradient of the score at each attention matrix, its mean over heads and rows, summed over
    layers (after LeGrad, Bousselham et al. 2024, arXiv:2404.03214, section 3; there each layer has a score of its own, here all
    have that of the last).
    """
    return torch.stack([gradient.clamp(min=0).mean((1, 2)) for gradient in gradients]).sum(0)


def grad_cam(tokens: Tensor, gradient: Tensor) -> Tensor:
    """[B, L]: the positive part of the sum over channels of each token's activation times the mean of the channel's gradient over
    all tokens (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2). tokens, gradient [B, L, D].
    """
    return torch.einsum("bld,bd->bl", tokens, gradient.mean(1)).clamp(min=0)


def cross_attention(attention: Tensor, gradient: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, S]: attention from a text's tokens to the S tokens of a picture times the positive part of its gradient, the mean over
    heads and real words (Grad-CAM of cross-attention; Li et al. 2021, ALBEF, arXiv:2107.07651, section 6.1). attention [B, H, T,
    S]; mask [B, T] bool.
    """
    each = (attention * gradient.clamp(min=0)).mean(1)
    if mask is None:
        return each.mean(1)
    return (each * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def word_patches(patches: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """[B, N]: the mean over a text's words of the cosine of each patch and the word, the similarities of FILIP's late interaction
    (Yao et al. 2022, section 3.1). patches [B, N, E], words [B, T, E] of any length, mask [B, T] bool.
    """
    cosines = F.normalize(words, dim=-1) @ F.normalize(patches, dim=-1).transpose(1, 2)
    return _of_words(cosines, mask)


def grouped_weights(patches: Tensor, words: Tensor, mask: Tensor, threshold: float | None = None) -> Tensor:
    """[B, N]: the mean over a text's words of the weight of each patch in the word's group (SPARC, Bica et al. 2024, section 3.2):
    dot products scaled to 0 … 1, those below the threshold (None: 1/N) 0, the rest divided by their sum.
    """
    similarity = words @ patches.transpose(1, 2)
    least, most = similarity.amin(2, keepdim=True), similarity.amax(2, keepdim=True)
    scaled = (similarity - least) / (most - least).clamp(min=1e-12)
    kept = scaled * (scaled >= (threshold or 1 / patches.shape[1]))
    return _of_words(kept / kept.sum(2, keepdim=True).clamp(min=1e-12), mask)


def mixture(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """[B, K]: how much of each mixture token is in the image's embedding for a text, the mean over heads (Llip, Lavoie et al. 2024,
    section 3.2). query [B, H, d], key [B, H, K, d].
    """
    return torch.softmax(torch.einsum("bhd,bhkd->bhk", query, key) / temperature, -1).mean(1)


def _of_words(values: Tensor, mask: Tensor) -> Tensor:
    real = mask.to(values.dtype)
    return torch.einsum("btn,bt->bn", values, real) / real.sum(1, keepdim=True).clamp(min=1)


def _identity(attention: Tensor) -> Tensor:
    size = attention.shape[-1]
    return torch.eye(size, dtype=attention.dtype, device=attention.device).expand(attention.shape[0], size, size)
