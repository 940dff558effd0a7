"""Late interaction: an image and a text are compared token by token, and only then summed up.

FILIP (Yao et al. 2022, §3.1). Shapes: B batch, M images and K texts, N image tokens, T text tokens, E embedding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diptych.core.encodings import TEXT, TEXT_EMBEDDING
from diptych.models.fusion.qformer import best_query
from diptych.objectives.base import Scaled
from diptych.objectives.contrastive import meanings, same_meaning
from diptych.objectives.maskvlm import words_of

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

CHUNK = 2**25  # token-to-token similarities held at a time (128 MB in float32)


def late_similarity(image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Every image against every text, from unit token vectors (eq. 3–5).

    image [M, N, E], text [K, T, E], mask [K, T] bool (True at real tokens) → from the image's side [M, K]: the mean over its tokens
    of each one's best text token; from the text's side [M, K]: the mean over its real tokens of each one's best image token.
    Padding is ignored.
    """
    rows = max(1, CHUNK // max(1, image.shape[1] * text.shape[0] * text.shape[1]))
    parts = []
    for piece in torch.split(image, rows):
        if rows < len(image) and torch.is_grad_enabled():  # the similarities are computed again in the backward pass
            parts.append(checkpoint(_best, piece, text, mask, use_reentrant=False))
        else:
            parts.append(_best(piece, text, mask))
    by_image, by_text = zip(*parts, strict=True)
    return torch.cat(by_image), torch.cat(by_text)


def _best(image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    (M, N, E), (K, T, _) = image.shape, text.shape
    similarity = (image.reshape(M * N, E) @ text.reshape(K * T, E).T).view(M, N, K, T)
    by_image = similarity.masked_fill(~mask, -math.inf).amax(3).mean(1)
    by_text = (similarity.amax(1) * mask).sum(2) / mask.sum(1)
    return by_image, by_text


def pair_similarity(image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``late_similarity`` of aligned pairs: image [P, N, E], text [P, T, E], mask [P, T] → [P], [P]."""
    similarity = torch.einsum("pne,pte->pnt", image, text)
    by_image = similarity.masked_fill(~mask[:, None], -math.inf).amax(2).mean(1)
    return by_image, (similarity.amax(1) * mask).sum(1) / mask.sum(1)


def best_matches(image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How well each token's best match among all tokens of the other side fits it: of image tokens [M, N], of text tokens [K, T].
    Tokens outside ``mask`` match nothing and have −∞. Without gradients.
    """
    rows = max(1, CHUNK // max(1, image.shape[1] * text.shape[0] * text.shape[1]))
    words = text[mask]  # [W, E]
    of_image, of_words = [], words.new_full((len(words),), -math.inf)
    with torch.no_grad():
        for piece in torch.split(image.detach(), rows):
            similarity = piece @ words.detach().T  # [M', N, W]
            of_image.append(similarity.amax(2))
            of_words = torch.maximum(of_words, similarity.amax((0, 1)))
    of_text = text.new_full(mask.shape, -math.inf)
    of_text[mask] = of_words
    return torch.cat(of_image), of_text


def best_tokens_similarity(image: Tensor, text: Tensor, mask: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """``late_similarity`` in which, for each image and text, only the share of the tokens with the best matches counts: the mean
    over the ⌈share · N⌉ image tokens that a token of this text fits best, and over the ⌈share · words⌉ words that a token of this
    image fits best.

    image [M, N, E], text [K, T, E], mask [K, T] bool → [M, K], [M, K].
    """
    rows = max(1, CHUNK // max(1, image.shape[1] * text.shape[0] * text.shape[1]))
    pieces = []
    for piece in torch.split(image, rows):
        (M, N, E), (K, T, _) = piece.shape, text.shape
        similarity = (piece.reshape(M * N, E) @ text.reshape(K * T, E).T).view(M, N, K, T)
        of_image = similarity.masked_fill(~mask, -math.inf).amax(3).transpose(1, 2)  # [M, K, N]
        of_words = similarity.amax(1).masked_fill(~mask, -math.inf)  # [M, K, T]
        pieces.append((_mean_of_best(of_image, share), _mean_of_best(of_words, share, mask)))
    by_image, by_text = zip(*pieces, strict=True)
    return torch.cat(by_image), torch.cat(by_text)


def best_tokens_of_pairs(image: Tensor, text: Tensor, mask: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """``best_tokens_similarity`` of aligned pairs: image [P, N, E], text [P, T, E], mask [P, T] → [P], [P]."""
    similarity = torch.einsum("pne,pte->pnt", image, text)
    of_image = similarity.masked_fill(~mask[:, None], -math.inf).amax(2)
    return _mean_of_best(of_image, share), _mean_of_best(similarity.amax(1).masked_fill(~mask, -math.inf), share, mask)


def _mean_of_best(values: Tensor, share: float, mask: Tensor | None = None) -> Tensor:
    """The mean of the highest share of the last dimension, of which ``mask`` says what counts: the rest is −∞."""
    counts = torch.tensor(values.shape[-1], device=values.device) if mask is None else mask.sum(-1)
    n = kept_count(share, counts)
    best = values.topk(int(n.max()), -1).values
    kept = torch.arange(best.shape[-1], device=values.device) < n[..., None]
    return best.masked_fill(~kept, 0.0).sum(-1) / n


def kept_count(share: float, counts: Tensor) -> Tensor:
    """How many of ``counts`` tokens a share of them is: rounded up, so never none of some; int64 as ``counts``."""
    return (counts.double() * share - 1e-6).ceil().long().clamp(min=1)


def without_specials(p: Pass) -> Tensor:
    """The words of each text, [B, T] bool; of a text without a word, its special tokens."""
    words = words_of(p[TEXT].ids, p[TEXT].mask)
    return torch.where(words.any(1, keepdim=True), words, p[TEXT].mask)


class LateInteraction(Scaled):
    """InfoNCE over ``late_similarity``, each direction with its own side's similarity, with CLIP's learned scale.

    side: the similarity by which a trained model chooses: ``own``, as published: a text for an image by the image's, an image for a
    text by the text's; ``mean``: both by the mean of the two.
    keep: the share of each image's and each text's tokens that takes part in training: those with the best match among all tokens
    of the other side in the batch (Yao et al. 2022, §3.1, keep 25 % of them, chosen among the samples of one device before features
    are exchanged; here they are chosen from the whole batch, so that their choice does not depend on the number of processes). A
    trained model uses all tokens.
    special: whether [BOS] and [EOS] count as words. false_negatives: as in ``InfoNCE``.
    """

    couples: tuple[str, ...] = ("image.token_embedding", "text.token_embedding")
    scores_as = "late_interaction"
    scores_all = True
    needs = ("text",)

    def __init__(
        self,
        model: VLM,
        *,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        false_negatives: Literal["mask", "keep"] = "mask",
        side: Literal["own", "mean"] = "mean",
        keep: Annotated[float, Field(gt=0, le=1)] = 1.0,
        special: bool = True,
    ):
        super().__init__(model, temperature=temperature, max_scale=max_scale)
        self.false_negatives: Literal["mask", "keep"] = false_negatives
        self.two_sided, self.keep, self.special = side == "own", keep, special

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        image, text, mask, rows = p["image.token_embedding"], p["text.token_embedding"], self.words(p), p.rows
        own = rows or slice(0, len(image))
        with torch.autocast(image.device.type, enabled=False):
            if self.keep < 1:
                image, text, mask = self.kept(p, image, text, mask)
            if rows is None:
                by_image, by_text = late_similarity(image, text, mask)
            else:
                by_image = late_similarity(image[own], text, mask)[0]
                by_text = late_similarity(image, text[own], mask[own])[1]
            return late_loss(by_image * self.scale, by_text.T * self.scale, own.start, self.same(p))

    def words(self, p: Pass) -> Tensor:
        """The text tokens that count, [B, T] bool. A text without a word counts with its special tokens."""
        return p[TEXT].mask if self.special else without_specials(p)

    def kept(self, p: Pass, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The share ``keep`` of the tokens of each image and text, and which of them are real: [B, n, E], [B, t, E], [B, t]."""
        if p.rows is None:
            of_image, of_text = best_matches(image, text, mask)
        else:  # each process judges the tokens of its own samples, and they tell each other
            of_image = p.everyones(best_matches(image[p.rows], text, mask)[0])
            of_text = p.everyones(best_matches(image, text[p.rows], mask[p.rows])[1])
        n = int(kept_count(self.keep, torch.tensor(image.shape[1])))
        counts = kept_count(self.keep, mask.sum(1))
        best_image, best_text = of_image.topk(n, 1).indices, of_text.topk(int(counts.max()), 1).indices
        real = torch.arange(best_text.shape[1], device=counts.device) < counts[:, None]
        return _rows(image, best_image), _rows(text, best_text), real

    def same(self, p: Pass) -> Tensor | None:
        """[R, B] bool, True for other samples whose captions mean the same; None if none is left out."""
        return same_meaning(meanings(p, self.false_negatives), p.rows)

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for index tensors [P] into the batch: [P]. With ``side: own``, for
        the choice of a text.
        """
        return self.scores(p.pairs(image=images, text=texts))

    def pair_sides(self, p: Pass, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """The image's similarity, and the text's: [P] each."""
        return self.sides(p.pairs(image=images, text=texts))

    def scores(self, p: Pass) -> Tensor:
        """How well text i fits image i: [B]."""
        return self._one(*self.sides(p))

    def sides(self, p: Pass) -> tuple[Tensor, Tensor]:
        """Of image i and text i: the image's similarity and the text's, [B] each."""
        return pair_similarity(p["image.token_embedding"], p["text.token_embedding"], self.words(p))

    def all_scores(self, p: Pass) -> Tensor:
        """``pair_scores`` of every image with every text, M images and N texts: [M, N]."""
        return self._one(*self.all_sides(p))

    def all_sides(self, p: Pass) -> tuple[Tensor, Tensor]:
        """The image's similarity and the text's, of every image with every text: [M, N] each."""
        return late_similarity(p["image.token_embedding"], p["text.token_embedding"], self.words(p))

    def _one(self, by_image: Tensor, by_text: Tensor) -> Tensor:
        return by_image if self.two_sided else (by_image + by_text) / 2


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x [B, N, E], index [B, n] → [B, n, E]"""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


class QueryContrast(LateInteraction):
    """BLIP-2's image-text contrast (Li et al. 2023, §3.1): a pooled text against the image's queries, of which the nearest counts.
    That is the text's side of ``late_similarity`` with texts of one token, in both directions.
    """

    couples = ("image.query_embedding", "text.embedding")

    def __init__(
        self,
        model: VLM,
        *,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        false_negatives: Literal["mask", "keep"] = "mask",
    ):
        super().__init__(model, temperature=temperature, max_scale=max_scale, false_negatives=false_negatives)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        image, text, rows = p["image.query_embedding"], p[TEXT_EMBEDDING], p.rows
        own = rows or slice(0, len(image))
        with torch.autocast(image.device.type, enabled=False):
            to_text, to_image = best_query(image[own], text), best_query(image, text[own]).T
            return late_loss(to_text * self.scale, to_image * self.scale, own.start, self.same(p))

    def scores(self, p: Pass) -> Tensor:
        """The cosine of text i and the nearest query of image i: [B]."""
        return torch.einsum("bqe,be->bq", p["image.query_embedding"], p[TEXT_EMBEDDING]).amax(1)

    def all_scores(self, p: Pass) -> Tensor:
        """``pair_scores`` of every image with every text, M images and N texts: [M, N]."""
        return best_query(p["image.query_embedding"], p[TEXT_EMBEDDING])


def late_loss(to_text: Tensor, to_image: Tensor, start: int = 0, same: Tensor | None = None) -> Tensor:
    """Both directions' cross-entropy of logits [R, B], row i's own column being start + i; ``same`` [R, B] is left out."""
    if same is not None:
        to_text, to_image = to_text.masked_fill(same, -math.inf), to_image.masked_fill(same, -math.inf)
    target = torch.arange(start, start + len(to_text), device=to_text.device)
    return (F.cross_entropy(to_text, target) + F.cross_entropy(to_image, target)) / 2
