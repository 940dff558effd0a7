"""The next token of captions and images in one sequence, in either order (Chameleon Team 2024; CM3leon, Yu et al. 2023)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.core.encodings import IMAGE_CODES, TEXT
from diptych.models.decoders.interleaved import CODE, WORD
from diptych.objectives.base import Objective
from diptych.objectives.generative import token_log_probabilities

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def orders(places: range, image_first: float, drop: float) -> tuple[Tensor, Tensor]:
    """Which samples put the image before the caption, and which of the others lose their caption: two bool [B].

    Chosen evenly by position in the whole batch, so that its pieces agree; the order of samples is random already.
    """

    def hit(count: int, share: float) -> bool:
        """Whether ``share`` times the count passes a whole number here, as it does for a share of the counts."""
        return math.floor((count + 1) * share) > math.floor(count * share)

    first = [hit(place, image_first) for place in places]
    earlier = [place - math.floor(place * image_first) for place in places]  # with the caption first, before this one
    bare = [not f and hit(n, drop) for f, n in zip(first, earlier, strict=True)]
    return torch.tensor(first), torch.tensor(bare)


class Interleaved(Objective):
    """Mean cross-entropy over all tokens after [BOS], those of images weighed by ``image_weight``.

    image_first: share of the samples that learn to caption; the others learn to draw. drop: share of these others that lose their
    caption, so that the model also learns the distribution of images alone, which guidance and the prior correction need.
    """

    parts = ("quantizer", "decoder")
    needs = ("image.codes", "text")
    predicts_text = True

    def __init__(
        self,
        model: VLM,
        *,
        image_first: Annotated[float, Field(ge=0, le=1)] = 0.5,
        drop: Annotated[float, Field(ge=0, le=1)] = 0.1,
        image_weight: Annotated[float, Field(ge=0)] = 1.0,
    ):
        super().__init__(model)
        self._decoder = [model.part("decoder")]  # in a list: shared, not owned
        self.image_first, self.drop, self.image_weight = image_first, drop, image_weight
        self._noted: dict[str, float] = {}

    @property
    def can(self) -> frozenset[str]:
        """Capabilities (``core.capabilities``) that a model has learned by it."""
        captions = {"generate", "decoding", "loglikelihood"} if self.image_first > 0 else set()
        return frozenset(captions | ({"draw"} if self.image_first < 1 else set()))

    def orders(self, p: Pass) -> tuple[Tensor, Tensor]:
        """Which samples put the image first, and which of the others have no caption: two bool [B]."""
        start = p.batch.start
        first, bare = orders(range(start, start + p.size), self.image_first, self.drop)
        return first.to(p[TEXT].ids.device), bare.to(p[TEXT].ids.device)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        decoder, text = self._decoder[0], p[TEXT]
        sequence, kind = decoder.arrange(p[IMAGE_CODES], text.ids, text.mask, *self.orders(p))
        target, kind = sequence[:, 1:], kind[:, 1:]
        counted = kind != 0
        losses = F.cross_entropy(decoder.logits_at(sequence[:, :-1], counted).float(), target[counted], reduction="none")
        of_word, of_code = losses[kind[counted] == WORD], losses[kind[counted] == CODE]
        self._noted = {"word": float(of_word.detach().mean()), "code": float(of_code.detach().mean())}
        return (of_word.sum() + self.image_weight * of_code.sum()) / max(self.terms(p), 1e-9)

    def terms(self, p: Pass) -> float:
        """The sum of the weights: words and marks count 1 each, codes ``image_weight``."""
        _, bare = self.orders(p)
        words = p[TEXT].mask.sum(1).masked_fill(bare, 2) + 1  # without [BOS], with the marks around the image
        return float(words.sum()) + self.image_weight * p.size * int(self._decoder[0].tokens)

    def metrics(self) -> dict[str, float]:
        """Mean losses of the last piece, in nats."""
        return self._noted


def image_log_likelihood(p: Pass) -> Tensor:
    """log p(image codes | caption) in nats, summed over the codes: [B]."""
    return token_log_probabilities(p["image.code_logits"], p[IMAGE_CODES]).sum(1)
