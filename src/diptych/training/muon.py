"""The optimizer Muon in the precision that the processor multiplies fast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, by K. Jordan: steepest at 0, so that few steps are enough
STEPS = 5
EPS = 1e-7


def orthogonalised(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """About U Vᵀ of a matrix U S Vᵀ [m, n], computed in ``dtype`` by Newton–Schulz steps X ← a X + (b A + c A²) X with A = X Xᵀ
    (Jordan et al. 2024): the singular values of the result are between 0.7 and 1.2.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=EPS)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Float32Muon(torch.optim.Muon):
    """``torch.optim.Muon``, orthogonalising in float32; with ``match_rms_adamw``, the only form that is used here.

    torch always does it in bfloat16, which a processor without instructions for it computes one number at a time: a step then takes
    fifty times as long, longer than all the rest of a small recipe's step (docs/measured.md).
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step. ``closure`` must be None: nothing here computes a loss again."""
        assert closure is None
        for group in self.param_groups:
            lr, momentum = float(group["lr"]), group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                buffer = state["momentum_buffer"]
                buffer.lerp_(p.grad, 1 - momentum)
                update = orthogonalised(p.grad.lerp(buffer, momentum), torch.float32)
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-0.2 * lr * max(p.shape) ** 0.5)
