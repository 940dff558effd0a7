"""Masked autoencoding of single frames (MAE, He et al. 2022, arXiv:2111.06377; in SMAUG, Lin et al. 2023, arXiv:2211.11446).

Shapes: n frames of all clips, N patches of a frame, K of them seen, p × p pixels of a patch, D width of the decoder.
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
from diptych.models.vision.drawn import random_keep
from diptych.models.vision.towers import sincos_2d
from diptych.objectives.base import Objective
from diptych.objectives.maskvlm import patchify

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


class MaskedFrames(Objective):
    """Pixels of the hidden patches of each frame from its visible ones, which alone are encoded; a light decoder reads both. The
    loss is the mean of squared differences over hidden patches.

    Where the stage leaves out patches (``patch_dropout``), these are the hidden ones: the frames are encoded once for this and for
    all other objectives. Otherwise ``share`` of them is hidden, for this objective alone. A tower that leaves out patches on its
    way says which are left, and the decoder sees these. normalise: each patch to mean 0 and variance 1 (He et al. 2022, §4.1).
    width, depth, heads: of the decoder; by default half as wide as the tower, and one block.
    """

    parts = ("vision",)
    needs = ("video.frames.tokens", "video")
    positions: Tensor

    def __init__(
        self,
        model: VLM,
        *,
        share: Annotated[float, Field(gt=0, lt=1)] = 0.65,
        normalise: bool = True,
        width: Annotated[int, Field(ge=4)] | None = None,
        depth: Annotated[int, Field(ge=1)] = 1,
        heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__(model)
        vision = model.part("vision")
        if not hasattr(vision, "patch") or not hasattr(vision, "transformer") or getattr(vision, "pooling", "") == "cascade":
            raise DiptychError(
                "objective masked_frames hides patches of frames; set parts.vision: {kind: class}, or vit, or sparse"
            )
        self.share, self.normalise = share, normalise
        self.n, self.patch, self.extra = int(vision.tokens), int(vision.patch), int(vision.extra)
        width = width or int(vision.width) // 2
        heads = heads or max(1, int(vision.transformer.blocks[0].attention.heads) // 2)
        if width % 4 or width % heads:
            raise DiptychError(f"objective masked_frames: width {width} is not a multiple of 4 and of heads {heads}")
        self.embed = nn.Linear(vision.width, width)
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("positions", sincos_2d(vision.grid, vision.grid, width), persistent=False)
        self.decoder = Transformer(width, depth, heads)
        self.head = nn.Linear(width, 3 * self.patch**2)

    def predict(self, seen: Tensor, places: Tensor, hidden: Tensor) -> Tensor:
        """The pixels of hidden patches, one frame after the other, [hidden ones, 3 · p²]; seen [n, K, D of the tower] are the
        vectors of the patches ``places`` [n, K], hidden [n, N] bool.
        """
        x = self.embed(seen)
        x = self.token.to(x.dtype).expand(len(x), self.n, -1).scatter(1, places[..., None].expand_as(x), x)
        found: Tensor = self.head(self.decoder(x + self.positions.to(x.dtype))[hidden])
        return found

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        video: Videos = p["video"]
        keep = video.frames.keep
        if keep is None:
            keep, _ = random_keep(len(video.frames), self.n, self.share, video.frames.pixels.device)
            p = p.view(video=replace(video, frames=replace(video.frames, keep=keep)))
        tokens: Tokens = p["video.frames.tokens"]
        hidden = torch.ones(len(keep), self.n, dtype=torch.bool, device=keep.device).scatter_(1, keep, False)
        predicted = self.predict(tokens.tokens[:, self.extra :], keep if tokens.places is None else tokens.places, hidden)
        target = patchify(video.frames.floats, self.patch)[hidden]
        if self.normalise:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return F.mse_loss(predicted.float(), target)

    def terms(self, p: Pass) -> int:
        """How many terms ``forward`` is the mean of: frames, each with as many hidden patches."""
        return len(p["video"].frames)
