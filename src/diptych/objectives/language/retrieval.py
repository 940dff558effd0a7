"""Writing the token by which a language model asks for an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diptych.core.encodings import TEXT
from diptych.objectives.base import Objective
from diptych.objectives.generative import next_token_loss

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


class RetrievalWords(Objective):
    """Next-token loss of texts alone that end in [RET]: when to ask for an image (FROMAGe, Koh et al. 2023, arXiv:2301.13823,
    §3.2). The mean over all words and [RET]; with a frozen language model only [RET] can learn from it.

    After each step the token gets the mean length of the word vectors, as in the authors' code.
    """

    parts = ("lm", "space")
    needs = ("text.retrieval_logits", "text")
    predicts_text = True

    def __init__(self, model: VLM):
        super().__init__(model)
        self._space: list[Any] = [model.part("space")]  # in a list: it belongs to the model

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        logits, text = p["text.retrieval_logits"], p[TEXT]
        last = torch.arange(text.ids.shape[1], device=text.ids.device) == text.mask.sum(1, keepdim=True) - 1
        targets = text.ids.masked_fill(last, logits.shape[-1] - 1)
        return next_token_loss(logits, targets[:, 1:], text.mask[:, 1:])

    def terms(self, p: Pass) -> int:
        """How many terms ``forward`` is the mean of, so that pieces of a batch are weighed as the whole would be; 0: nothing to
        do.
        """
        return int(p[TEXT].mask[:, 1:].sum())

    def after_step(self, total: Callable[..., list[float]]) -> None:
        """Scales the token."""
        self._space[0].rescale()
