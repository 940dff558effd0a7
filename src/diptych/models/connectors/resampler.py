"""Flamingo's Perceiver resampler: a fixed number of tokens from an image, or from all frames of a clip.

Shapes: B samples, F frames of the longest clip, N tokens per frame, K latents, D width.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens, Videos
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.connectors.base import Connector
from diptych.models.layers.attention import ACTIVATIONS, Activation, Attention
from diptych.models.layers.masks import padding_bias


class Resampler(Connector):
    """Latents that attend to the image and to themselves at once (Flamingo, Alayrac et al. 2022, appendix A.1.1; the defaults are
    its table 5).

    frames: how many learned time embeddings there are; one is added to all tokens of a frame before the frames are joined. An image
    is a clip of one frame. A clip of more frames spreads them over its length, linearly interpolated (as the paper evaluates longer
    clips). 0: none, so that the order of frames has no effect.
    """

    unplaced = True

    def __init__(
        self,
        build: Build,
        *,
        tokens: Annotated[int, Field(ge=1)] = 64,
        depth: Annotated[int, Field(ge=1)] = 6,
        heads: Annotated[int, Field(ge=1)] = 16,
        frames: Annotated[int, Field(ge=0)] = 8,
        activation: Activation = "squared_relu",
    ):
        super().__init__(build)
        width = self.image_width
        build.require(width % heads == 0, f"heads: {heads} does not divide the tower's width {width}")
        self.tokens, self.frames = tokens, frames
        self.latents = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.time = nn.Parameter(torch.randn(frames, width) * 0.02) if frames else None
        self.layers = nn.ModuleList(_ResamplerLayer(width, heads, activation) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.layer = nn.Linear(width, self.width)

    @provides("{video}.prefix", "{video}", "{video}.frames.tokens")
    def clip_prefix(self, video: Videos, frames: Tokens) -> Tensor:
        """What the language model reads of a clip, [B, K, D]; the frames of a clip follow each other, in their order."""
        assert video.owner is not None
        return self(frames.tokens, video.owner)

    def forward(self, x: Tensor, owner: Tensor | None = None) -> Tensor:
        """[n, extra + N, D of the tower] → [B, K, D of the language model].

        owner [n]: the clip that each frame belongs to; None: each is an image of its own, and n is B.
        """
        x = self.patches(x)
        mask: Tensor | None = None
        if owner is None:
            if self.time is not None:
                x = x + self.time[0]
        else:
            x, mask = self._joined(x, owner)
        latents = self.latents.expand(len(x), -1, -1)
        bias = None
        if mask is not None:  # the latents see each other and the frames that there are
            bias = padding_bias(torch.cat([mask, mask.new_ones(len(x), self.tokens)], 1))
        for layer in self.layers:
            latents = layer(latents, x, bias)
        x = self.layer(self.norm(latents))
        return x

    def _joined(self, x: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [n, N, D] as clips [B, F·N, D], each frame with its time embedding, and where they are real, [B, F·N]."""
        lengths = torch.bincount(owner)
        start = lengths.cumsum(0) - lengths
        place = torch.arange(len(owner), device=owner.device) - start[owner]
        if self.time is not None:
            x = x + self._times(place, lengths[owner])[:, None]
        clips = x.new_zeros(len(lengths), int(lengths.max()), *x.shape[1:]).index_put((owner, place), x)
        real = torch.arange(clips.shape[1], device=owner.device) < lengths[:, None]
        return clips.flatten(1, 2), real.repeat_interleave(x.shape[1], 1)

    def _times(self, place: Tensor, length: Tensor) -> Tensor:
        """The time embedding [n, D] of each frame, by its place in a clip of this length."""
        assert self.time is not None
        spread = place * (self.frames - 1) / (length - 1).clamp(min=1)
        at = torch.where(length > self.frames, spread, place.to(spread.dtype))
        low = at.floor().long().clamp(max=self.frames - 1)
        share = (at - low)[:, None].to(self.time.dtype)
        return torch.lerp(self.time[low], self.time[(low + 1).clamp(max=self.frames - 1)], share)


class _ResamplerLayer(nn.Module):
    def __init__(self, width: int, heads: int, activation: str):
        super().__init__()
        self.norm_image, self.norm_latents, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), ACTIVATIONS[activation](), nn.Linear(4 * width, width))

    def forward(self, latents: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Latents [B, K, D] that look at the image's tokens x [B, N, D] and at each other: [B, K, D] (Alayrac et al. 2022, appendix
        A.1.1).
        """
        own = self.norm_latents(latents)
        latents = latents + self.attention(own, torch.cat([self.norm_image(x), own], 1), bias)
        latents = latents + self.mlp(self.norm(latents))
        return latents
