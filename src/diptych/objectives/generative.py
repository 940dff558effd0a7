"""Generative objectives: the caption, token by token, given the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.models.passes import Pass
    from diptych.models.vlm import VLM


def token_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """log P of each target: logits [B, T, V], targets [B, T] → [B, T], float32."""
    return -F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")


def next_token_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy over all real tokens of the batch, so that a long caption weighs as its tokens do.

    logits: [B, T, V]; targets: [B, T]; mask: [B, T] bool, True at tokens to be learned.
    """
    losses = F.cross_entropy(logits[mask].float(), targets[mask], reduction="sum")
    return losses / mask.sum().clamp(min=1)


class NextToken(Objective):
    """Captioning: every token after [BOS] from the image and the tokens before it (CoCa's and LLaVA's generative loss)."""

    predicts_text = True

    def __init__(self, model: VLM):
        super().__init__(model)
        if not {"decoder", "lm"} & set(model.parts):
            model.part("decoder")  # says what is missing

    def forward(self, p: Pass) -> Tensor:
        return next_token_loss(p.next_token_logits, p.text_ids[:, 1:], p.text_mask[:, 1:])

    def terms(self, p: Pass) -> int:
        return int(p.text_mask[:, 1:].sum())


def caption_log_likelihood(p: Pass) -> Tensor:
    """log P(caption | image) in nats, summed over the tokens after [BOS], [EOS] included: [B]."""
    log_p = token_log_probabilities(p.next_token_logits, p.text_ids[:, 1:])
    return (log_p * p.text_mask[:, 1:]).sum(1)
