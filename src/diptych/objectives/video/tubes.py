"""Masked autoencoding of clips (VideoMAE, Tong et al. 2022, arXiv:2203.12602; MAE-ST, Feichtenhofer et al. 2022, arXiv:2205.09113).

Shapes: B clips, N tokens of a clip, K of them visible, T times, t frames and p × p pixels of a token, D width of the decoder.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.models.layers.attention import Transformer
from diptych.models.vision.drawn import random_keep
from diptych.models.vision.tubelets import TubeletViT, alternating_waves, cut, take
from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def tube_keep(batch_size: int, times: int, places: int, share: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """A random choice of places to see, the same at all times: the indices of their tokens [B, K], in order, and hidden [B, N]
    bool, N = times · places.
    """
    keep, hidden = random_keep(batch_size, places, share, device)
    start = torch.arange(times, device=device) * places
    return (start[None, :, None] + keep[:, None]).flatten(1), hidden.repeat(1, times)


def pixels_of(clips: Tensor, tubelet: int, patch: int, normalise: bool) -> Tensor:
    """What is to be predicted of each token, [B, N, t · p · p · 3]: pixels in [0, 1], colours last.

    clips: [B, F, 3, H, W] in [−1, 1]. normalise: each colour of each token to mean 0 and standard deviation 1, over its t · p · p
    pixels (He et al. 2022, §4.1, as the authors of VideoMAE do it).
    """
    x = cut(clips.float() / 2 + 0.5, tubelet, patch).permute(0, 1, 3, 4, 5, 2).flatten(2, 4)  # [B, N, t · p · p, 3]
    if normalise:
        x = (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True).sqrt() + 1e-6)
    return x.flatten(2)


class MaskedTubes(Objective):
    """Pixels of hidden tokens of a clip from the visible ones, which alone are encoded; a light decoder reads both. The loss is the
    mean of squared differences over hidden tokens.

    share: of the tokens hidden (0.9 in both papers). mask: ``tube``, the same places at all times, so that nothing can be copied
    from a neighbouring frame (VideoMAE, §3.3); ``random``, any tokens (MAE-ST, §3). normalise: as in ``pixels_of``. width, depth,
    heads, hidden: of the decoder; by default half as wide as the tower and of four blocks (VideoMAE, table 1).
    """

    parts = ("vision",)
    needs = ("video.tokens", "video")
    positions: Tensor

    def __init__(
        self,
        model: VLM,
        *,
        share: Annotated[float, Field(gt=0, lt=1)] = 0.9,
        mask: Literal["tube", "random"] = "tube",
        normalise: bool = True,
        width: Annotated[int, Field(ge=2)] | None = None,
        depth: Annotated[int, Field(ge=1)] = 4,
        heads: Annotated[int, Field(ge=1)] | None = None,
        hidden: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__(model)
        vision = model.part("vision")
        if not isinstance(vision, TubeletViT):
            raise DiptychError("objective masked_tubes hides tokens of clips; set parts.vision: {kind: tubelets}")
        self.share, self.mask, self.normalise = share, mask, normalise
        self._vision = (vision,)  # in a tuple: shared, not owned
        width = width or vision.width // 2
        heads = heads or max(1, vision.heads // 2)
        if width % heads:
            raise DiptychError(f"objective masked_tubes: heads {heads} does not divide the width of the decoder, {width}")
        self.embed = nn.Linear(vision.width, width, bias=False)
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("positions", alternating_waves(vision.all_tokens, width), persistent=False)
        self.decoder = Transformer(width, depth, heads, hidden=hidden, eps=vision.eps)
        self.decoder.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3 * vision.tubelet * vision.patch**2)

    def hide(self, clips: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """What is seen of each clip: the indices of its tokens [B, K], in order, and hidden [B, N] bool."""
        vision = self._vision[0]
        if self.mask == "tube":
            return tube_keep(clips, vision.times, vision.grid**2, self.share, device)
        return random_keep(clips, vision.all_tokens, self.share, device)

    def predict(self, seen: Tensor, keep: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels of hidden tokens, [B, N − K, t · p · p · 3], and which tokens these are, int64 [B, N − K], from the tower's
        vectors of the visible ones [B, K, D of the tower].
        """
        left = hidden.nonzero()[:, 1].view(len(hidden), -1)
        x = self.embed(seen) + self.positions[keep]
        x = self.decoder(torch.cat([x, (self.token + self.positions[left]).to(x.dtype)], 1))
        return self.head(x[:, keep.shape[1] :]), left

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        vision, video = self._vision[0], p["video"]
        clips = vision.shown(video)
        keep, hidden = self.hide(len(clips), clips.device)
        predicted, left = self.predict(p.view(video=replace(video, keep=keep))["video.tokens"].tokens, keep, hidden)
        target = take(pixels_of(clips, vision.tubelet, vision.patch, self.normalise), left)
        return F.mse_loss(predicted.float(), target)
