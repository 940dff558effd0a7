"""FLAVA's masked modelling (Singh et al. 2022, §3.2): hidden patches by their code in an image quantizer, hidden words, and both
from both.

A hidden patch is replaced by a mask token before the tower sees it, so that nothing of it can leak. If there are images without
captions, or texts without images (``data.unpaired``), the objectives of one modality learn from these.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.batch import Images
from diptych.core.encodings import IMAGE, IMAGE_CODES, TEXT
from diptych.core.errors import DiptychError
from diptych.models.vision.drawn import random_blocks, random_keep
from diptych.objectives.base import Objective
from diptych.objectives.maskvlm import hidden_counts, mask_words, words_of

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def prediction_head(width: int, vocabulary: int, tower: Any) -> nn.Sequential:
    """A layer, then one number for each code or word: [..., D] → [..., V]. Its norm has the same epsilon as those of the tower that
    gives the tokens.
    """
    last = tower.transformer.norm
    eps = (tower.transformer.blocks[-1].norm2 if isinstance(last, nn.Identity) else last).eps  # of BERT, within its blocks
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps), nn.Linear(width, vocabulary))


def normed(tower: Any, tokens: Tensor) -> Tensor:
    """Tokens after the tower's last norm, wherever it applies it."""
    return tower.transformer.norm(tokens) if tower.transformer.bare else tokens


def alone(p: Pass, kind: str) -> str:
    """The field that an objective of one modality reads: the one without a partner, if there is any."""
    return f"unpaired_{kind}" if p.has(f"unpaired_{kind}") else kind


class _Codes(Objective):
    """Base class of objectives on image codes: checks that the grids agree, and chooses the hidden patches.

    share: of the patches hidden. blocks: in rectangles, as BEiT and FLAVA hide them (``random_blocks``); else each by itself.
    """

    parts: tuple[str, ...] = ("vision", "quantizer")

    def __init__(self, model: VLM, share: float, blocks: bool):
        super().__init__(model)
        vision, quantizer = model.part("vision"), model.part("quantizer")
        if getattr(vision, "mask_token", None) is None:
            raise DiptychError(
                "masked image codes need a tower with a mask token; set parts.vision: {kind: class, mask_token: true}"
            )
        if vision.grid**2 != quantizer.tokens:
            raise DiptychError(
                f"parts.quantizer gives {quantizer.tokens} codes per image, parts.vision {vision.tokens} patches; give both "
                "the same patch"
            )
        self.share, self.n = share, vision.tokens
        self.side = vision.grid if blocks else 0  # of the grid that is hidden in blocks
        self._vision = [vision]  # in a list: shared, not owned

    def hide(self, B: int, device: torch.device) -> Tensor:
        """[B, N] bool, the same number in every image."""
        if self.side:
            return random_blocks(B, self.side, self.share, device)
        return random_keep(B, self.n, self.share, device)[1]


class MaskedCodes(_Codes):
    """Hidden patches from the other patches alone (MIM). share, blocks: as in ``_Codes``; 0.4 and true in FLAVA."""

    needs = ("image.tokens", "image.codes", "image", "unpaired_image?")

    def __init__(self, model: VLM, *, share: float = 0.4, blocks: bool = False):
        super().__init__(model, share, blocks)
        vision = model.part("vision")
        self.head = prediction_head(vision.width, model.part("quantizer").vocabulary, vision)
        self.borrows = vision.transformer.bare  # its last norm

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        field, vision = alone(p, "image"), self._vision[0]
        images = p[field]
        hidden = self.hide(len(images), images.pixels.device)
        view = p.view(**{field: Images(images.floats, hidden=hidden)})
        x = view[f"{field}.tokens"].tokens[:, vision.extra :]
        return F.cross_entropy(self.head(normed(vision, x[hidden])).float(), p[f"{field}.codes"][hidden])

    def terms(self, p: Pass) -> int:
        """How many terms ``forward`` is the mean of, so that pieces of a batch are weighed as the whole would be; 0: nothing to
        do.
        """
        return len(p[alone(p, "image")])  # every image has the same number of hidden patches


class MaskedText(Objective):
    """Hidden words from the other words alone (MLM). share: of the words hidden; replace: what is put in their places, as in
    ``mask_words`` (``bert`` in FLAVA's code). end: whether [EOS] is hidden like a word, as in runs of older formats.
    """

    parts = ("text",)
    needs = ("text.tokens", "text", "unpaired_text?")
    predicts_text = True

    def __init__(self, model: VLM, *, share: float = 0.15, replace: Literal["mask", "bert"] = "mask", end: bool = False):
        super().__init__(model)
        self.share, self.end = share, end
        self.replace: Literal["mask", "bert"] = replace
        text = model.part("text")
        self._text = [text]  # in a list: shared, not owned
        self.head = prediction_head(text.width, text.embedding.num_embeddings, text)
        self.borrows = text.transformer.bare  # its last norm

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        field = alone(p, "text")
        text = p[field]
        words = self._text[0].embedding.num_embeddings
        ids, hidden = mask_words(text.ids, text.mask, self.share, self.replace, words, self.end)
        x = p.view(**{field: replace(text, ids=ids)})[f"{field}.tokens"].tokens
        return F.cross_entropy(self.head(normed(self._text[0], x[hidden])).float(), text.ids[hidden])

    def terms(self, p: Pass) -> int:
        """How many terms ``forward`` is the mean of, so that pieces of a batch are weighed as the whole would be; 0: nothing to
        do.
        """
        text = p[alone(p, "text")]
        return int(hidden_counts(words_of(text.ids, text.mask, self.end), self.share).sum())


class MaskedBoth(_Codes):
    """Hidden patches and hidden words of a pair at once, from the rest of both (MMM). Each pair's mean counts the same; all pairs
    belong together.

    share, blocks: of the patches, as in ``_Codes``; text_share, replace, end: of the words, as in ``MaskedText``. batch_share: the
    part of the batch that is masked in this way.
    """

    parts = ("vision", "quantizer", "text", "fusion")
    needs = ("text.fused", "image.fused", "image.codes", "image", "text")
    predicts_text = True

    def __init__(
        self,
        model: VLM,
        *,
        share: float = 0.4,
        text_share: float = 0.15,
        batch_share: float = 1.0,
        blocks: bool = False,
        replace: Literal["mask", "bert"] = "mask",
        end: bool = False,
    ):
        super().__init__(model, share, blocks)
        self.text_share, self.batch_share, self.end = text_share, batch_share, end
        self.replace: Literal["mask", "bert"] = replace
        width, text = model.part("fusion").width, model.part("text")
        self.image_head = prediction_head(width, model.part("quantizer").vocabulary, model.part("vision"))
        self.text_head = prediction_head(width, text.embedding.num_embeddings, text)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        rows = p.some(self.batch_share)
        text, pixels = p[TEXT][rows], p[IMAGE].floats[rows]
        vocabulary: Any = self.text_head[-1].out_features
        ids, words = mask_words(text.ids, text.mask, self.text_share, self.replace, vocabulary, self.end)
        patches = self.hide(len(ids), ids.device)
        view = p.view(text=replace(text, ids=ids), image=Images(pixels, hidden=patches))
        x = view["image.fused"].tokens[:, self._vision[0].extra :][patches]
        image = F.cross_entropy(self.image_head(x).float(), p.view(image=Images(pixels))[IMAGE_CODES][patches])
        losses = F.cross_entropy(self.text_head(view["text.fused"].tokens[words]).float(), text.ids[words], reduction="none")
        counts = words.sum(1)
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(counts)
        return image + (losses / counts[rows]).sum() / len(ids)

    def terms(self, p: Pass) -> int:
        """How many terms ``forward`` is the mean of, so that pieces of a batch are weighed as the whole would be; 0: nothing to
        do.
        """
        return len(p.some(self.batch_share))
