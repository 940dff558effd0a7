"""Quantizers: an image as a small grid of codes from a finite codebook, and back.

A quantizer has ``vocabulary`` (K), ``grid`` (rows, columns), ``tokens`` (N, their product), ``codes(pixels [B, 3, H, W]) -> ids [B,
N]``, ``decode(ids) -> pixels`` and ``forward(pixels) -> Quantized``. Pixels are in [-1, 1]; codes are in order of rows.

Shapes: B batch, N image tokens, D width, C width of a code, K codes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Images
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.part import Part


class Quantized(NamedTuple):
    """The output of a quantizer in training."""

    pixels: Tensor  # [B, 3, H, W], reconstructed
    features: Tensor  # [B, N, C], unit vectors, before rounding to a code
    chosen: Tensor  # [B, N, C], the unit vectors of the nearest codes
    ids: Tensor  # [B, N]


def nearest_code(features: Tensor, codebook: Tensor) -> Tensor:
    """The code nearest to each feature: unit vectors [..., C] and [K, C] → ids [...]. Between unit vectors ‖a − b‖² = 2 − 2 a·b."""
    return (features @ codebook.T).argmax(-1)


def straight_through(features: Tensor, chosen: Tensor) -> Tensor:
    """The codes in the forward pass; the gradient is passed straight on to the features (van den Oord et al. 2017, §3.2)."""
    return features + (chosen - features).detach()


class Residual(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]"""
        x = x + self.conv2(F.relu(self.conv1(F.relu(x))))
        return x


class VectorQuantizer(Part):
    """A convolutional auto-encoder through a codebook (VQ-VAE, van den Oord et al. 2017), with unit-length codes of few dimensions
    (ViT-VQGAN, Yu et al. 2022, §3.2).

    width: None: that of a tower. patch: side in pixels of the square that one code represents. depth: residual blocks on either
    side of the codebook.
    patience: steps after which an unused code is dead. The codebook learns by its loss, not by moving averages,
    so its gradient adds up over micro-batches and processes like any other; dead codes are revived by splitting the most used ones
    in two (Linde, Buzo & Gray 1980), which needs only counts, and these add up too.
    """

    can = frozenset({"reconstruct"})
    replicated = ("codebook",)  # revived as a whole, so never sharded
    called = ("codes", "decode")  # besides ``forward``
    idle: Tensor
    use: Tensor
    counts: Tensor

    def __init__(
        self,
        build: Build,
        *,
        vocabulary: Annotated[int, Field(ge=2)] = 1024,
        patch: Literal[4, 8, 16] = 8,
        width: int | None = None,
        depth: Annotated[int, Field(ge=0)] = 1,
        code_width: Annotated[int, Field(ge=2)] = 16,
        patience: Annotated[int, Field(ge=1)] = 20,
    ):
        super().__init__()
        build.require(
            build.image_size % patch == 0, f"images of {build.image_size} pixels cannot be cut into squares of {patch}; set patch"
        )
        self.width, self.patch, self.vocabulary, self.patience = width or build.size.width, patch, vocabulary, patience
        side = build.image_size // patch
        self.grid, self.tokens = (side, side), side * side
        halvings = patch.bit_length() - 1
        widths = [3, *(self.width >> k for k in reversed(range(halvings)))]
        down: list[nn.Module] = []
        for a, b in pairwise(widths):
            down += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.ReLU()]
        self.encoder = nn.Sequential(
            *down[:-1], *(Residual(self.width) for _ in range(depth)), nn.ReLU(), nn.Conv2d(self.width, code_width, 1)
        )
        up: list[nn.Module] = []
        for a, b in pairwise(reversed(widths)):
            up += [nn.ReLU(), nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)]
        self.decoder = nn.Sequential(
            nn.Conv2d(code_width, self.width, 3, padding=1), *(Residual(self.width) for _ in range(depth)), *up
        )
        self.codebook = nn.Parameter(F.normalize(torch.randn(vocabulary, code_width), dim=-1))
        self.register_buffer("idle", torch.zeros(vocabulary, dtype=torch.long))  # steps since a code was last used
        self.register_buffer("use", torch.full((vocabulary,), 1.0 / vocabulary, dtype=torch.float64))  # share of each, smoothed
        self.register_buffer("counts", torch.zeros(vocabulary, dtype=torch.long), persistent=False)  # of the current step

    @property
    def codes_of_unit_length(self) -> Tensor:
        """[K, C]"""
        return F.normalize(self.codebook.float(), dim=-1)

    def features(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] → unit vectors [B, N, C], float32"""
        x = self.encoder(pixels.contiguous(memory_format=torch.channels_last))
        return F.normalize(x.flatten(2).transpose(1, 2).float(), dim=-1)

    @provides("{image}.codes", "{image}")
    def encode(self, image: Images) -> Tensor:
        """[B, N] int64"""
        return self.codes(image.floats)

    @provides("{image}.quantized", "{image}")
    def quantize(self, image: Images) -> Quantized:
        """Codes, features and the reconstruction, with gradients."""
        quantized: Quantized = self(image.floats)
        return quantized

    @torch.no_grad()
    def codes(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] in [−1, 1] → int64 [B, N]"""
        features = self.features(pixels)
        with torch.autocast(features.device.type, enabled=False):  # in bf16 nearly equal codes could not be distinguished
            return nearest_code(features, self.codes_of_unit_length)

    def decode(self, ids: Tensor) -> Tensor:
        """ids [B, N] → pixels [B, 3, H, W]"""
        return self.paint(self.codes_of_unit_length[ids])

    def paint(self, codes: Tensor) -> Tensor:
        """Code vectors [B, N, C] → pixels [B, 3, H, W]"""
        x = torch.unflatten(codes.transpose(1, 2), 2, self.grid)
        pixels: Tensor = self.decoder(x.contiguous(memory_format=torch.channels_last))
        return pixels

    def forward(self, pixels: Tensor) -> Quantized:
        """pixels [B, 3, H, W] in [−1, 1] → codes, features and the reconstruction, with gradients"""
        features = self.features(pixels)
        with torch.autocast(features.device.type, enabled=False):
            codebook = self.codes_of_unit_length
            ids = nearest_code(features.detach(), codebook.detach())
            chosen = codebook[ids]
        if self.training:
            self.counts += torch.bincount(ids.flatten(), minlength=self.vocabulary)
        return Quantized(self.paint(straight_through(features, chosen)), features, chosen, ids)

    @torch.no_grad()
    def end_step(self, counts: Tensor, noise: float = 0.05) -> int:
        """Note how often each code was used in a whole step [K], and revive dead ones; returns how many were revived.

        A dead code moves next to one of the most used, and takes over half of its use. ``noise``: the distance from it, relative to
        unit length.
        """
        self.counts.zero_()
        self.idle += 1
        self.idle[counts > 0] = 0
        self.use.lerp_(counts.to(self.use) / counts.sum().clamp(min=1), 0.1)
        gone = self.idle >= self.patience
        self.use[gone] = 0.0
        dead = gone.nonzero()[:, 0][: int((~gone).sum())]  # each needs its own donor
        if not len(dead):
            return 0
        donors = self.use.argsort(descending=True, stable=True)[: len(dead)]
        # Determined by the state, so that every process moves the same codes to the same positions.
        generator = torch.Generator().manual_seed(int(dead.sum()) + len(dead))
        direction = torch.randn(len(dead), self.codebook.shape[1], generator=generator).to(self.codebook)
        self.codebook[dead] = self.codes_of_unit_length[donors] + noise * F.normalize(direction, dim=-1)
        self.use[donors] /= 2
        self.use[dead] = self.use[donors]
        self.idle[dead] = 0
        return len(dead)


QUANTIZER = {"vq": VectorQuantizer}
