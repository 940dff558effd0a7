"""The next token of sequences of words and image codes: captioned images in either order, and documents of several texts and images
(Chameleon Team 2024; CM3leon, Yu et al. 2023).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from diptych.core.encodings import IMAGE_CODES, TEXT
from diptych.models.decoders.interleaved import CODE, NOTHING, WORD
from diptych.objectives.base import Objective
from diptych.objectives.generative import token_log_probabilities

if TYPE_CHECKING:
    from diptych.core.batch import Documents
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
    """Mean cross-entropy over all tokens after [BOS], those of images weighed by ``image_weight``, of captioned images.

    image_first: share of the samples that learn to caption; the others learn to draw. drop: share of these others that lose their
    caption, so that the model also learns the distribution of images alone, which guidance and the prior correction need. z_loss:
    the weight of log² Z, added to each token's cross-entropy, where Z is the sum of the exponentials of its logits: it keeps logits
    from drifting, to which the softmax is blind (Chameleon Team 2024, §2.3.1: 1e-5; 0: none).
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
        z_loss: Annotated[float, Field(ge=0)] = 0.0,
    ):
        super().__init__(model)
        self._decoder = [model.part("decoder")]  # in a list: shared, not owned
        self.image_first, self.drop, self.image_weight, self.z_loss = image_first, drop, image_weight, z_loss
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
        text = p[TEXT]
        sequence, kind = self._decoder[0].arrange(p[IMAGE_CODES], text.ids, text.mask, *self.orders(p))
        return self.loss(sequence, kind) / max(self.terms(p), 1e-9)

    def loss(self, sequence: Tensor, kind: Tensor) -> Tensor:
        """The weighted sum over the tokens after the first of sequences [B, L] with kinds [B, L]."""
        target, kind = sequence[:, 1:], kind[:, 1:]
        counted = kind != NOTHING
        logits = self._decoder[0].logits_at(sequence[:, :-1], counted).float()
        losses = F.cross_entropy(logits, target[counted], reduction="none")
        is_word, is_code = kind[counted] == WORD, kind[counted] == CODE
        self._noted = {
            name: float(losses[which].detach().mean())
            for name, which in (("word", is_word), ("code", is_code))
            if bool(which.any())
        }
        if self.z_loss:
            log_z = logits.logsumexp(-1)
            self._noted["log_z"] = float(log_z.detach().mean())
            losses = losses + self.z_loss * log_z.square()
        return losses[is_word].sum() + self.image_weight * losses[is_code].sum()

    def terms(self, p: Pass) -> float:
        """The sum of the weights: words and marks count 1 each, codes ``image_weight``."""
        _, bare = self.orders(p)
        words = p[TEXT].mask.sum(1).masked_fill(bare, 2) + 1  # without [BOS], with the marks around the image
        return float(words.sum()) + self.image_weight * p.size * int(self._decoder[0].tokens)

    def metrics(self) -> dict[str, float]:
        """Mean losses of the last piece, in nats, and the mean of log Z."""
        return self._noted


class InterleavedDocuments(Interleaved):
    """``Interleaved`` for documents: several texts and images in their own order, with a loss over the tokens of both.

    A document of one text and one image is a captioned image, which is read in the order that ``image_first`` says; others keep
    their order. drop: share of the documents that are not read image first which lose all their texts. length: tokens after which
    a sequence is cut (Chameleon's context is 4,096).
    """

    needs = ("document.images.codes", "document")

    def __init__(
        self,
        model: VLM,
        *,
        image_first: Annotated[float, Field(ge=0, le=1)] = 0.5,
        drop: Annotated[float, Field(ge=0, le=1)] = 0.1,
        image_weight: Annotated[float, Field(ge=0)] = 1.0,
        z_loss: Annotated[float, Field(ge=0)] = 0.0,
        length: Annotated[int, Field(ge=8)] = 4096,
    ):
        super().__init__(model, image_first=image_first, drop=drop, image_weight=image_weight, z_loss=z_loss)
        self.length = length

    @property
    def can(self) -> frozenset[str]:
        """Capabilities (``core.capabilities``) that a model has learned by it."""
        return super().can | {"compose"}

    def arranged(self, p: Pass) -> tuple[Tensor, Tensor]:
        """The sequences of a batch [B, L], padded at the end, and the kind of each token. The codes of images count in ``terms``
        and in ``forward``: they are computed once, and kept with the pass.
        """
        documents, key = p["document"], (f"{id(self)}: arranged", True)
        if key in p.memo:
            known: tuple[Tensor, Tensor] = p.memo[key]
            return known
        parts = self._parts(p, documents)
        first, bare = orders(range(p.batch.start, p.batch.start + p.size), self.image_first, self.drop)
        decoder, rows = self._decoder[0], []
        for i, own in enumerate(parts):
            if sorted(kind for kind, _ in own) == [WORD, CODE]:
                own = sorted(own, key=lambda part: part[0], reverse=bool(first[i]))
            if bare[i] and any(kind == CODE for kind, _ in own):
                own = [part for part in own if part[0] == CODE]
            sequence, kinds = decoder.sequence(own)
            rows.append((sequence[: self.length], kinds[: self.length]))
        result = (
            pad_sequence([sequence for sequence, _ in rows], batch_first=True, padding_value=decoder.pad),
            pad_sequence([kinds for _, kinds in rows], batch_first=True, padding_value=NOTHING),
        )
        p.memo[key] = result
        return result

    def _parts(self, p: Pass, documents: Documents) -> list[list[tuple[int, Tensor]]]:
        """The parts of each document in order: words without [BOS] and [EOS], or codes."""
        result: list[list[tuple[int, Tensor]]] = [[] for _ in range(p.size)]
        texts = iter(()) if documents.texts is None else zip(documents.texts.ids, documents.texts.mask.sum(1).tolist(), strict=True)
        with torch.no_grad():
            images = iter(()) if documents.images is None else iter(p["document.images.codes"])
        owners = range(p.size) if documents.owner is None else documents.owner.tolist()
        for owner, kind in zip(owners, documents.kind.tolist(), strict=True):
            if kind == 0:
                ids, n = next(texts)
                result[owner].append((WORD, ids[1 : n - 1]))
            else:
                result[owner].append((CODE, next(images)))
        return result

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        return self.loss(*self.arranged(p)) / max(self.terms(p), 1e-9)

    def terms(self, p: Pass) -> float:
        """The sum of the weights: words and marks count 1 each, codes ``image_weight``."""
        kind = self.arranged(p)[1][:, 1:]
        return float((kind == WORD).sum()) + self.image_weight * float((kind == CODE).sum())


def image_log_likelihood(p: Pass) -> Tensor:
    """log p(image codes | caption) in nats, summed over the codes: [B]."""
    return token_log_probabilities(p["image.code_logits"], p[IMAGE_CODES]).sum(1)
