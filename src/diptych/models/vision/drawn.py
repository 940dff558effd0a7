"""Random choices about images: which tokens are read, and which squares are cropped."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def random_keep(batch_size: int, n: int, hidden_share: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """A random choice of tokens to see: their indices [B, K] in order, and hidden [B, n] bool, True for the others."""
    k = max(1, round(n * (1 - hidden_share)))
    keep = torch.rand(batch_size, n, device=device).argsort(1)[:, :k].sort(1).values
    hidden = torch.ones(batch_size, n, dtype=torch.bool, device=device).scatter_(1, keep, False)
    return keep, hidden


def random_crops(pixels: Tensor, least: float, most: float = 1.0) -> Tensor:
    """A random square of ``least`` to ``most`` of each image's area, scaled back to its size: [B, 3, H, W]."""
    B, device = len(pixels), pixels.device
    side = (least + (most - least) * torch.rand(B, device=device)).sqrt()
    shift = (2 * torch.rand(B, 2, device=device) - 1) * (1 - side)[:, None]
    theta = torch.zeros(B, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
