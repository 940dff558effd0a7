"""Instruction tuning: what the assistant says, token by token, given images and all that was said before (Liu et al. 2023, section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.models.passes import Pass


class Answers(Objective):
    """Mean cross-entropy over all learned tokens of the whole batch: a long answer weighs as its tokens do, however rows and pieces are cut."""

    needs = ("lm", "connector")
    predicts_text = True
    reads_turns = True

    def forward(self, p: Pass) -> Tensor:
        learned = p.batch.learned
        assert learned is not None
        return F.cross_entropy(p.answer_logits.float(), p.text_ids[:, 1:][learned[:, 1:]])

    def terms(self, p: Pass) -> int:
        assert p.batch.learned is not None
        return int(p.batch.learned[:, 1:].sum())
