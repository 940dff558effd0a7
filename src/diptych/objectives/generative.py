"""Generative objectives: the caption, token by token, given the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.core.encodings import TEXT, TEXT_LOGITS, Key
from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.core.batch import Texts
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def token_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """log P of each target: logits [B, T, V], targets [B, T] → [B, T], float32."""
    return -F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")


Per = Literal["token", "sample"]


def next_token_loss(logits: Tensor, targets: Tensor, mask: Tensor, smoothing: float = 0.0, per: Per = "token") -> Tensor:
    """Cross-entropy of all real tokens of the batch: their mean, or with ``per`` ``sample`` the sum of each text's tokens, averaged
    over texts. In both a text weighs in proportion to its length; the second is larger by the mean length, so it weighs more next
    to other objectives.

    logits: [B, T, V]; targets: [B, T]; mask: [B, T] bool, True at tokens to be learned. smoothing: the share of the target that is
    spread over the whole vocabulary (Szegedy et al. 2016, §7).
    """
    losses = F.cross_entropy(logits[mask].float(), targets[mask], reduction="sum", label_smoothing=smoothing)
    return losses / terms_of(mask, per)


def terms_of(mask: Tensor, per: Per) -> int:
    """What a sum of token losses is divided by: the number of real tokens, or of texts; at least 1. mask: [B, T] bool."""
    return max(1, int(mask.sum()) if per == "token" else len(mask))


class NextToken(Objective):
    """Captioning: every token after [BOS] from the image and the tokens before it (CoCa's and LLaVA's generative loss). BLIP
    smooths labels by 0.1.

    per: ``token``: the mean over all tokens, as in LLaVA's code; ``sample``: each caption's tokens are summed, captions averaged
    (Ak et al., equation 2).
    writer: the part that gives the logits; None: the one that provides ``text.logits`` (``encodings`` of the recipe, if there are
    two). image: False: from the text alone, as language models are trained (``text.blind_logits``). after: only tokens behind the
    first occurrence of this piece of text count, such as those of a completion; all tokens of a text without it, and "" for all.
    """

    predicts_text = True

    def __init__(
        self,
        model: VLM,
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        writer: Literal["lm", "decoder"] | None = None,
        per: Per = "token",
        image: bool = True,
        after: str = "",
    ):
        super().__init__(model)
        self.label_smoothing, self.per = label_smoothing, per
        name = "text.logits" if image else "text.blind_logits"
        self.logits = Key[Tensor](f"{name}@{writer}" if writer else name)
        self.needs = (self.logits, "text")
        self.mark: list[int] = model.tokenizer.caption_pieces([after])[0] if after else []

    def learned(self, text: Texts) -> Tensor:
        """Which tokens count, [B, T − 1] bool: those after [BOS], or behind the mark."""
        real = text.mask[:, 1:]
        if not self.mark:
            return real
        n = len(self.mark)
        found = torch.zeros_like(text.mask)
        if text.ids.shape[1] >= n:
            windows = text.ids.unfold(1, n, 1)
            found[:, n - 1 :] = (windows == text.ids.new_tensor(self.mark)).all(-1)  # at its last token
        behind = found.cumsum(1)[:, :-1] > 0
        return real & (behind | ~found.any(1, keepdim=True))

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        text = p[TEXT]
        return next_token_loss(p[self.logits], text.ids[:, 1:], self.learned(text), self.label_smoothing, self.per)

    def terms(self, p: Pass) -> int:
        """How many terms ``forward`` is the mean of, so that pieces of a batch are weighed as the whole would be; 0: nothing to
        do.
        """
        mask = self.learned(p[TEXT])
        return terms_of(mask, self.per) if bool(mask.any()) else 0


def improbability(log_p: Tensor, alpha: float) -> Tensor:
    """(1 − p)^α of each token's probability under a language model that sees no image: near 0 for tokens that the previous words
    predict. log_p of any shape; the same shape is returned.
    """
    return (1 - log_p.exp()).clamp(min=0) ** alpha


def averaging_one(weights: Tensor, mask: Tensor) -> Tensor:
    """Weights [B, T] scaled so that those of each text's real tokens average 1; 1 where all of them are 0. mask: [B, T] bool."""
    weights = weights * mask
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0, weights * mask.sum(1, keepdim=True) / total.clamp(min=1e-12), mask.to(weights.dtype))


class PriorNextToken(NextToken):
    """Captioning in which a token weighs more, the less the language model expects it without the image (PRIOR, 2025: tokens that
    depend on the picture are improbable under a text-only reference). Weights carry no gradient.

    The weights of a caption average 1, so a caption of k tokens counts as much as in plain captioning: its loss is
    −Σ_i k·w_i / Σ_j w_j · log p_i.
    alpha: sharpness; 0 is plain captioning. per: as in plain captioning. reference: the name of a teacher, in the paper the
    language model trained on the captions alone; ``self``: this language model as it is, on the text alone.
    """

    parts = ("lm",)

    def __init__(self, model: VLM, *, alpha: float = 1.0, reference: str = "self", per: Per = "token"):
        super().__init__(model, per=per)
        self.alpha = alpha
        self.blind = "text.blind_logits" if reference == "self" else f"{reference}:text.blind_logits"
        self.needs = (*self.needs, self.blind)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        targets, mask = p[TEXT].ids[:, 1:], p[TEXT].mask[:, 1:]
        with torch.no_grad():
            blind = token_log_probabilities(p[self.blind], targets)
            weights = averaging_one(improbability(blind, self.alpha), mask)
        losses = -token_log_probabilities(p[self.logits], targets)
        return (weights * losses).sum() / terms_of(mask, self.per)


def caption_log_likelihood(p: Pass) -> Tensor:
    """log P(caption | image) in nats, summed over the tokens after [BOS], [EOS] included: [B]."""
    logits, text = p[TEXT_LOGITS], p[TEXT]
    T = 1 + logits.shape[1]  # the length of these texts, without padding that none of them needs
    return (token_log_probabilities(logits, text.ids[:, 1:T]) * text.mask[:, 1:T]).sum(1)
