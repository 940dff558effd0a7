"""Prompts that make a language model say a sentence, and images that become such prompts (P-Former)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.core.encodings import TEXT, Key
from diptych.core.errors import DiptychError
from diptych.objectives.base import Objective, Scaled
from diptych.objectives.generative import next_token_loss

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

PROMPTS, PREFIX = Key[Tensor]("text.prompts"), Key[Tensor]("image.prefix")
ONE, AGAIN = Key[Tensor]("text.sentence"), Key[Tensor]("text.sentence_again")


def nearest_words(prompts: Tensor, words: Tensor) -> Tensor:
    """The nearest of the word vectors [V, D] by ℓ2 for each of the prompts [B, n, D]: [B, n, D]."""
    with torch.no_grad():
        which = torch.cdist(prompts.flatten(0, 1).float(), words.float()).argmin(1)
    return words[which].view_as(prompts)


class SentencePrompts(Objective):
    """The language model says the sentence behind its own prompt, and each prompt vector is near a word vector: next-token loss +
    words · mean squared difference to the nearest one, which gets no gradient (P-Former, Jian et al. 2023, arXiv:2307.07063, §3.1).
    """

    parts = ("lm",)
    needs = (PROMPTS, "text")
    predicts_text = True
    borrows = True

    def __init__(self, model: VLM, *, words: Annotated[float, Field(ge=0)] = 1.0):
        super().__init__(model)
        self.words = words
        self._lm: list[Any] = [model.part("lm")]  # in a list: it belongs to the model

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        prompts, text, lm = p[PROMPTS], p[TEXT], self._lm[0]
        logits = lm.caption_logits(prompts, text.ids, text.mask)
        said = next_token_loss(logits, text.ids[:, 1:], text.mask[:, 1:])
        vocabulary = lm.lm.embed(torch.arange(lm.lm.vocabulary, device=prompts.device)[None])[0].detach().float() / lm.scale
        return said + self.words * F.mse_loss(prompts.float(), nearest_words(prompts.float(), vocabulary))


class SentenceContrast(Scaled):
    """Two draws of dropout on a sentence must find each other among the sentences of a batch (SimCSE, Gao et al. 2021,
    arXiv:2104.08821, eq. 1), with a learned scale.
    """

    couples = (ONE, AGAIN)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        one, again = (F.normalize(p[key].float(), dim=1) for key in (ONE, AGAIN))
        own = p.rows or slice(0, len(one))
        logits = self.scale * one[own] @ again.T
        return F.cross_entropy(logits, torch.arange(own.start, own.stop, device=logits.device))


class PromptRegression(Objective):
    """The mean squared difference of what the language model reads of an image and the prompt of its caption, which gets no
    gradient (P-Former, §3.2: weight 10 in BLIP-2's first stage, 100 in its second).
    """

    parts = ("connector",)
    needs = (PREFIX, PROMPTS)

    def __init__(self, model: VLM):
        super().__init__(model)
        if model.graph.gives(PROMPTS):
            made: Any = model.graph.plain(PROMPTS).owner
            own = model.part("connector").tokens
            if made.tokens != own:
                raise DiptychError(
                    f"objective prompt_regression: the prompter has {made.tokens} tokens, the connector {own}; make them equal"
                )

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        return F.mse_loss(p[PREFIX].float(), p[PROMPTS].detach().float())
