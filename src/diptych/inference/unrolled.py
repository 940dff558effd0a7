"""Expectation–maximisation over the images of a call, with labelled images as the known part (UNEM, Zhou et al. 2025,
arXiv:2412.16739): the iterations are layers, whose balance and temperature may be learned by back-propagation.

Checked with the authors' code: the two updates, their order and where each begins, the softplus of the three parameters, the 1e-6
and 1e-15 within logarithms. It finds the Dirichlet parameters by up to 1,000 steps of a minorisation; here by Newton's method,
which has the same limit, and the gradient of the limit by the implicit function theorem.

Shapes: B tasks, S labelled images, N images of the call (queries), E width, C classes, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from diptych.core.errors import DiptychError
from diptych.inference.heads import Head

NEVER = -1e4  # the logit of a class of which nothing is known


def _assign(logits: Tensor, shares: Tensor, balance: Tensor, temperature: Tensor) -> Tensor:
    """log u [B, N, C]: softmax of (log p + γ·v) / (softplus(t) + 1), γ = softplus(balance), v [B, C] a term of each class."""
    scaled = (logits + softplus(balance) * shares[:, None]) / (softplus(temperature) + 1)
    return scaled.log_softmax(-1)


def gaussian(
    support: Tensor, onehot: Tensor, query: Tensor, start: Tensor, sharpness: Tensor, balance: Tensor, temperature: Tensor,
    weight: Tensor | None = None, known: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """log of the assignments [B, N, C] by classes that are Gaussians of one width, about means that all images move.

    support [B, S, E], onehot [B, S, C], query [B, N, E]; start [C, E]: where the mean of a class without labelled images begins;
    sharpness: softplus of it multiplies all vectors; balance and temperature [L]; weight [B, N]: 0 for queries that do not count;
    known [C]: False for classes that are never named.
    """
    sharp = softplus(sharpness)
    support, query, start = sharp * support, sharp * query, sharp * start
    weight = torch.ones_like(query[..., 0]) if weight is None else weight
    counts = onehot.sum(1)[..., None]  # [B, C, 1]
    sums = onehot.transpose(1, 2) @ support
    means = torch.where(counts > 0, sums / counts.clamp_min(1), start)
    v = torch.ones_like(counts[..., 0])
    assigned = query.new_zeros(())
    for gamma, t in zip(balance, temperature, strict=True):
        logits = query @ means.transpose(1, 2) - means.square().sum(-1)[:, None] / 2 - query.square().sum(-1)[..., None] / 2
        if known is not None:
            logits = torch.where(known, logits, logits.new_tensor(NEVER))
        assigned = _assign(logits, v, gamma, t)
        u = assigned.exp() * weight[..., None]
        v = (u.sum(1) / weight.sum(1, keepdim=True) + 1e-6).log() + 1
        # the 1e-6 keeps a class in place to which no image belongs
        means = (sums + u.transpose(1, 2) @ query + 1e-6 * means) / (counts + u.sum(1)[..., None] + 1e-6)
    return assigned


def dirichlet(
    support: Tensor, onehot: Tensor, query: Tensor, sharpness: Tensor, balance: Tensor, temperature: Tensor,
    weight: Tensor | None = None, prior: float = 1e-3,
) -> Tensor:  # fmt: skip
    """log of the assignments [B, N, C] by classes that are Dirichlet distributions over softmax(sharpness · cosines with the
    names).

    support [B, S, C] and query [B, N, C]: cosines; the rest as for ``gaussian``. prior: by how many images' weight each class has
    seen flat features; without it, a class that is one image has no finite parameters (the authors' code ends before they grow).
    """
    begin = (sharpness * query).softmax(-1)
    support, query = _log(sharpness * support), _log(sharpness * query)
    weight = torch.ones_like(query[..., 0]) if weight is None else weight
    classes = query.shape[-1]
    flat = torch.digamma(query.new_tensor(1.0)) - torch.digamma(query.new_tensor(float(classes)))
    counts, sums = onehot.sum(1)[..., None], onehot.transpose(1, 2) @ support
    alpha = query.new_ones((len(query), classes, classes))
    u = begin * weight[..., None]
    assigned = query.new_zeros(())
    for gamma, t in zip(balance, temperature, strict=True):
        mean = (sums + u.transpose(1, 2) @ query + prior * flat) / (counts + u.sum(1)[..., None] + prior)
        alpha = dirichlet_fit(mean, alpha.detach())
        v = (u.sum(1) / weight.sum(1, keepdim=True) + 1e-15).log() + 1
        normaliser = torch.lgamma(alpha.sum(-1)) - torch.lgamma(alpha).sum(-1)
        assigned = _assign(normaliser[:, None] + query @ (alpha - 1).transpose(1, 2), v, gamma, t)
        u = assigned.exp() * weight[..., None]
    return assigned


def _log(logits: Tensor) -> Tensor:
    return (logits.softmax(-1) + 1e-15).log()


def dirichlet_fit(mean: Tensor, start: Tensor | None = None) -> Tensor:
    """Parameters of the Dirichlet distributions of greatest likelihood, given the mean logarithms of what they drew [..., C].

    Solves digamma(α) − digamma(Σα) = mean; differentiable with respect to mean. Needs Σ exp(mean) < 1.
    """
    fitted: Tensor = _Fit.apply(mean, torch.ones_like(mean) if start is None else start)  # type: ignore[no-untyped-call]
    return fitted


class _Fit(torch.autograd.Function):
    """Newton's method on a concave function, with steps halved until it rises; the gradient by the implicit function theorem."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, start: Tensor) -> Tensor:
        """The concentrations [..., C] at which the likelihood is highest."""
        alpha = start.clone()

        def height(a: Tensor) -> Tensor:
            """The log likelihood, up to a constant, [...]."""
            return torch.lgamma(a.sum(-1)) - torch.lgamma(a).sum(-1) + ((a - 1) * mean).sum(-1)

        for _ in range(100):
            slope = torch.digamma(alpha.sum(-1, keepdim=True)) - torch.digamma(alpha) + mean
            if slope.abs().max() < 1e-9:
                break
            step, before = _curved(alpha, slope), height(alpha)
            size = torch.ones_like(before)
            for _ in range(40):
                new = alpha + size[..., None] * step
                bad = (new <= 0).any(-1) | (height(new.clamp_min(1e-12)) < before - 1e-12 * before.abs())
                if not bad.any():
                    break
                size = torch.where(bad, size / 2, size)
            alpha = torch.where(bad[..., None], alpha, new)
            if bool(bad.all()) or (size[..., None] * step).abs().max() < 1e-12:
                break
        ctx.save_for_backward(alpha)
        return alpha

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient of the means; none of the start, on which the result does not depend."""
        (alpha,) = ctx.saved_tensors
        return _curved(alpha, grads[0]), None


def _curved(alpha: Tensor, vector: Tensor) -> Tensor:
    """(−Hessian)^-1 vector; −Hessian = diag(trigamma(α)) − trigamma(Σα) 1 1ᵀ, by the Sherman–Morrison formula."""
    inverse = 1 / torch.polygamma(1, alpha)
    shared = torch.polygamma(1, alpha.sum(-1, keepdim=True))
    part = inverse * vector
    return part + inverse * shared * part.sum(-1, keepdim=True) / (1 - shared * inverse.sum(-1, keepdim=True))


@dataclass(frozen=True)
class Unrolled(Head):
    """The EM of this module, of labelled images and all images of a call together. Logits are the logarithms of the assignments."""

    keys: np.ndarray  # unit vectors of the labelled images [S, E]
    values: np.ndarray  # their classes, one-hot [S, C]
    texts: np.ndarray  # dirichlet: unit vectors of the names; gaussian: where classes without images begin [C, E]
    balance: np.ndarray  # [L]
    temperature: np.ndarray  # [L]
    sharpness: float
    form: str  # gaussian or dirichlet

    together: ClassVar[bool] = True

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[N, C]"""
        if self.form not in ("gaussian", "dirichlet"):
            raise DiptychError(f"form must be gaussian or dirichlet, not {self.form}")
        if not len(x):
            return np.zeros((0, self.values.shape[1]))
        keys, values, texts, query = (torch.tensor(a, dtype=torch.float64) for a in (self.keys, self.values, self.texts, x))
        balance, temperature, sharp = (
            torch.tensor(a, dtype=torch.float64) for a in (self.balance, self.temperature, self.sharpness)
        )
        with torch.no_grad():
            if self.form == "dirichlet":
                result = dirichlet((keys @ texts.T)[None], values[None], (query @ texts.T)[None], sharp, balance, temperature)
            else:
                known = (values.sum(0) > 0) | (texts.abs().sum(1) > 0)
                result = gaussian(keys[None], values[None], query[None], texts, sharp, balance, temperature, None, known)
        return result[0].numpy()
