"""Random choices about images: which tokens are read or hidden, and which squares are cropped."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_keep(batch_size: int, n: int, hidden_share: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """A random choice of tokens to see: their indices [B, K] in order, and hidden [B, n] bool, True for the others."""
    k = max(1, round(n * (1 - hidden_share)))
    keep = torch.rand(batch_size, n, device=device).argsort(1)[:, :k].sort(1).values
    hidden = torch.ones(batch_size, n, dtype=torch.bool, device=device).scatter_(1, keep, False)
    return keep, hidden


def random_blocks(
    batch_size: int, side: int, hidden_share: float, device: torch.device, least: float = 16 / 196, aspect: float = 0.3
) -> Tensor:
    """Hidden patches of a square grid, in rectangles (BEiT, Bao et al. 2022, §2.3, algorithm 1): hidden [B, side²] bool.

    Rectangles are added until the share is hidden: of an area between ``least`` of the grid (16 of 14 × 14 patches in the paper)
    and what is still missing, with a ratio of height to width between ``aspect`` and 1 / ``aspect``, log-uniform, at a random place
    in which they fit; they may overlap. The last one is cut, row by row, so that every image has as many hidden patches as
    ``random_keep`` hides.
    """
    n = side**2
    wanted = n - max(1, round(n * (1 - hidden_share)))
    hidden = torch.zeros(batch_size, side, side, dtype=torch.bool, device=device)
    places = torch.arange(side, device=device)
    missing = torch.full((batch_size,), wanted, device=device)
    while missing.any():
        draw = torch.rand(4, batch_size, device=device)
        smallest = missing.clamp(max=least * n)
        area = smallest + draw[0] * (missing - smallest)
        ratio = ((2 * draw[1] - 1) * math.log(1 / aspect)).exp()
        height, width = (area * ratio).sqrt().round().clamp(min=1), (area / ratio).sqrt().round().clamp(min=1)
        top, left = (draw[2] * (side - height + 1)).floor(), (draw[3] * (side - width + 1)).floor()
        rows = (places >= top[:, None]) & (places < (top + height)[:, None])
        columns = (places >= left[:, None]) & (places < (left + width)[:, None])
        fits = (height <= side) & (width <= side)
        new = (rows[:, :, None] & columns[:, None, :] & ~hidden & fits[:, None, None]).flatten(1)
        new &= new.cumsum(1) <= missing[:, None]
        hidden |= new.view_as(hidden)
        missing = wanted - hidden.sum((1, 2))
    return hidden.flatten(1)


def random_cells(batch_size: int, side: int, cells: int, hidden_share: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """A random choice of square cells of a square grid to see: the indices of their patches [B, K] in order, and hidden [B, side²]
    bool, True for the others.

    cells: about how many a side; the size of a cell is the divisor of ``side`` that comes nearest. With 14 × 14 patches, 7 are
    cells of 2 × 2; with 6 × 6 patches every patch is a cell.
    """
    size = min((d for d in range(1, side + 1) if side % d == 0), key=lambda d: abs(d - side / cells))
    across = side // size
    hidden = random_keep(batch_size, across**2, hidden_share, device)[1].view(batch_size, across, across)
    hidden = hidden.repeat_interleave(size, 1).repeat_interleave(size, 2).flatten(1)
    return (~hidden).nonzero()[:, 1].view(batch_size, -1), hidden


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
