"""A transformer over time for each patch, and a space that reads all tokens of a clip (VideoPrism, Zhao et al. 2024,
arXiv:2402.13217, §3.3; ViViT's factorised encoder).

Shapes: n frames of all clips, B clips, F frames a clip at most, N tokens of a frame, D width, E embedding.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens, Videos
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.layers.attention import Activation, Transformer
from diptych.models.layers.capped import WidePool, capped
from diptych.models.layers.masks import padding_bias
from diptych.models.part import Part
from diptych.models.space import LinearSpace, unit
from diptych.models.time.clips import by_clip, masked_mean, owners

Heads = Annotated[int, Field(ge=1)] | None
Cap = Annotated[float, Field(gt=0)]


class FactorisedTime(Part):
    """Each patch attends to the same patch of the other frames; learned places in time.

    Where frames are read in part (``Images.keep``), the same patches must be kept in all frames of a clip. frames: places, and the
    largest number of frames of a clip. cap: of the logits of attention.
    """

    replicated = ("places",)

    def __init__(
        self,
        build: Build,
        *,
        depth: Annotated[int, Field(ge=1)] = 4,
        heads: Heads = None,
        hidden: Annotated[int, Field(ge=1)] | None = None,
        frames: Annotated[int, Field(ge=1)] = 8,
        activation: Activation = "gelu",
        eps: float = 1e-6,
        cap: Cap = 50.0,
    ):
        super().__init__()
        self.width, self.frames = build.width_of("vision"), frames
        self.places = nn.Parameter(torch.randn(frames, self.width) * 0.02)
        heads = heads or build.size.heads
        self.transformer = capped(Transformer(self.width, depth, heads, activation=activation, hidden=hidden, eps=eps), cap)

    @provides("{video}.tokens", "{video}.frames.tokens", "{video}")
    def read(self, frames: Tokens, video: Videos) -> Tokens:
        """tokens [B, F · N, D], frame after frame; pooled [B, D], their mean; mask [B, F · N]. DiptychError for frames of which
        different patches are kept.
        """
        owner, keep = owners(video, len(frames.pooled), frames.pooled.device), video.frames.keep
        if keep is not None and not torch.equal(keep[1:], torch.where((owner[1:] == owner[:-1])[:, None], keep[:-1], keep[1:])):
            raise DiptychError(
                "parts.time: {kind: factorised} reads the same patch of all frames; set patch_dropout: 0, or hide patches by the "
                "objective masked_distillation"
            )
        x, mask = by_clip(frames.tokens, owner, self.frames)
        B, count, N, D = x.shape
        x = x.transpose(1, 2).reshape(B * N, count, D) + self.places.to(x.dtype)
        x = self.transformer(x, None if bool(mask.all()) else padding_bias(mask.repeat_interleave(N, 0)))
        x, real = x.view(B, N, count, D).transpose(1, 2).reshape(B, count * N, D), mask.repeat_interleave(N, 1)
        return Tokens(x, masked_mean(x, real), real)


class PooledSpace(LinearSpace):
    """A linear map for each tower; all tokens of a clip or a picture are pooled by attention before theirs.

    joint: blocks in which all tokens of a clip attend to each other first (2 in the authors' model of clips and texts). hidden:
    width inside the blocks' MLPs and the pooling.
    """

    def __init__(
        self,
        build: Build,
        *,
        joint: Annotated[int, Field(ge=0)] = 0,
        heads: Heads = None,
        hidden: Annotated[int, Field(ge=1)] | None = None,
        activation: Activation = "gelu",
        eps: float = 1e-6,
        cap: Cap = 50.0,
    ):
        super().__init__(build)
        width, heads = build.width_of("vision"), heads or build.size.heads
        self.joint: Transformer | None = None
        if joint:
            stack = Transformer(width, joint, heads, activation=activation, hidden=hidden, eps=eps, bare=True)
            stack.norm = nn.Identity()
            self.joint = capped(stack, cap)
        self.pool = WidePool(width, heads, hidden, eps)

    def pooled(self, tokens: Tokens) -> Tensor:
        """[B, D], before the linear map."""
        x = tokens.tokens
        x = x if self.joint is None else self.joint(x, padding_bias(tokens.mask))
        pooled: Tensor = self.pool(x, tokens.mask)
        return pooled

    @provides("{image}.embedding", "{image}.tokens")
    @provides("{video}.embedding", "{video}.tokens")
    def image_embedding(self, tokens: Tokens) -> Tensor:
        """[B, E]"""
        return unit(self.image(self.pooled(tokens)))

    @provides("{image}.projection", "{image}.tokens")
    def image_projection(self, tokens: Tokens) -> Tensor:
        """``embedding`` before it is normalised, [B, E], float32."""
        projection: Tensor = self.image(self.pooled(tokens)).float()
        return projection
