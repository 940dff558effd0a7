"""Vision towers: pixels in, ``Tokens`` out.

Every tower has ``width``, ``tokens(image_size) -> N`` and ``forward(pixels [B, 3, H, W], keep=None) -> Tokens``. Pixels lie in
[-1, 1]. ``keep`` [B, K] names the only patches that are looked at (FLIP's patch dropping, masked image modelling).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.batch import Tokens
from diptych.models.attention import AttentionPool, Transformer
from diptych.models.build import Build


def sincos_2d(side_y: int, side_x: int, width: int) -> Tensor:
    """Fixed positions [side_y · side_x, width]: a quarter of the width each for sin and cos of y and x (ViT/MAE)."""
    assert width % 4 == 0, width
    frequency = 10_000 ** (-torch.arange(width // 4) / (width // 4))
    y, x = torch.meshgrid(torch.arange(side_y), torch.arange(side_x), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (y, x)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)


class ConvStem(nn.Module):
    """Overlapping convolutions before the transformer: 8 × 8 pixels a token (Xiao et al. 2021, "Early convolutions")."""

    def __init__(self, width: int):
        super().__init__()
        quarter, half = width // 4, width // 2
        self.conv1 = nn.Conv2d(3, quarter, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(quarter, half, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(half, width, 3, stride=2, padding=1)
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.relu(self.conv1(pixels.contiguous(memory_format=torch.channels_last)))
        return self.conv3(F.relu(self.conv2(x)))


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021), with a convolutional stem for small images or plain patches.

    pool: ``mean`` of the tokens, or ``attention`` (one learned query, as CoCa's contrastive pooler).
    """

    positions: Tensor

    def __init__(
        self,
        build: Build,
        *,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        stem: Literal["conv", "patch"] | None = None,
        patch: int | None = None,
        pool: Literal["mean", "attention"] = "mean",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        super().__init__()
        size = build.size
        self.width = width or size.width
        stem = stem or ("conv" if build.image_size < 128 else "patch")
        self.patch = 8 if stem == "conv" else patch or 16
        build.require(
            build.image_size % self.patch == 0, f"image_size {build.image_size} is not a multiple of the patch size {self.patch}"
        )
        self.grid = build.image_size // self.patch
        self.stem = ConvStem(self.width) if stem == "conv" else nn.Conv2d(3, self.width, self.patch, stride=self.patch)
        # Without it the stem's output starts far smaller than the positions, and what a patch shows is drowned by where it lies.
        self.norm = nn.LayerNorm(self.width)
        self.register_buffer("positions", sincos_2d(self.grid, self.grid, self.width), persistent=False)
        self.transformer = Transformer(self.width, depth or size.depth, heads or size.heads, None, size.activation, dropout)
        self.pool = AttentionPool(self.width, heads or size.heads, 1) if pool == "attention" else None

    @property
    def tokens(self) -> int:
        return self.grid**2

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tokens:
        if keep is None:
            x = self.norm(self.stem(pixels).flatten(2).transpose(1, 2)) + self.positions  # [B, N, D]
        else:
            x = self.norm(self._stem_at(pixels, keep)) + self.positions[keep]  # [B, K, D]
        x = self.transformer(x)
        return Tokens(x, x.mean(1) if self.pool is None else self.pool(x)[:, 0])

    def _stem_at(self, pixels: Tensor, keep: Tensor) -> Tensor:
        """The stem's output [B, K, D] at the patches ``keep`` [B, K], from those patches alone."""
        rows, columns = keep // self.grid, keep % self.grid
        batch = torch.arange(len(pixels), device=pixels.device)[:, None]
        if isinstance(self.stem, nn.Conv2d):  # patches do not overlap: the others need not be looked at
            cut = pixels.unflatten(2, (self.grid, self.patch)).unflatten(4, (self.grid, self.patch)).permute(0, 2, 4, 1, 3, 5)
            return F.linear(cut[batch, rows, columns].flatten(2), self.stem.weight.flatten(1), self.stem.bias)
        seen = torch.zeros(len(pixels), 1, self.grid, self.grid, device=pixels.device, dtype=pixels.dtype)
        seen[batch, 0, rows, columns] = 1.0  # the others are blanked, or the stem would leak them to their neighbours
        x = self.stem(pixels * F.interpolate(seen, scale_factor=self.patch, mode="nearest"))
        return x.permute(0, 2, 3, 1)[batch, rows, columns]


class EfficientNet(nn.Module):
    """EfficientNet-Lite with its ImageNet weights, frozen: an h × w feature map as tokens.

    resolution: the side to which images are scaled before the tower sees them (a multiple of 32). None: 224, the native one, or 128
    for images smaller than that, which have no more to show.
    """

    native_size = 224
    packaged = ("net",)

    def __init__(self, build: Build, *, variant: str = "lite0", resolution: int | None = None):
        super().__init__()
        from diptych.models.pretrained import load_efficientnet

        resolution = resolution or (128 if build.image_size < 128 else self.native_size)
        build.require(resolution % 32 == 0, f"resolution {resolution} is not a multiple of 32")
        self.net = load_efficientnet(variant)
        self.width = 1280
        self.resolution = resolution
        build.licences.append(f"efficientnet-{variant}")

    @property
    def tokens(self) -> int:
        return (self.resolution // 32) ** 2

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tokens:
        if pixels.shape[-1] != self.resolution:
            pixels = F.interpolate(pixels, size=(self.resolution, self.resolution), mode="bilinear", antialias=True)
        mean, std = (torch.as_tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (self.net.mean, self.net.std))
        pixels = ((pixels * 0.5 + 0.5) - mean) / std
        x = self.net.features(pixels.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2).float()
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, self.width))
        return Tokens(x, x.mean(1))


VISION = {"vit": ViT, "efficientnet": EfficientNet}
