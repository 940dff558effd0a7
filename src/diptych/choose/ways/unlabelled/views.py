"""Class vectors for one test image, moved by views of it: for callers that have the vectors of views. Not a way: a way is given one
vector for each image.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.choose.ways.descent import tensor


def least_uncertain(logits: Tensor, share: float) -> Tensor:
    """The views with the least entropy: ``share`` of them, rounded down, at least one. logits [V, C] → int64."""
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return torch.argsort(entropy, stable=True)[: max(1, int(len(logits) * share))]


def entropy_of_mean(logits: Tensor) -> Tensor:
    """The entropy (nats) of the mean prediction of views, logits [V, C]."""
    mean = logits.log_softmax(-1).exp().mean(0)
    return -(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()


def confident_entropy(logits: Tensor, share: float) -> Tensor:
    """The entropy (nats) of the mean prediction of the views of least entropy. logits [V, C]."""
    return entropy_of_mean(logits[least_uncertain(logits, share)])


def prototype_shift(
    views: np.ndarray,
    texts: np.ndarray,
    scale: float,
    *,
    share: float = 0.1,
    rate: float = 5e-3,
    steps: int = 1,
    shared: bool = False,
) -> np.ndarray:
    """TPS (Sui et al. 2024, arXiv:2403.12952): class vectors for one image, moved so that its confident views agree.

    views: unit vectors of augmented views of the image [V, E] (the authors: the image and 63 AugMix views). texts: unit class
    vectors [C, E]. shared: one shift for all classes, not one each. Returned: unit vectors [C, E], float32, with which the image
    itself is then named.

    Checked with the authors' code: a shift of zeros, added to unit vectors that are then scaled to unit length again, one AdamW
    step of 0.005, the tenth of the views of least entropy, the entropy of their mean prediction. The shift begins anew with every
    image.
    """
    x, start = tensor(views), tensor(texts)
    shift = torch.zeros_like(start[:1] if shared else start).requires_grad_()
    optimiser = torch.optim.AdamW([shift], lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            loss = confident_entropy(scale * x @ normalize(start + shift, dim=1).T, share)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    moved: np.ndarray = normalize(start + shift.detach(), dim=1).numpy()
    return moved
