"""A small diffusion model that draws images from text, and the classifier that it contains (Li et al. 2023, arXiv:2303.16203).

An image x with noise of level t is x_t = √ā_t x + √(1 − ā_t) ε. The denoiser ε_θ(x_t, t, text) learns to tell the noise (Ho et al. 2020,
arXiv:2006.11239, equation 14). The text under which it tells the noise best is the text that fits the image.

Shapes: B batch, P pairs, N patches, D width, T levels of noise.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Batch, Images, Tokens
from diptych.core.encodings import Pass
from diptych.core.graph import provides
from diptych.data.fields.text import tokenized
from diptych.models.build import Build
from diptych.models.layers.attention import Attention
from diptych.models.part import Part
from diptych.models.vision.towers import sincos_2d
from diptych.objectives import Objective
from diptych.objectives.scores import Score


def signal_shares(kind: Literal["cosine", "linear"], T: int) -> Tensor:
    """ā_0 … ā_{T−1}: the share of the image's variance that is left at each level, float64.

    linear: variances β from 1e-4 to 0.02 (Ho et al. 2020, §4). cosine: Nichol & Dhariwal 2021 (arXiv:2102.09672), equation 17, β at most 0.999.
    """
    if kind == "linear":
        betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
    else:
        at = torch.arange(T + 1, dtype=torch.float64) / T
        f = ((at + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return (1 - betas).cumprod(0)


def add_noise(x: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """x_t [B, 3, H, W] for levels whose share of the signal is ``share`` [B]."""
    share = share.view(-1, 1, 1, 1)
    return share.sqrt() * x + (1 - share).sqrt() * noise


@dataclass
class Noisy(Images):
    """Images with noise in them."""

    level: Tensor | None = None  # [n] int64, from 0 to T − 1
    alone: Tensor | None = None  # [n] bool: rows that are drawn without their text; None: none

    row_wise = ("pixels", "keep", "hidden", "level", "alone")


class DenoiserBlock(nn.Module):
    """Self-attention and an MLP, scaled, shifted and gated by level and text; at first it does nothing (adaLN-Zero, Peebles & Xie 2023, §3.2)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = zero(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """x [B, N, D], state [B, D]"""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(state)[:, None].chunk(6, -1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Denoiser(Part):
    """ε_θ(x_t, t, text): a transformer over patches (DiT, Peebles & Xie 2023, arXiv:2212.09748), told of the text by its pooled vector.

    levels: T. A learned vector stands for the text where there is none, which guidance needs (Ho & Salimans 2022, arXiv:2207.12598).
    """

    shares: Tensor
    places: Tensor

    def __init__(
        self,
        build: Build,
        *,
        width: int | None = None,
        depth: Annotated[int, Field(ge=1)] = 3,
        heads: int | None = None,
        patch: Annotated[int, Field(ge=1)] = 4,
        levels: Annotated[int, Field(ge=2)] = 1000,
        schedule: Literal["cosine", "linear"] = "cosine",
    ):
        super().__init__()
        build.require(build.image_size % patch == 0, f"image_size {build.image_size} is not a multiple of the patch size {patch}")
        self.width, heads = width or build.size.width, heads or build.size.heads
        self.patch, self.grid, self.levels = patch, build.image_size // patch, levels
        self.register_buffer("shares", signal_shares(schedule, levels), persistent=False)
        self.register_buffer("places", sincos_2d(self.grid, self.grid, self.width), persistent=False)
        self.stem = nn.Conv2d(3, self.width, patch, stride=patch)
        self.level = nn.Sequential(nn.Linear(self.width, self.width), nn.SiLU(), nn.Linear(self.width, self.width))
        self.text = nn.Linear(build.width_of("text"), self.width)
        self.no_text = nn.Parameter(torch.randn(self.width) * 0.02)
        self.blocks = nn.ModuleList(DenoiserBlock(self.width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(self.width, elementwise_affine=False)
        self.modulation = zero(nn.Linear(self.width, 2 * self.width))
        self.out = zero(nn.Linear(self.width, 3 * patch**2))

    @provides("{image}.noise", "{image}", "text.tokens")
    def noise(self, image: Noisy, text: Tokens) -> Tensor:
        """What is noise in a noisy image: [B, 3, H, W], float32."""
        assert image.level is not None
        return self(image.floats, image.level, text.pooled, image.alone)

    def forward(self, x: Tensor, level: Tensor, text: Tensor, alone: Tensor | None = None) -> Tensor:
        """x [B, 3, H, W], level [B], text [B, text width], alone [B] bool"""
        told = self.text(text)
        if alone is not None:
            told = torch.where(alone[:, None], self.no_text.to(told.dtype), told)
        state = F.silu(self.level(waves(level, self.width).to(told.dtype)) + told)
        h = self.stem(x).flatten(2).transpose(1, 2) + self.places  # [B, N, D]
        for block in self.blocks:
            h = block(h, state)
        shift, scale = self.modulation(state)[:, None].chunk(2, -1)
        out = self.out(self.norm(h) * (1 + scale) + shift).float()  # [B, N, 3 · patch²]
        out = out.view(-1, self.grid, self.grid, 3, self.patch, self.patch)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def zero(layer: nn.Linear) -> nn.Linear:
    """A layer that gives zeros at first."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def waves(level: Tensor, width: int) -> Tensor:
    """Levels [B] as waves [B, width] (Vaswani et al. 2017)."""
    frequency = 10_000 ** (-torch.arange(width // 2, device=level.device) / (width // 2))
    angles = level[:, None] * frequency
    return torch.cat([angles.sin(), angles.cos()], 1)


class NoisePrediction(Objective):
    """E ‖ε − ε_θ(x_t, t, text)‖², a mean over pixels. no_text: share of the images that are learned without their text."""

    needs = ("image", "text.tokens", "image.noise")
    parts = ("denoiser",)

    def __init__(self, model: Any, *, no_text: Annotated[float, Field(ge=0, lt=1)] = 0.1):
        super().__init__(model)
        self.no_text = no_text
        self._denoiser = [model.part("denoiser")]  # in a list: shared, not owned

    def forward(self, p: Pass) -> Tensor:
        x, denoiser = p["image"].floats, self._denoiser[0]
        level = torch.randint(denoiser.levels, (len(x),), device=x.device)
        noise = torch.randn_like(x)
        alone = torch.rand(len(x), device=x.device) < self.no_text
        noisy = add_noise(x, noise, denoiser.shares[level].float())
        return F.mse_loss(p.view(image=Noisy(noisy, level=level, alone=alone))["image.noise"], noise)


class DiffusionScore(Score):
    """−E ‖ε − ε_θ(x_t, t, text)‖², a mean over pixels and over ``draws`` (t, ε), which are the same for every pair: levels at even distances,
    noise from a fixed seed. Shared noise is what makes few draws enough (Li et al. 2023, §3.2)."""

    needs = ("image", "text.tokens", "image.noise")
    draws = 32

    def __init__(self, model: Any):
        super().__init__(model)
        self.denoiser = model.part("denoiser")

    def drawn(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Levels [draws] and noise [draws, 3, H, W]."""
        level = ((torch.arange(self.draws) + 0.5) * self.denoiser.levels / self.draws).long()
        noise = torch.randn(self.draws, *like.shape[1:], generator=torch.Generator().manual_seed(0))
        return level.to(like.device), noise.to(like.device)

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        pairs = p.pairs(image=images, text=texts)
        x = pairs["image"].floats
        error = torch.zeros(len(x), device=x.device)
        for level, noise in zip(*self.drawn(x), strict=True):
            share = self.denoiser.shares[level].float().expand(len(x))
            noisy = Noisy(add_noise(x, noise, share), level=level.expand(len(x)))
            error += (pairs.view(image=noisy)["image.noise"] - noise).square().mean((1, 2, 3))
        return -error / self.draws


@torch.inference_mode()
def sample(model: Any, texts: list[str], steps: int = 50, guidance: float = 3.0, seed: int = 0) -> list[np.ndarray]:
    """Images for texts, uint8 [H, W, 3] (DDIM, Song et al. 2021, arXiv:2010.02502, with η = 0).

    guidance: how much further than the text moves it, the noise is moved (Ho & Salimans 2022, in the form ε = ε_none + guidance (ε_text − ε_none)).
    """
    denoiser, size = model.part("denoiser"), model.image_size
    device = denoiser.no_text.device
    p = model.encode(Batch({"text": tokenized(model.tokenizer, texts).to(device)}, len(texts)))
    x = torch.randn(len(texts), 3, size, size, generator=torch.Generator().manual_seed(seed)).to(device)
    stride = denoiser.levels // steps
    for t in range(denoiser.levels - 1, -1, -stride):
        level = torch.full((len(x),), t, device=device)
        told, untold = (
            p.view(image=Noisy(x, level=level, alone=torch.full_like(level, none, dtype=torch.bool)))["image.noise"]
            for none in (False, True)
        )
        x = ddim_step(x, untold + guidance * (told - untold), denoiser.shares, t, t - stride)
    return list(((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def ddim_step(x: Tensor, noise: Tensor, shares: Tensor, t: int, before: int) -> Tensor:
    """x at the level ``before``, below 0: without noise. The image that is expected is kept within [−1, 1]."""
    now, then = (float(shares[i]) if i >= 0 else 1.0 for i in (t, before))
    image = ((x - math.sqrt(1 - now) * noise) / math.sqrt(now)).clamp(-1, 1)
    noise = (x - math.sqrt(now) * image) / math.sqrt(1 - now)
    return math.sqrt(then) * image + math.sqrt(1 - then) * noise


def main() -> None:
    """``python -m diffusion RUN "a red fox" "a blue key" --out pictures``: one PNG a text."""
    from PIL import Image

    from diptych.inference.load import load

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    trained: Any = load(asked.run)
    asked.out.mkdir(parents=True, exist_ok=True)
    pictures = sample(trained.model, asked.texts, asked.steps, asked.guidance, asked.seed)
    for i, (text, picture) in enumerate(zip(asked.texts, pictures, strict=True)):
        path = asked.out / f"{i:02d} {text}.png"
        Image.fromarray(picture).save(path)
        print(path)


if __name__ == "__main__":
    main()
