"""FLAVA's masked modelling (Singh et al. 2022, §3.2): hidden patches by their code in an image quantizer, hidden words, and both from both.

A hidden patch is replaced by a mask token before the tower sees it, so that nothing of it can leak. Where there are images without captions, or texts without
images (``data.lone_images``, ``data.lone_texts``), these are what the objectives of one modality learn from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.models.passes import ImageSide, TextSide
from diptych.models.vision.drawn import random_keep
from diptych.objectives.base import Objective
from diptych.objectives.maskvlm import hidden_counts, mask_words

if TYPE_CHECKING:
    from diptych.models.passes import Pass
    from diptych.models.vlm import VLM


def prediction_head(width: int, vocabulary: int, tower: Any) -> nn.Sequential:
    """A layer, then one number for each code or word: [..., D] → [..., V]. Its norm is as careful as those of the tower whose tokens are told."""
    eps = tower.transformer.norm.eps
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps), nn.Linear(width, vocabulary))


def normed(tower: Any, tokens: Tensor) -> Tensor:
    """Tokens after the tower's last norm, wherever it applies it."""
    return tower.transformer.norm(tokens) if tower.transformer.bare else tokens


class _Codes(Objective):
    """What objectives on image codes share: the towers' agreement, and which patches are hidden."""

    needs: tuple[str, ...] = ("vision", "quantizer")

    def __init__(self, model: VLM, share: float):
        super().__init__(model)
        vision, quantizer = model.part("vision"), model.part("quantizer")
        if getattr(vision, "mask_token", None) is None:
            raise DiptychError(
                "masked image codes need a tower with a mask token; set parts.vision: {kind: class, mask_token: true}"
            )
        if vision.grid**2 != quantizer.tokens:
            raise DiptychError(
                f"parts.quantizer gives {quantizer.tokens} codes an image, parts.vision {vision.tokens} patches; give both the same patch"
            )
        self.share, self.n = share, vision.tokens

    def hide(self, B: int, device: torch.device) -> Tensor:
        """[B, N] bool, the same number in every image."""
        return random_keep(B, self.n, self.share, device)[1]


class MaskedCodes(_Codes):
    """Hidden patches from the other patches alone (MIM)."""

    def __init__(self, model: VLM, *, share: float = 0.4):
        super().__init__(model, share)
        vision = model.part("vision")
        self.head = prediction_head(vision.width, model.part("quantizer").vocabulary, vision)

    def forward(self, p: Pass) -> Tensor:
        side, vision = self._side(p), p.model.part("vision")
        hidden = self.hide(len(side.pixels), side.pixels.device)
        x = ImageSide(p.model, side.pixels, hidden=hidden).encoding.tokens[:, vision.extra :]
        return F.cross_entropy(self.head(normed(vision, x[hidden])).float(), side.codes[hidden])

    def terms(self, p: Pass) -> int:
        return len(self._side(p).pixels)  # each image hides the same number

    @staticmethod
    def _side(p: Pass) -> ImageSide:
        return p.lone_images or p.images


class MaskedText(Objective):
    """Hidden words from the other words alone (MLM)."""

    needs = ("text",)
    predicts_text = True

    def __init__(self, model: VLM, *, share: float = 0.15):
        super().__init__(model)
        self.share = share
        text = model.part("text")
        self.head = prediction_head(text.width, text.embedding.num_embeddings, text)

    def forward(self, p: Pass) -> Tensor:
        side = self._side(p)
        ids, hidden = mask_words(side.ids, side.mask, self.share)
        x = TextSide(p.model, ids, side.mask).encoding.tokens
        return F.cross_entropy(self.head(normed(p.model.part("text"), x[hidden])).float(), side.ids[hidden])

    def terms(self, p: Pass) -> int:
        return int(hidden_counts(self._side(p).mask, self.share).sum())

    @staticmethod
    def _side(p: Pass) -> TextSide:
        return p.lone_texts or p.texts


class MaskedBoth(_Codes):
    """Hidden patches and hidden words of a pair at once, from what is left of both (MMM). Each pair's mean counts the same.

    batch_share: the part of the batch that is masked so.
    """

    needs = ("vision", "quantizer", "text", "fusion")
    predicts_text = True

    def __init__(self, model: VLM, *, share: float = 0.4, text_share: float = 0.3, batch_share: float = 1.0):
        super().__init__(model, share)
        self.text_share, self.batch_share = text_share, batch_share
        width, text = model.part("fusion").width, model.part("text")
        self.image_head = prediction_head(width, model.part("quantizer").vocabulary, model.part("vision"))
        self.text_head = prediction_head(width, text.embedding.num_embeddings, text)

    def forward(self, p: Pass) -> Tensor:
        p = p.restricted(p.some(self.batch_share))
        ids, words = mask_words(p.text_ids, p.text_mask, self.text_share)
        patches = self.hide(len(ids), ids.device)
        view = p.masked(text=ids, hidden=patches)
        x = view.fused_image.tokens[:, p.model.part("vision").extra :][patches]
        image = F.cross_entropy(self.image_head(x).float(), p.images.codes[patches])
        losses = F.cross_entropy(self.text_head(view.fused_text.tokens[words]).float(), p.text_ids[words], reduction="none")
        counts = words.sum(1)
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(counts)
        return image + (losses / counts[rows]).sum() / len(ids)

    def terms(self, p: Pass) -> int:
        return len(p.some(self.batch_share))
