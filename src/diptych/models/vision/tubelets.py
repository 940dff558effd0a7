"""A vision tower of whole clips: tokens of a few frames at once (VideoMAE, Tong et al. 2022, arXiv:2203.12602, §3.3; ViViT's
tubelets).

Shapes: B clips, F frames, t frames and p × p pixels of a tubelet, N = F/t · (H/p) · (W/p) tokens, D width, K kept tokens.
"""

from __future__ import annotations

from typing import Annotated, Unpack

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens, Videos
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.layers.attention import Activation, Sizes, Transformer
from diptych.models.part import Part
from diptych.models.time.clips import owners, read_frames


def alternating_waves(length: int, width: int) -> Tensor:
    """Fixed positions [length, width]: sin and cos in turn, of the same frequency for each pair (Vaswani et al. 2017, §3.5), over
    all tokens of a clip in one sequence, as VideoMAE has them.
    """
    pair = torch.arange(width, dtype=torch.float64) // 2
    angles = torch.arange(length, dtype=torch.float64)[:, None] / 10_000 ** (2 * pair / width)
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos()).float()


def cut(clips: Tensor, tubelet: int, patch: int) -> Tensor:
    """Clips [B, F, 3, H, W] as tubelets [B, N, 3, t, p, p], in the order time, row, column."""
    B, frames, channels, height, width = clips.shape
    x = clips.reshape(B, frames // tubelet, tubelet, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(1, 3)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens [B, N, …] at ``index`` [B, K]: [B, K, …]."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


class TubeletViT(Part):
    """A vision transformer over tubelets, read by joint attention in space and time; fixed positions; a clip is the mean of its
    tokens.

    frames: how many of a clip are read, evenly spread (``read_frames``); of a shorter clip some are read several times. tubelet: of
    so many frames is a token; patch: and of so many pixels a side. bare: tokens are returned before the last norm, the mean after
    it (as in VideoMAE's classifier). ``Videos.keep`` names the only tokens that are read.
    """

    projection = "linear"
    extra = 0

    def __init__(
        self,
        build: Build,
        *,
        frames: Annotated[int, Field(ge=1)] = 8,
        tubelet: Annotated[int, Field(ge=1)] = 2,
        patch: Annotated[int, Field(ge=1)] | None = None,
        activation: Activation = "gelu",
        eps: float = 1e-12,
        bare: bool = False,
        **sizes: Unpack[Sizes],
    ):
        super().__init__()
        size = build.size
        self.width = sizes.get("width") or size.width
        self.patch = patch or (4 if build.image_size < 128 else 16)
        build.require(
            build.image_size % self.patch == 0, f"image_size {build.image_size} is not a multiple of the patch size {self.patch}"
        )
        build.require(frames % tubelet == 0, f"frames {frames} is not a multiple of tubelet {tubelet}")
        self.frames, self.tubelet, self.grid = frames, tubelet, build.image_size // self.patch
        self.times = frames // tubelet
        self.all_tokens = self.times * self.grid**2  # of a clip
        self.tokens = self.grid**2 // tubelet  # of a frame, by which the tokens of a batch are counted
        self.stem = nn.Linear(3 * tubelet * self.patch**2, self.width)
        self.positions: Tensor
        self.register_buffer("positions", alternating_waves(self.all_tokens, self.width), persistent=False)
        self.heads, self.eps = sizes.get("heads") or size.heads, eps
        self.transformer = Transformer(
            self.width,
            sizes.get("depth") or size.depth,
            self.heads,
            activation=activation,
            hidden=sizes.get("hidden"),
            eps=eps,
            bare=bare,
        )

    def shown(self, video: Videos) -> Tensor:
        """The frames that are read of each clip, [B, F, 3, H, W] in [−1, 1]."""
        pixels = video.frames.floats
        return pixels[read_frames(owners(video, len(pixels), pixels.device), self.frames)]

    @provides("{video}.tokens", "{video}")
    def encode(self, video: Videos) -> Tokens:
        """tokens [B, N or K, D], in the order time, row, column; pooled [B, D]. DiptychError for frames without some patches."""
        if video.frames.keep is not None:
            raise DiptychError(
                "parts.vision: {kind: tubelets} reads whole frames; set patch_dropout: 0; the objective masked_tubes hides tokens"
            )
        tokens: Tokens = self(self.shown(video), video.keep)
        return tokens

    @provides("{video}.reversed_tokens", "{video}")
    def reversed_tokens(self, video: Videos) -> Tokens:
        """``encode`` of each clip with its frames in the reverse order."""
        tokens: Tokens = self(self.shown(video).flip(1))
        return tokens

    def forward(self, clips: Tensor, keep: Tensor | None = None) -> Tokens:
        """clips [B, F, 3, H, W] in [−1, 1], keep [B, K] int64 → tokens [B, N or K, D] and their mean"""
        x, places = cut(clips, self.tubelet, self.patch).flatten(2), self.positions
        if keep is not None:
            x, places = take(x, keep), places[keep]
        x = self.transformer(self.stem(x) + places)
        pooled = x.mean(1)
        return Tokens(x, self.transformer.norm(pooled) if self.transformer.bare else pooled)
