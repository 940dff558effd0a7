"""One embedding for a clip, from those of its frames (CLIP4Clip, Luo et al. 2021; X-CLIP, Ma et al. 2022).

Shapes: n frames of all clips, B clips, F frames a clip at most, E embedding.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens, Videos
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.layers.attention import Transformer
from diptych.models.layers.masks import padding_bias
from diptych.models.part import Part
from diptych.models.space import unit
from diptych.models.time.clips import by_clip, masked_mean, owners

Way = Literal["mean", "lstm", "transformer"]


class FrameEmbeddings(Part):
    """The frames in the shared space, read in their order, and their mean.

    way: ``mean``: as they are, without parameters, so that the order has no effect; ``lstm`` and ``transformer``: what an LSTM, or
    a transformer with learned places in time, makes of them is added to them (Luo et al. 2021, §3.3: the parameter-free and the
    sequential type). The embedding of a clip is the mean of its frames' unit vectors, of unit length. depth: layers of the
    transformer. frames: places, and the largest number of frames of a clip.
    """

    replicated = ("places",)

    def __init__(
        self,
        build: Build,
        *,
        way: Way = "transformer",
        depth: Annotated[int, Field(ge=1)] = 4,
        heads: Annotated[int, Field(ge=1)] | None = None,
        frames: Annotated[int, Field(ge=1)] = 12,
    ):
        super().__init__()
        self.width, self.frames, self.way = build.embed_dim, frames, way
        heads = heads or build.size.heads
        build.require(self.width % heads == 0, f"heads: {heads} does not divide the width of the shared space, {self.width}")
        if way == "transformer":
            self.places = nn.Parameter(torch.randn(frames, self.width) * 0.01)
            self.transformer = Transformer(self.width, depth, heads, activation=build.size.activation)
        elif way == "lstm":
            self.lstm = nn.LSTM(self.width, self.width, batch_first=True)

    @provides("{video}.frame_embedding", "{video}.frames.projection", "{video}")
    def frame_embedding(self, projected: Tensor, video: Videos) -> Tokens:
        """Unit vectors of the frames, [B, F, E], zeros where a clip has ended, and their mean, [B, E], of unit length."""
        owner = owners(video, len(projected), projected.device)
        frames: Tokens = self(*self._clips(projected, owner))
        return frames

    @provides("{video}.reversed_embedding", "{video}.frames.projection", "{video}")
    def reversed_embedding(self, projected: Tensor, video: Videos) -> Tensor:
        """``embedding`` of each clip with its frames in the reverse order, [B, E]."""
        owner = owners(video, len(projected), projected.device)
        backwards: Tokens = self(*self._clips(projected.flip(0), owner.flip(0).max() - owner.flip(0)))
        return backwards.pooled.flip(0)

    @provides("{video}.embedding", "{video}.frame_embedding")
    def embedding(self, frames: Tokens) -> Tensor:
        """[B, E]"""
        return frames.pooled

    def _clips(self, x: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        return by_clip(x, owner, self.frames)

    def forward(self, x: Tensor, mask: Tensor) -> Tokens:
        """x [B, F, E], mask [B, F] bool → tokens [B, F, E] of unit length, pooled [B, E]"""
        if self.way == "transformer":
            x = x + self.transformer(x + self.places, padding_bias(mask)).float()
        elif self.way == "lstm":
            x = x + self.lstm(x)[0].float()  # a clip's frames come first: what follows them changes nothing
        tokens = unit(x) * mask[..., None]
        return Tokens(tokens, unit(masked_mean(tokens, mask)), mask)
