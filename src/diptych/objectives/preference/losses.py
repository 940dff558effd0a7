"""The formulas of learning from pairs of answers. π: the model that learns; π₀: the reference; c, r: the chosen and the rejected
answer. Shapes: B pairs, T tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def answer_scores(logps: Tensor, learned: Tensor, marked: Tensor, span_weight: float = 1.0, normalise: bool = False) -> Tensor:
    """log π of whole answers: Σ_t w_t log p_t, with w = ``span_weight`` at marked tokens and 1 at the others; with ``normalise``
    divided by Σ_t w_t (RLHF-V, Yu et al. 2024, arXiv:2312.00849, equation 4).

    logps: [..., T], log p_t; learned, marked: [..., T] bool, an answer's tokens and those where the two answers differ. Returns
    [...].
    """
    weights = torch.where(marked, span_weight, 1.0).to(logps.dtype) * learned
    total = (weights * logps).sum(-1)
    return total / weights.sum(-1).clamp(min=1e-12) if normalise else total


def dpo_loss(margin: Tensor, beta: float, smoothing: float = 0.0, robust: bool = False) -> Tensor:
    """−log σ(β m) for each pair, m = log π/π₀ (c) − log π/π₀ (r) (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    smoothing: ε, the chance that a pair's answers are the wrong way round: −(1 − ε) log σ(β m) − ε log σ(−β m) (Mitchell 2023);
    robust: unbiased under such errors, [−(1 − ε) log σ(β m) + ε log σ(−β m)] / (1 − 2 ε) (Chowdhury et al. 2024,
    arXiv:2403.00409, equation 12). margin: [B]; returns [B].
    """
    right, wrong = -F.logsigmoid(beta * margin), -F.logsigmoid(-beta * margin)
    if robust:
        return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)
    return (1 - smoothing) * right + smoothing * wrong


def quality_loss(chosen: Tensor, rejected: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    """−log σ(R_c − δ) − log σ(−(R_r − δ)) for each pair: each answer alone is told to be good or bad (BCO, Jung et al. 2024,
    arXiv:2404.04656; the quality loss of MPO, Wang et al. 2024, arXiv:2411.10442, §3.2).

    chosen, rejected: rewards R = β log π/π₀ [B]; shift: δ, a mean of earlier rewards. Returns [B].
    """
    return -F.logsigmoid(chosen - shift) - F.logsigmoid(-(rejected - shift))


def generation_loss(logps: Tensor, learned: Tensor) -> Tensor:
    """−log π(c) / |c|, the mean over each answer's tokens (MPO, §3.2). logps, learned: [B, T]; returns [B]."""
    return -(logps * learned).sum(-1) / learned.sum(-1).clamp(min=1)


def ranking_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """−log σ(r_c − r_r − m) for each pair of rewards [B] (Bradley and Terry 1952; Ouyang et al. 2022, equation 1). margin: by how
    much they should differ at least. Returns [B].
    """
    return -F.logsigmoid(chosen - rejected - margin)
