"""Instruction tuning of whole models of transformers: what the assistant says, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.core.encodings import Pass


class DialogueAnswers(Objective):
    """Mean cross-entropy over the tokens of all answers of the batch, as of ``trl``'s ``SFTTrainer`` with the loss on the assistant
    alone; the same for any division into pieces.
    """

    needs = ("dialogue.logits", "dialogue")
    predicts_text = True

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        dialogue = p["dialogue"]
        return F.cross_entropy(p["dialogue.logits"].float(), dialogue.ids[:, 1:][dialogue.learned[:, 1:]])

    def terms(self, p: Pass) -> int:
        """How many tokens ``forward`` is the mean of."""
        return int(p["dialogue"].learned[:, 1:].sum())
