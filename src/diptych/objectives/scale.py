"""The learned temperature that contrastive objectives share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diptych.core.encodings import TEXT
from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from typing import Literal

    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


class ScaledObjective(Objective):
    """CLIP's learned scale (Radford et al. 2021, §2.5): 1 / ``temperature`` at the start, never above ``max_scale`` after a step.

    The parameter itself is limited, after each step of the optimizer, as CLIP and open_clip do. A limit in the forward pass would
    have no gradient above it, so that a scale that once went too far could never come back.
    """

    def __init__(self, model: VLM, *, temperature: float = 0.07, max_scale: float = 100.0):
        super().__init__(model)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.max_log_scale = math.log(max_scale)

    @property
    def scale(self) -> Tensor:
        """1 / temperature."""
        return self.logit_scale.exp()

    def after_step(self, total: Callable[..., list[float]]) -> None:
        """Limit the scale."""
        with torch.no_grad():
            self.logit_scale.clamp_(max=self.max_log_scale)

    def metrics(self) -> dict[str, float]:
        """The scale, for the log."""
        return {"scale": self.scale.item()}


def meanings(p: Pass, false_negatives: Literal["mask", "keep"]) -> Tensor | None:
    """What the captions mean, [B], for a loss that leaves captions of equal meaning out of each other's negatives; None if it
    keeps them (``keep``), or if the source does not say.
    """
    return p[TEXT].meaning if false_negatives == "mask" else None
