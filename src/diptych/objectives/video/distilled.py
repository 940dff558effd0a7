"""Masked distillation of clips (VideoPrism, Zhao et al. 2024, arXiv:2402.13217, §3.2): from a part of a clip, what an earlier stage
of the model makes of the whole of it.

Shapes: B clips, F frames, N patches of a frame, K of them visible, D width of the tokens, W of the decoders, E embedding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens, Videos
from diptych.core.errors import DiptychError
from diptych.models.layers.attention import Transformer
from diptych.models.layers.capped import WidePool
from diptych.models.layers.masks import padding_bias
from diptych.models.time.clips import owners
from diptych.models.vision.drawn import random_keep
from diptych.models.vision.tubelets import alternating_waves, take
from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

Weight = Annotated[float, Field(ge=0)]


def cosine_distance(x: Tensor, target: Tensor) -> Tensor:
    """1 − cos over the last dimension, in float32: [..., D] → [...]."""
    return 1 - F.cosine_similarity(x.float(), target.float(), dim=-1)


def slots_of(keep: Tensor, hidden: Tensor, frames: int) -> Tensor:
    """The place in the clip of each visible token, frame after frame, then of each hidden one: int64 [B, F · N].

    keep [B, K]: the visible patches, the same of all frames; hidden [B, N] bool.
    """
    n = hidden.shape[1]
    left = hidden.nonzero()[:, 1].view(len(hidden), -1)
    start = torch.arange(frames, device=keep.device)[None, :, None] * n
    return torch.cat([(start + rows[:, None]).flatten(1) for rows in (keep, left)], 1)


class MaskedDistillation(Objective):
    """The clip's tokens and its embedding, as the teacher has them of the whole clip, from the visible patches: the mean of 1 − cos
    over all tokens of a clip, and 1 − cos of the embedding, by a decoder each.

    teacher: its name. share: of the patches hidden, the same in all frames of a clip. shuffle: the decoder of the tokens gets what
    it reads, visible tokens and mask tokens, in a random order, and places are added after that: it cannot copy a visible token to
    its own place, but must find out where it belongs (§3.2). tokens, whole: the weights of the two losses. width, depth, heads: of
    both decoders; by default those of the tower, and four blocks.
    """

    parts = ("vision", "time", "space")
    needs: tuple[str, ...]
    positions: Tensor

    def __init__(
        self,
        model: VLM,
        *,
        teacher: str = "first",
        share: Annotated[float, Field(gt=0, lt=1)] = 0.65,
        shuffle: bool = True,
        tokens: Weight = 1.0,
        whole: Weight = 1.0,
        width: Annotated[int, Field(ge=2)] | None = None,
        depth: Annotated[int, Field(ge=1)] = 4,
        heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__(model)
        self.teacher, self.share, self.shuffle, self.weights = teacher, share, shuffle, (tokens, whole)
        self.needs = ("video.tokens", "video", f"{teacher}:video.tokens", f"{teacher}:video.embedding")
        vision, time = model.part("vision"), model.part("time")
        if getattr(vision, "extra", 0) or not hasattr(vision, "patch") or not hasattr(time, "transformer"):
            raise DiptychError(
                "objective masked_distillation hides patches of frames, which time then reads patch by patch; set parts.vision: "
                "{kind: capped} and parts.time: {kind: factorised}"
            )
        self.n, self.frames = int(vision.tokens), int(time.frames)
        width = width or int(vision.width)
        heads = heads or int(vision.transformer.blocks[0].attention.heads)
        if width % heads:
            raise DiptychError(f"objective masked_distillation: heads {heads} does not divide the width, {width}")
        self.embed, self.embed_whole = nn.Linear(vision.width, width), nn.Linear(vision.width, width)
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("positions", alternating_waves(self.frames * self.n, width), persistent=False)
        self.decoder, self.decoder_whole = Transformer(width, depth, heads), Transformer(width, depth, heads)
        self.head = nn.Linear(width, time.width)
        self.pool, self.head_whole = WidePool(width, heads), nn.Linear(width, model.embed_dim)

    def hide(self, clips: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The visible patches of each clip [B, K], in order, and hidden [B, N] bool."""
        return random_keep(clips, self.n, self.share, device)

    def rebuilt(self, seen: Tokens, keep: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The clip's tokens from the visible ones, [B, F · N, D], and which of them are real, bool [B, F · N]."""
        assert seen.mask is not None
        x = self.embed(seen.tokens)
        B, count, width = x.shape
        frames = count // keep.shape[1]
        slots = slots_of(keep, hidden, frames)
        x = torch.cat([x, self.token.to(x.dtype).expand(B, frames * self.n - count, width)], 1)
        shown = seen.mask[:, :: keep.shape[1]]  # frames, [B, F]
        real = shown.repeat_interleave(self.n, 1)
        if self.shuffle:  # of real tokens alone, so that padding stays at the end
            order = torch.rand(slots.shape, device=x.device).masked_fill(~take(real, slots), 2.0)
        else:
            order = slots.float()
        x = take(x, order.argsort(1)) + self.positions[: frames * self.n].to(x.dtype)
        return self.head(self.decoder(x, None if bool(real.all()) else padding_bias(real))), real

    def summed_up(self, seen: Tokens) -> Tensor:
        """The clip's embedding from the visible tokens, without their places, [B, E]."""
        assert seen.mask is not None
        bias = None if bool(seen.mask.all()) else padding_bias(seen.mask)
        whole: Tensor = self.head_whole(self.pool(self.decoder_whole(self.embed_whole(seen.tokens), bias), seen.mask))
        return whole

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        video: Videos = p["video"]
        owner = owners(video, len(video.frames), video.frames.pixels.device)
        keep, hidden = self.hide(int(owner[-1]) + 1, owner.device)
        part = replace(video, frames=replace(video.frames, keep=keep[owner]))
        seen: Tokens = p.view(video=part)["video.tokens"]
        target: Tokens = p[f"{self.teacher}:video.tokens"]
        found, real = self.rebuilt(seen, keep, hidden)
        of_tokens = (cosine_distance(found, target.tokens) * real).sum(1) / real.sum(1)  # each clip counts the same
        of_whole = cosine_distance(self.summed_up(seen), p[f"{self.teacher}:video.embedding"])
        return self.weights[0] * of_tokens.mean() + self.weights[1] * of_whole.mean()
