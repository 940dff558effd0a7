"""How alike two sequences of parts are, whatever their lengths, and states that are fitted to it.

Shapes: B sequences, P parts of the longest, W width of a part's vector, D width of a state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kernel_similarity(parts: Tensor, sigma: float) -> Tensor:
    """The global alignment kernel of each two sequences (Cuturi et al. 2007, arXiv:cs/0610033, eq. 3), normalised: [B, B], 1 on the
    diagonal. It adds up all the paths by which dynamic time warping could go, a path being the product of its parts' similarities
    exp((cos − 1) / sigma), where warping takes the best path alone.

    parts [B, P, W]: unit vectors, zeros behind a sequence's end. Sequences without parts are like nothing but themselves.
    """
    real = parts.abs().sum(2) > 0
    lengths = real.sum(1)
    cosine = torch.einsum("ipw,jqw->ijpq", parts, parts)
    local = (cosine - 1) / sigma  # logarithms: products of many similarities would vanish
    B, P = real.shape
    low = parts.new_full((B, B), float("-inf"))
    table = [[low for _ in range(P + 1)] for _ in range(P + 1)]
    table[0][0] = torch.zeros_like(low)
    for a in range(1, P + 1):
        for b in range(1, P + 1):
            before = torch.stack([table[a - 1][b], table[a][b - 1], table[a - 1][b - 1]])
            table[a][b] = local[:, :, a - 1, b - 1] + before.logsumexp(0)
    whole = torch.stack([torch.stack(row, -1) for row in table], -2)  # [B, B, P + 1, P + 1]
    rows = torch.arange(B, device=parts.device)
    log = whole[rows[:, None], rows[None], lengths[:, None], lengths[None]]
    own = log.diagonal()
    found = (log - (own[:, None] + own[None]) / 2).exp()
    return torch.where(log.isfinite(), found, torch.eye(B, device=parts.device, dtype=found.dtype))


def fitted_similarity(states: Tensor, alike: Tensor, target: float, temperature: float, rows: slice | None = None) -> Tensor:
    """−Σ_j q_ij log p_ij, averaged over i: q_i the softmax of ``alike`` / target over the other sequences, p_i that of the states'
    cosines / temperature.

    states [B, D], alike [B, B]; rows: only these i are averaged (a process's share).
    """
    own = slice(0, len(states)) if rows is None else rows
    unit = F.normalize(states, dim=1)
    itself = torch.eye(len(states), dtype=torch.bool, device=states.device)[own]
    q = (alike[own] / target).masked_fill(itself, float("-inf")).softmax(1)
    log_p = (unit[own] @ unit.T / temperature).masked_fill(itself, float("-inf")).log_softmax(1)
    return -(q * log_p.masked_fill(itself, 0.0)).sum(1).mean()
