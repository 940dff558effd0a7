"""All tokens of all frames of a clip as one sequence, for parts that attend to them (COSA, Chen et al. 2024, §3.2).

Shapes: n frames of all clips, B clips, F frames a clip at most, N tokens of a frame, D width.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from diptych.core.batch import Tokens, Videos
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.part import Part
from diptych.models.time.clips import by_clip, masked_mean, owners


class ClipTokens(Part):
    """The tokens of the frames, each with the learned vector of its frame's place in the clip.

    frames: places, and the largest number of frames of a clip.
    """

    replicated = ("places",)

    def __init__(self, build: Build, *, frames: Annotated[int, Field(ge=1)] = 8):
        super().__init__()
        self.width, self.frames = build.width_of("vision"), frames
        self.places = nn.Parameter(torch.randn(frames, self.width) * 0.02)

    @provides("{video}.tokens", "{video}.frames.tokens", "{video}")
    def read(self, frames: Tokens, video: Videos) -> Tokens:
        """tokens [B, F·N, D], pooled [B, D] (the mean over frames, without their places), mask [B, F·N]"""
        owner = owners(video, len(frames.pooled), frames.pooled.device)
        tokens, mask = by_clip(frames.tokens, owner, self.frames)
        pooled, _ = by_clip(frames.pooled, owner, self.frames)
        places = self.places.to(tokens.dtype)
        B, F, N, D = tokens.shape
        tokens = (tokens + places[:, None]).reshape(B, F * N, D)
        return Tokens(tokens, masked_mean(pooled, mask), mask.repeat_interleave(N, 1))
