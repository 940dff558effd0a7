"""How much each patch counts in a region: weights [n, N] or [n, K, N], so that every way to pool is one matrix product.

Shapes: n regions, N = grid² patches row by row, K cells of a region's own grid, B images, D width. Boxes are left, top, right,
bottom, as shares of the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def align_weights(boxes: Tensor, grid: int, out: int = 1, sampling: int = 0) -> Tensor:
    """Weights [n, out², N] of RoIAlign (He et al. 2017, arXiv:1703.06870, §3): a box is divided into out × out cells, row by row;
    in each cell, ``sampling`` × ``sampling`` regular points read the map by bilinear interpolation, and their mean is the cell.

    sampling: 0 takes as many points a side as a cell spans patches, at least one. Coordinates are those of the centres of patches
    ("aligned": a box of exactly one patch reads that patch alone). A point beyond the centres at the border reads the border; one
    more than a patch outside reads 0.
    """
    edges = boxes * grid - 0.5
    rows = _points(edges[:, 1], edges[:, 3], grid, out, sampling)  # [n, out, grid]
    columns = _points(edges[:, 0], edges[:, 2], grid, out, sampling)
    return torch.einsum("niy,njx->nijyx", rows, columns).flatten(3).flatten(1, 2)


def _points(start: Tensor, end: Tensor, grid: int, out: int, sampling: int) -> Tensor:
    """The mean weights of the points of each cell along one axis: [n, out, grid]."""
    size = (end - start) / out  # of a cell, in patches
    count = torch.full_like(size, sampling) if sampling else size.ceil().clamp(min=1)
    most = int(count.max()) if len(count) else 1
    k = torch.arange(most, device=start.device)
    cell = torch.arange(out, device=start.device)
    at = start[:, None, None] + size[:, None, None] * (cell[:, None] + (k + 0.5) / count[:, None, None])  # [n, out, most]
    inside = (at >= -1) & (at <= grid)
    place = torch.arange(grid, device=start.device)
    weights = (1 - (at.clamp(0, grid - 1)[..., None] - place).abs()).clamp(min=0) * inside[..., None]  # a hat around each centre
    counted = (k < count[:, None]).to(weights.dtype)[:, None, :, None]
    return (weights * counted).sum(2) / count[:, None, None]


def mask_weights(masks: Tensor, grid: int) -> Tensor:
    """Weights [n, N] that sum to 1: the share of each patch that the mask covers. masks: bool [n, S, S]. A mask that covers nothing
    has the same weight everywhere.
    """
    covered = F.adaptive_avg_pool2d(masks[:, None].float(), grid).flatten(1)
    covered = torch.where(covered.sum(1, keepdim=True) > 0, covered, 1.0)
    return covered / covered.sum(1, keepdim=True)


def box_masks(boxes: Tensor, size: int) -> Tensor:
    """The pixels of boxes, bool [n, size, size]: those whose centre is inside, and the one at the centre of the box."""
    centre = (torch.arange(size, device=boxes.device) + 0.5) / size
    left, top, right, bottom = (edge[:, None] for edge in boxes.unbind(1))
    inside = ((centre >= top) & (centre < bottom))[:, :, None] & ((centre >= left) & (centre < right))[:, None, :]
    return inside | torch.unflatten(_at_centre(boxes, size), 1, (size, size))


def _at_centre(boxes: Tensor, grid: int) -> Tensor:
    """The one cell of a grid that a box's centre is in, bool [n, grid²]."""
    x, y = (((boxes[:, k] + boxes[:, k + 2]) / 2 * grid).long().clamp(0, grid - 1) for k in (0, 1))
    return F.one_hot(y * grid + x, grid * grid).bool()


def touched(boxes: Tensor, grid: int) -> Tensor:
    """The patches that share an area with a box, bool [n, N]; at least the one at its centre (X-VLM, Zeng et al. 2022, §3.1)."""
    first, last = torch.arange(grid, device=boxes.device) / grid, (torch.arange(grid, device=boxes.device) + 1) / grid
    left, top, right, bottom = (edge[:, None] for edge in boxes.unbind(1))
    result = (((last > top) & (first < bottom))[:, :, None] & ((last > left) & (first < right))[:, None, :]).flatten(1)
    return result | _at_centre(boxes, grid)


def owners(owner: Tensor | None, n: int, device: torch.device) -> Tensor:
    """The image of each of n regions, int64 [n]; without ``owner``, region i is of image i."""
    return torch.arange(n, device=device) if owner is None else owner


def pool(weights: Tensor, patches: Tensor, owner: Tensor) -> Tensor:
    """Σ_j weights_j · patch_j of each region's image: weights [n, K, N], patches [B, N, D], owner [n] → [n, K, D].

    The regions of an image are computed together, so that no image is copied for each of its regions.
    """
    B, K = len(patches), weights.shape[1]
    counts = torch.bincount(owner, minlength=B)
    most = int(counts.max()) if len(owner) else 0
    order = owner.argsort(stable=True)
    place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner[order]]  # within its image
    padded = weights.new_zeros(B, most, *weights.shape[1:])
    padded[owner[order], place] = weights[order]
    pooled = padded.flatten(1, 2).to(patches.dtype) @ patches  # [B, most · K, D]
    result = torch.unflatten(pooled, 1, (most, K))[owner[order], place] if most else patches.new_zeros(0, K, patches.shape[2])
    return result[order.argsort()]
