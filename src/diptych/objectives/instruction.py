"""Instruction tuning: what the assistant says, token by token, given images and all previous turns (Liu et al. 2023, section
4.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.core.encodings import Pass


class Answers(Objective):
    """Mean cross-entropy over all learned tokens of the whole batch: an answer weighs in proportion to its length, for any division
    into rows and pieces.
    """

    parts = ("lm", "connector")
    needs = ("turns.logits", "turns")
    predicts_text = True

    @property
    def can(self) -> frozenset[str]:
        """Capabilities (``core.capabilities``) that a model has learned by it."""
        return frozenset({"prompt"})

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        turns = p["turns"]
        return F.cross_entropy(p["turns.logits"].float(), turns.ids[:, 1:][turns.learned[:, 1:]])

    def terms(self, p: Pass) -> int:
        """How many terms ``forward`` is the mean of, so that pieces of a batch are weighed as the whole would be; 0: nothing to
        do.
        """
        return int(p["turns"].learned[:, 1:].sum())
