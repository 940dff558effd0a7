"""The frames of a clip that matter, as one sequence of tokens (after SMAUG, Lin et al. 2023, arXiv:2211.11446).

Shapes: n frames of all clips, B clips, F frames a clip at most, K of them read, N tokens of a frame, D width.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.core.batch import Tokens, Videos
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.time.clips import by_clip, masked_mean, owners
from diptych.models.time.tokens import ClipTokens
from diptych.models.vision.tubelets import take


def likeness_to_context(x: Tensor, mask: Tensor) -> Tensor:
    """The cosine of each frame's vector and the mean of those of the other frames of its clip: x [B, F, D], mask [B, F] → [B, F]. 0
    for a clip of one frame.
    """
    real = x.float() * mask[..., None]
    others = real.sum(1, keepdim=True) - real
    return F.cosine_similarity(real, others, dim=-1)


class SparseClip(ClipTokens):
    """``ClipTokens`` of a share of the frames, chosen by how much they resemble the others of their clip, in their order.

    share: of a clip's frames, rounded up. by: ``typical``, those that resemble the others most; ``distinct``, least. The choice has
    no gradient, and holds in training and after it.
    """

    def __init__(
        self,
        build: Build,
        *,
        frames: Annotated[int, Field(ge=1)] = 8,
        share: Annotated[float, Field(gt=0, le=1)] = 0.5,
        by: Literal["typical", "distinct"] = "typical",
    ):
        super().__init__(build, frames=frames)
        self.share, self.sign = share, 1.0 if by == "typical" else -1.0

    @provides("{video}.tokens", "{video}.frames.tokens", "{video}")
    def read(self, frames: Tokens, video: Videos) -> Tokens:
        """tokens [B, K·N, D], pooled [B, D] (the mean over the frames that are read), mask [B, K·N]"""
        owner = owners(video, len(frames.pooled), frames.pooled.device)
        pooled, mask = by_clip(frames.pooled, owner, self.frames)
        chosen, real = self.chosen(pooled.detach(), mask)
        tokens, _ = by_clip(frames.tokens, owner, self.frames)
        tokens = take(tokens, chosen) + self.places.to(tokens.dtype)[chosen][:, :, None]
        N = tokens.shape[2]
        return Tokens(tokens.flatten(1, 2), masked_mean(take(pooled, chosen), real), real.repeat_interleave(N, 1))

    def chosen(self, pooled: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The frames that are read, in order, int64 [B, K], and which of them are real, bool [B, K], of frames [B, F, D] with their
        mask [B, F].
        """
        most = math.ceil(self.share * self.frames)
        counts = (self.share * mask.sum(1)).ceil().long()
        likeness = (self.sign * likeness_to_context(pooled, mask)).masked_fill(~mask, -math.inf)
        rank = likeness.argsort(dim=1, descending=True, stable=True).argsort(1)
        place = torch.arange(self.frames, device=mask.device).expand_as(rank)
        read = place.masked_fill(rank >= counts[:, None], self.frames).sort(1).values[:, :most]  # the others at the end
        return read.clamp(max=self.frames - 1), read < self.frames
