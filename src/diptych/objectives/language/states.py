"""An image as the language model's state of its caption."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from diptych.core.encodings import Key
from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.core.encodings import Pass

PROJECTION, STATE = Key[Tensor]("image.projection"), Key[Tensor]("text.state")


class StateRegression(Objective):
    """The mean squared difference of an image's projection and its caption's state in the language model, which is normalised to
    mean 0 and deviation 1 and gets no gradient (after Choraria et al. 2023, arXiv:2311.07449: queries are grounded in a language
    model's representation of the caption, so that no head for matching is needed).
    """

    parts = ("lm",)
    needs = (PROJECTION, STATE)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        state = p[STATE].detach().float()
        return F.mse_loss(p[PROJECTION].float(), F.layer_norm(state, state.shape[-1:]))
