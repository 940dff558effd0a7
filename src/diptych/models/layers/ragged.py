"""Image tokens of pictures that have different numbers of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.models.layers.cache import Indexed


@dataclass(frozen=True)
class Ragged(Indexed):
    """A row a picture, padded on the left, so that the last token of each is a real one."""

    tokens: Tensor  # [B, N, D]
    mask: Tensor  # [B, N] bool, False at padding

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def shape(self) -> torch.Size:
        """B, N, D"""
        return self.tokens.shape

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.tokens.device

    def __mul__(self, scale: Tensor) -> Ragged:
        return Ragged(self.tokens * scale, self.mask)

    @property
    def counts(self) -> Tensor:
        """How many tokens each picture has, [B] int64."""
        return self.mask.sum(1)


ImageTokens = Tensor | Ragged  # what a language model reads of pictures: as many vectors of each, or not


def padded(prefix: ImageTokens) -> Tensor:
    """Image tokens [B, N, D], with padding if their numbers differ."""
    return prefix.tokens if isinstance(prefix, Ragged) else prefix


def flat(prefix: ImageTokens) -> Tensor:
    """The real tokens of all pictures one after the other, [n, D] (or [B, N, D] if all have as many)."""
    return prefix.tokens[prefix.mask] if isinstance(prefix, Ragged) else prefix


def behind(before: Tensor, prefix: ImageTokens) -> Tensor:
    """Vectors [B, P, D], and behind them the image tokens: [B, P + N, D]. Padding comes before both, since windows of attention
    count places, not real tokens.
    """
    together = torch.cat([before, padded(prefix).to(before.dtype)], 1)
    if not isinstance(prefix, Ragged):
        return together
    place = torch.arange(together.shape[1], device=together.device)
    moved = place - (~prefix.mask).sum(1, keepdim=True)
    source = torch.where(moved < before.shape[1], moved.clamp_min(0), place)
    return together.gather(1, source[..., None].expand_as(together))


def real(opening: Tensor, prefix: ImageTokens) -> Tensor:
    """Which positions of an opening (``behind``) are real: [B, P + N] bool."""
    if not isinstance(prefix, Ragged):
        return torch.ones(opening.shape[:2], dtype=torch.bool, device=opening.device)
    return torch.arange(opening.shape[1], device=opening.device) >= (~prefix.mask).sum(1, keepdim=True)
