"""What a language model reads of a clip: all frames of a clip as a fixed number of tokens.

Shapes: n frames of all clips, B clips, T frames of a clip that are read, N patches of a frame, D width.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens, Videos
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.connectors.base import Connector, perceptron
from diptych.models.layers.attention import Transformer
from diptych.models.time.clips import owners, read_frames

Frames = Annotated[int, Field(ge=1)]


class ClipConnector(Connector):
    """Base class: ``forward(tokens [B, T, N, D], pooled [B, T, D]) -> [B, tokens, D of the language model]``. A picture is a clip
    of one frame. frames: how many of a clip are read (``read_frames``).
    """

    def __init__(self, build: Build, frames: int):
        super().__init__(build)
        self.frames = frames

    @provides("{video}.prefix", "{video}", "{video}.frames.tokens")
    def clip_prefix(self, video: Videos, frames: Tokens) -> Tensor:
        """What the language model reads of a clip, [B, tokens, D]."""
        return self._read(frames, owners(video, len(frames.pooled), frames.pooled.device))

    def prefix(self, image: Tokens) -> Tensor:
        """What the language model reads of a picture, [B, tokens, D]."""
        return self._read(image, torch.arange(len(image.pooled), device=image.pooled.device))

    def _read(self, frames: Tokens, owner: Tensor) -> Tensor:
        rows = read_frames(owner, self.frames)
        return self(self.patches(frames.tokens)[rows], frames.pooled[rows])


class EachFrame(ClipConnector):
    """The tokens of each frame by an MLP, frame after frame (Video-LLaVA, Lin et al. 2024, arXiv:2311.10122).

    together: this many neighbouring tokens are concatenated into one first; 4 in MiniGPT4-Video (Ataallah et al. 2024,
    arXiv:2404.03413, §3.1).
    """

    def __init__(
        self,
        build: Build,
        *,
        frames: Frames = 8,
        together: Annotated[int, Field(ge=1)] = 1,
        depth: Annotated[int, Field(ge=1)] = 2,
        norm: bool = True,
    ):
        super().__init__(build, frames)
        patches = self.tokens
        build.require(patches % together == 0, f"together: {together} does not divide the {patches} patches of a frame")
        self.together, self.tokens = together, frames * patches // together
        self.norm: nn.Module = nn.LayerNorm(self.image_width) if norm else nn.Identity()
        self.layers = perceptron(together * self.image_width, self.width, depth)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        """[B, T, N, D of the tower] → [B, T · N / together, D of the language model]"""
        B, T, N, D = x.shape
        x = self.norm(x).reshape(B, T * N // self.together, self.together * D)
        x = self.layers(x)
        return x


class AdaptivePool(ClipConnector):
    """An MLP on every patch, then the mean over blocks of time and space (PLLaVA, Xu et al. 2024, arXiv:2404.16994, §3.3: adaptive
    average pooling of projected features to 16 × 12 × 12, after which pooling over time hurts, and over space hardly).

    time: how many steps are left; None: all frames. side: of the grid that is left of a frame; None: half of the tower's.
    """

    def __init__(
        self,
        build: Build,
        *,
        frames: Frames = 8,
        time: Annotated[int, Field(ge=1)] | None = None,
        side: Annotated[int, Field(ge=1)] | None = None,
        depth: Annotated[int, Field(ge=1)] = 2,
        norm: bool = True,
    ):
        super().__init__(build, frames)
        self.time, self.side = time or frames, side or max(1, self.grid // 2)
        build.require(self.time <= frames, f"time: {self.time} is more than the {frames} frames")
        build.require(self.side <= self.grid, f"side: {self.side} is more than the {self.grid} patches a side")
        self.tokens = self.time * self.side**2
        self.norm: nn.Module = nn.LayerNorm(self.image_width) if norm else nn.Identity()
        self.layers = perceptron(self.image_width, self.width, depth)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        """[B, T, N, D of the tower] → [B, time · side², D of the language model], time first, then row by row"""
        x = self.layers(self.norm(x))
        x = torch.unflatten(x, 2, (self.grid, self.grid)).permute(0, 4, 1, 2, 3)  # [B, D, T, y, x]
        x = F.adaptive_avg_pool3d(x, (self.time, self.side, self.side)).flatten(2).transpose(1, 2)
        return x


class PooledFrames(ClipConnector):
    """The mean of ``stride`` × ``stride`` patches of each frame, then an MLP, frame after frame (LLaVA-NeXT-Video, Zhang et al.
    2024). PLLaVA's ``adaptive_pool`` averages after its MLP.
    """

    def __init__(
        self,
        build: Build,
        *,
        frames: Frames = 8,
        stride: Annotated[int, Field(ge=1)] = 2,
        depth: Annotated[int, Field(ge=1)] = 2,
        norm: bool = True,
    ):
        super().__init__(build, frames)
        self.side = self.divided(build, stride)
        self.stride, self.tokens = stride, frames * self.side**2
        self.norm: nn.Module = nn.LayerNorm(self.image_width) if norm else nn.Identity()
        self.layers = perceptron(self.image_width, self.width, depth)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        """[B, T, N, D of the tower] → [B, T · N / stride², D of the language model], frame after frame, row by row"""
        B, T = x.shape[:2]
        x = torch.unflatten(self.norm(x).flatten(0, 1).transpose(1, 2), 2, (self.grid, self.grid))  # [B · T, D, y, x]
        x = F.avg_pool2d(x, self.stride).flatten(2).transpose(1, 2)
        x = self.layers(torch.unflatten(x, 0, (B, T)).flatten(1, 2))
        return x


class FramesAndMean(ClipConnector):
    """Each frame's pooled vector, then each patch summed up over time, through one linear layer (Valley, Luo et al. 2023,
    arXiv:2306.07207, §3.1).

    over_time: how a patch is summed up: ``mean`` (v1); ``weighted``, by a learned importance of each frame (v2); ``transformer``,
    what a transformer over time makes of the patch in the last frame is added to the mean (v3).
    """

    def __init__(
        self,
        build: Build,
        *,
        frames: Frames = 8,
        over_time: Literal["mean", "weighted", "transformer"] = "transformer",
        depth: Annotated[int, Field(ge=1)] = 1,
        heads: Annotated[int, Field(ge=1)] = 4,
        norm: bool = True,
    ):
        super().__init__(build, frames)
        self.over_time = over_time
        self.tokens = frames + self.tokens
        width = self.image_width
        self.norm: nn.Module = nn.LayerNorm(width) if norm else nn.Identity()
        if over_time == "weighted":
            self.importance = nn.Linear(width, 1)
        elif over_time == "transformer":
            build.require(width % heads == 0, f"heads: {heads} does not divide the tower's width {width}")
            self.places = nn.Parameter(torch.randn(frames, width) * 0.02)
            self.transformer = Transformer(width, depth, heads)
        self.layer = nn.Linear(width, self.width)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        """[B, T, N, D of the tower] and [B, T, D] → [B, T + N, D of the language model]"""
        x, pooled = self.norm(x), self.norm(pooled)
        if self.over_time == "weighted":
            whole = (x * self.importance(x).softmax(1)).sum(1)
        else:
            whole = x.mean(1)
        if self.over_time == "transformer":
            B, T, N, D = x.shape
            each = x.transpose(1, 2).reshape(B * N, T, D) + self.places
            whole = whole + self.transformer(each)[:, -1].view(B, N, D)
        x = self.layer(torch.cat([pooled, whole], 1))
        return x


class VideoQFormer(ClipConnector):
    """A Q-Former over each frame, a learned place in time on its tokens, and a Q-Former over the tokens of all frames (Video-LLaMA,
    Zhang et al. 2023, arXiv:2306.02858, §2.1.1). queries: of a frame; tokens: of the clip.
    """

    def __init__(
        self,
        build: Build,
        *,
        frames: Frames = 8,
        queries: Annotated[int, Field(ge=1)] = 8,
        tokens: Annotated[int, Field(ge=1)] = 16,
        width: int | None = None,
        depth: Annotated[int, Field(ge=1)] = 2,
        heads: Annotated[int, Field(ge=1)] = 4,
    ):
        super().__init__(build, frames)
        width = width or build.size.width
        self.tokens = tokens
        self.norm = nn.LayerNorm(self.image_width)
        self.frame_queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.of_frame = Transformer(width, depth, heads, self.image_width)
        self.places = nn.Parameter(torch.randn(frames, width) * 0.02)
        self.clip_queries = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.of_clip = Transformer(width, depth, heads, width)
        self.layer = nn.Linear(width, self.width)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        """[B, T, N, D of the tower] → [B, tokens, D of the language model]"""
        B, T = x.shape[:2]
        frames = self.of_frame(self.frame_queries.expand(B * T, -1, -1), context=self.norm(x).flatten(0, 1))
        frames = (torch.unflatten(frames, 0, (B, T)) + self.places[:, None]).flatten(1, 2)
        x = self.layer(self.of_clip(self.clip_queries.expand(B, -1, -1), context=frames))
        return x
