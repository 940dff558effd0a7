"""Masked modelling: hidden words from the image and the other words, hidden patches from the text and the other patches.

MaskVLM (Kwon et al. 2023): each modality is reconstructed from the other one, which is whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Images
from diptych.core.encodings import IMAGE, TEXT
from diptych.core.errors import DiptychError
from diptych.data.text import BOS, MASK, SPECIALS
from diptych.models.layers.attention import Transformer
from diptych.models.vision.drawn import random_cells, random_keep
from diptych.models.vision.towers import sincos_2d
from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def words_of(ids: Tensor, mask: Tensor, end: bool = False) -> Tensor:
    """[B, T] bool, True at words: real tokens that are not special. BERT never hides [BOS] and [EOS] (Devlin et al. 2019, §3.1).

    end: all tokens after [BOS], as in runs of older formats.
    """
    return mask & ((ids != BOS) if end else (ids >= len(SPECIALS)))


def hidden_counts(words: Tensor, share: float) -> Tensor:
    """How many words ``mask_words`` hides of each text: the share of its words [B, T], rounded, at least one if it has any; [B]."""
    n = words.sum(1)
    return (n * share).round().long().clamp(min=1).minimum(n)


def mask_words(
    ids: Tensor,
    mask: Tensor,
    share: float,
    replace: Literal["mask", "bert"] = "mask",
    vocabulary: int = 0,
    end: bool = False,
) -> tuple[Tensor, Tensor]:
    """Hide a random choice of each text's words, ``hidden_counts`` of them.

    ids [B, T], mask [B, T] → changed ids [B, T], hidden [B, T] bool.
    replace: ``mask`` puts [MASK] in the place of each; ``bert`` does so for 80 % of them, puts a random word in the place of 10 %
    and leaves 10 % as they are (Devlin et al. 2019, §3.1). vocabulary: the number of ids, for ``bert``. end: as in
    ``words_of``.
    """
    words = words_of(ids, mask, end)
    noise = torch.rand(ids.shape, device=ids.device).masked_fill(~words, 2.0)
    rank = noise.argsort(1).argsort(1)
    hidden = (rank < hidden_counts(words, share)[:, None]) & words
    return (bert_noise(ids, hidden, vocabulary) if replace == "bert" else ids.masked_fill(hidden, MASK)), hidden


def bert_noise(ids: Tensor, hidden: Tensor, vocabulary: int) -> Tensor:
    """ids [B, T] with [MASK] in 80 % of the places that are hidden, a random word in 10 %, and the word itself in 10 %."""
    luck = torch.rand(ids.shape, device=ids.device)
    other = torch.randint(len(SPECIALS), vocabulary, ids.shape, device=ids.device)
    return torch.where(hidden, torch.where(luck < 0.8, MASK, torch.where(luck < 0.9, other, ids)), ids)


def patchify(pixels: Tensor, patch: int) -> Tensor:
    """[B, 3, H, W] → [B, N, 3 · patch²], row by row."""
    B, C, H, W = pixels.shape
    x = pixels.reshape(B, C, H // patch, patch, W // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, C * patch * patch)


class WordHead(nn.Module):
    """From fused text tokens to words: a layer, then the text tower's own word vectors (BERT's head)."""

    def __init__(self, model: VLM):
        super().__init__()
        text = model.part("text")
        self.transform = nn.Sequential(nn.Linear(text.width, text.width), nn.GELU(), nn.LayerNorm(text.width))
        self.bias = nn.Parameter(torch.zeros(text.embedding.num_embeddings))
        self._embedding = [text.embedding]  # in a list: shared, not owned

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., V]"""
        x = self.transform(x) * x.shape[-1] ** -0.5
        return F.linear(x, self._embedding[0].weight, self.bias)


class MaskedWords(Objective):
    """Masked language modelling with the image whole.

    share: of the words hidden (0.3 in MaskVLM). replace: what is put in their places, as in ``mask_words``. end: whether [EOS] is
    hidden like a word, as in runs of older formats.
    """

    parts = ("vision", "text", "fusion")
    needs = ("text.fused", "text")
    predicts_text = True
    borrows = True  # the text tower's word vectors
    scores_as = "pseudo_likelihood"
    turns = 4  # the number of passes in which pair_scores hides the words of a text

    def __init__(self, model: VLM, *, share: float = 0.3, replace: Literal["mask", "bert"] = "mask", end: bool = False):
        super().__init__(model)
        self.share, self.end = share, end
        self.replace: Literal["mask", "bert"] = replace
        self.head = WordHead(model)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        text = p[TEXT]
        ids, hidden = mask_words(text.ids, text.mask, self.share, self.replace, len(self.head.bias), self.end)
        x = p.view(text=replace(text, ids=ids))["text.fused"].tokens
        return F.cross_entropy(self.head(x[hidden]).float(), text.ids[hidden])

    def terms(self, p: Pass) -> int:
        """How many terms ``forward`` is the mean of, so that pieces of a batch are weighed as the whole would be; 0: nothing to
        do.
        """
        return int(hidden_counts(words_of(p[TEXT].ids, p[TEXT].mask, self.end), self.share).sum())

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """Pseudo-log-likelihood of text ``texts[k]`` given image ``images[k]``, for index tensors [P] into the batch: [P].

        Σ_t log P(token t | image, the tokens that are not hidden), each token hidden once (Salazar et al. 2020). Every fourth token
        is hidden at a time, about the share hidden in training, so that four passes are enough for any length.
        """
        text = p[TEXT]
        place = torch.arange(text.ids.shape[1], device=text.ids.device)
        total = torch.zeros(len(texts), device=text.ids.device)
        for turn in range(self.turns):
            hidden = words_of(text.ids, text.mask, self.end) & (place % self.turns == turn)  # [B, T]
            view = p.view(text=replace(text, ids=text.ids.masked_fill(hidden, MASK))).pairs(image=images, text=texts)
            fused = view["text.fused"].tokens
            longest = fused.shape[1]  # the length of these texts, without the padding that only others need
            where = hidden[texts, :longest]  # [P, T]
            logits = self.head(fused[where]).float()
            log_p = -F.cross_entropy(logits, text.ids[texts, :longest][where], reduction="none")
            total.index_add_(0, where.nonzero()[:, 0], log_p)
        return total


class MaskedPatches(Objective):
    """Masked image modelling with the text whole: pixels of hidden patches, in [−1, 1].

    share: of the patches hidden (0.6 in MaskVLM). cells: hide whole cells of a grid of about this many a side
    (``random_cells``); 7 in MaskVLM, which hides squares of 32 of 224 pixels; 0: each patch by itself. loss: ``l1``, the mean of
    absolute differences, or ``l2``, of squared ones. normalise: each patch to mean 0 and variance 1 (He et al. 2022, §4.1), instead
    of raw pixels. batch_share: reconstruct only that part of the batch, since reconstructing pixels is expensive and teaches
    slowly.
    """

    parts = ("vision", "text", "fusion")
    needs = ("image.fused", "image", "text")
    positions: Tensor

    def __init__(
        self,
        model: VLM,
        *,
        share: float = 0.6,
        cells: Annotated[int, Field(ge=0)] = 0,
        loss: Literal["l1", "l2"] = "l1",
        normalise: bool = False,
        batch_share: float = 1.0,
    ):
        super().__init__(model)
        self.share, self.cells, self.loss, self.normalise, self.batch_share = share, cells, loss, normalise, batch_share
        vision = model.part("vision")
        if getattr(vision, "pooling", "") == "cascade":
            raise DiptychError(
                "objective masked_patches hides patches, and parts.vision.pool: cascade gives none; set parts.vision.pool to mean, "
                "class, attention or map"
            )
        if not (hasattr(vision, "patch") and hasattr(vision, "grid")):
            raise DiptychError(
                "objective masked_patches hides patches, which this tower cannot leave out; set parts.vision: {kind: vit}, or class"
            )
        self.patch, self.n, self.extra, width = vision.patch, vision.tokens, vision.extra, vision.width
        self.side = vision.grid
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("positions", sincos_2d(vision.grid, vision.grid, width), persistent=False)
        self.decoder = Transformer(width, 1, 4)
        self.head = nn.Linear(width, 3 * self.patch**2)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        rows = p.some(self.batch_share)
        B, pixels = len(rows), p[IMAGE].floats[rows]
        if self.cells:
            keep, hidden = random_cells(B, self.side, self.cells, self.share, pixels.device)
        else:
            keep, hidden = random_keep(B, self.n, self.share, pixels.device)
        view = p.pairs(image=rows, text=rows).view(image=Images(pixels, keep=keep))
        seen = view["image.fused"].tokens[:, self.extra :]  # [B, K, D]
        x = self.token.to(seen.dtype).expand(B, self.n, -1).scatter(1, keep[..., None].expand_as(seen), seen)
        predicted = self.head(self.decoder(x + self.positions)[hidden]).float()
        target = patchify(pixels, self.patch)[hidden]
        if self.normalise:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-2).sqrt()
        return F.l1_loss(predicted, target) if self.loss == "l1" else F.mse_loss(predicted, target)

    def terms(self, p: Pass) -> int:
        """How many terms ``forward`` is the mean of, so that pieces of a batch are weighed as the whole would be; 0: nothing to
        do.
        """
        return len(p.some(self.batch_share))
