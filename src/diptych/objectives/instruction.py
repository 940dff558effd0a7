"""Instruction tuning: what the assistant says, token by token, given images and all that was said before (Liu et al. 2023, section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.core.encodings import Pass


class Answers(Objective):
    """Mean cross-entropy over all learned tokens of the whole batch: a long answer weighs as its tokens do, however rows and pieces are cut."""

    parts = ("lm", "connector")
    needs = ("turns.logits", "turns")
    predicts_text = True

    @property
    def can(self) -> frozenset[str]:
        return frozenset({"prompt"})

    def forward(self, p: Pass) -> Tensor:
        turns = p["turns"]
        return F.cross_entropy(p["turns.logits"].float(), turns.ids[:, 1:][turns.learned[:, 1:]])

    def terms(self, p: Pass) -> int:
        return int(p["turns"].learned[:, 1:].sum())
