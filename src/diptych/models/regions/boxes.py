"""Geometry of boxes, without parameters.

A box is left, top, right, bottom, as shares of the width and height of the square that the model reads. Shapes: [..., 4] for boxes,
which broadcast against each other as usual: ``iou(a[:, None], b[None])`` compares all with all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.core.extras import need

TINY = 1e-7  # least area by which is divided, so that an empty box gives 0 and not NaN


def to_corners(box: Tensor) -> Tensor:
    """From centre x, centre y, width, height to left, top, right, bottom: [..., 4]."""
    centre, size = box[..., :2], box[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def to_centres(box: Tensor) -> Tensor:
    """From left, top, right, bottom to centre x, centre y, width, height: [..., 4]."""
    first, last = box[..., :2], box[..., 2:]
    return torch.cat([(first + last) / 2, last - first], -1)


def area(box: Tensor) -> Tensor:
    """[...]; 0 for a box whose right edge is left of its left one."""
    return (box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of the intersection and of the union: [...] each."""
    inside = torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], -1)
    common = area(inside)
    return common, area(a) + area(b) - common


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, 0 … 1: [...]."""
    common, union = _overlap(a, b)
    return common / union.clamp(min=TINY)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union, −1 … 1: IoU − (hull − union) / hull, the hull being the least box around both
    (Rezatofighi et al. 2019, arXiv:1902.09630, algorithm 1): [...].
    """
    common, union = _overlap(a, b)
    hull = area(torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1))
    return common / union.clamp(min=TINY) - (hull - union) / hull.clamp(min=TINY)


def box_losses(predicted: Tensor, true: Tensor) -> Tensor:
    """ℓ1 of centre, width and height (the sum of the four, as in DETR and X-VLM) plus 1 − GIoU, for aligned boxes: [...]."""
    return (to_centres(predicted) - to_centres(true)).abs().sum(-1) + 1 - giou(predicted, true)


def match_cost(predicted: Tensor, true: Tensor) -> Tensor:
    """What assigning a predicted box to a true one costs, 5 · ℓ1 − 2 · GIoU (DETR, Carion et al. 2020; GRAIN), of P predicted and
    n true boxes: [P, n].
    """
    a, b = predicted[:, None], true[None]
    return 5 * (to_centres(a) - to_centres(b)).abs().sum(-1) - 2 * giou(a, b)


@torch.no_grad()
def assigned(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs (row, column) of the assignment with the least total cost, min(P, n) of them, int64, by row (the Hungarian method
    of scipy). cost: [P, n]. DiptychError if scipy is not installed.
    """
    optimize: Any = need("scipy.optimize", extra="adapt", what="matching boxes one to one")
    rows, columns = optimize.linear_sum_assignment(cost.detach().float().cpu().numpy().astype(np.float64))
    return torch.as_tensor(rows, device=cost.device), torch.as_tensor(columns, device=cost.device)
