"""Language-grouped patches: each caption token gathers the patches that fit it, and must be distinguished from the caption's other
tokens.

SPARC (Bica et al. 2024, §3.2). Shapes: B batch, N image tokens, T text tokens, E embedding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core.encodings import TEXT
from diptych.core.errors import DiptychError
from diptych.objectives.base import Scaled

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def grouped_patches(image: Tensor, text: Tensor, threshold: float | None = None) -> Tensor:
    """One image vector for each caption token: image [B, N, E], text [B, T, E] → [B, T, E].

    Similarities of a token to all patches are scaled to 0 … 1 by their least and greatest, those below ``threshold`` (None: 1/N)
    become 0, and the rest, normalised to a sum of 1, are the weights of the patches.
    """
    similarity = text @ image.transpose(1, 2)  # [B, T, N]
    least, most = similarity.amin(2, keepdim=True), similarity.amax(2, keepdim=True)
    similarity = (similarity - least) / (most - least).clamp(min=1e-12)
    kept = similarity.masked_fill(similarity < (threshold or 1 / image.shape[1]), 0.0)
    return kept / kept.sum(2, keepdim=True).clamp(min=1e-12) @ image


def grouped_loss(groups: Tensor, text: Tensor, mask: Tensor, scale: Tensor | float) -> Tensor:
    """Each token against the groups of its own caption, and each group against its tokens: the mean over samples of the mean over
    real tokens.

    groups, text [B, T, E] (made unit vectors here); mask [B, T] bool, True at the tokens that count; scale: 1 / temperature.
    """
    logits = scale * F.normalize(groups, dim=-1) @ F.normalize(text, dim=-1).transpose(1, 2)  # [B, T groups, T tokens]
    to_tokens = logits.masked_fill(~mask[:, None, :], -math.inf)
    to_groups = logits.transpose(1, 2).masked_fill(~mask[:, None, :], -math.inf)
    own = logits.diagonal(dim1=1, dim2=2)  # [B, T]
    losses = (torch.logsumexp(to_tokens, 2) + torch.logsumexp(to_groups, 2)) / 2 - own
    return ((losses * mask).sum(1) / mask.sum(1)).mean()


class GroupedTokens(Scaled):
    """SPARC's fine-grained loss, within each sample; used together with ``info_nce``, which compares whole images and captions.

    All real tokens of a caption count, [BOS] and [EOS] among them; padding does not.
    threshold: the least similarity of a patch in a token's group; None: 1 / the number of patches, as in the paper.
    scale_of: the name of an objective with a learned scale, which this one then uses too; the paper has one inverse temperature for
    both losses. "": a scale of its own, from ``temperature`` (None: 0.07), never above ``max_scale`` (None: 100).
    """

    needs = ("image.projected", "text.projected", "text")

    def __init__(
        self,
        model: VLM,
        *,
        temperature: float | None = None,
        max_scale: float | None = None,
        threshold: float | None = None,
        scale_of: str = "",
    ):
        given = {"temperature": temperature, "max_scale": max_scale}
        if scale_of and (idle := [name for name, value in given.items() if value is not None]):
            raise DiptychError(
                f"objective grouped_tokens: {' and '.join(idle)} would have no effect, since scale_of takes the scale of "
                f'{scale_of}; set it there ({scale_of}.{idle[0]}), or scale_of: ""'
            )
        super().__init__(model, **{name: value for name, value in given.items() if value is not None})
        self.threshold, self.scale_of = threshold, scale_of

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        image, text = p["image.projected"], p["text.projected"]
        with torch.autocast(image.device.type, enabled=False):
            return grouped_loss(grouped_patches(image, text, self.threshold), text, p[TEXT].mask, self.scale)
