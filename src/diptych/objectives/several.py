"""Contrast with several texts of an image: GroupViT's prompted nouns, DreamLIP's sub-captions.

Shapes: B images, m texts of all of them, N patches, E embedding, R the images that this process computes, k their texts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.objectives.base import Scaled
from diptych.objectives.contrastive import info_nce
from diptych.objectives.sparc import grouped_patches

if TYPE_CHECKING:
    from diptych.core.batch import Texts
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def slots(owner: Tensor) -> Tensor:
    """The how manyth text of its image each is, from 0, int64 [m]; owner: [m], ascending."""
    counts = torch.bincount(owner)
    return torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]


def multi_label(
    image: Tensor, text: Tensor, owner: Tensor, scale: Tensor | float, meaning: Tensor | None = None, rows: slice | None = None
) -> Tensor:
    """GroupViT's multi-label contrast (Xu et al. 2022, equations 8 and 9): an image against all texts, where the probabilities of
    its own add up; each text against all images. The sum of both directions.

    image: [B, E]; text: [m, E]; owner: [m], the image of each; meaning: [m], texts of other images that mean the same as one of an
    image's own are left out of its denominator, and their images out of that text's. rows: only these images, and their texts.
    """
    own = slice(0, len(image)) if rows is None else rows
    device = image.device
    index = torch.arange(own.start, own.stop, device=device)
    logits = scale * image[own] @ text.T  # [R, m]
    mine = owner == index[:, None]
    here = (owner >= own.start) & (owner < own.stop)
    back = scale * text[here] @ image.T  # [k, B]
    at = owner[here]
    if meaning is not None:
        same = (meaning[:, None] == meaning[None]).float()  # [m, m]
        shown = F.one_hot(owner, len(image)).float()  # [m, B]
        shares = same @ shown > 0  # [m, B]: an image has a text of this meaning
        logits = logits.masked_fill(shares.T[own] & ~mine, -math.inf)
        others = shares[here].clone()
        others[torch.arange(len(at), device=device), at] = False
        back = back.masked_fill(others, -math.inf)
    has = mine.any(1)
    right = logits.masked_fill(~mine, -math.inf)[has].logsumexp(1)
    to_text = (logits[has].logsumexp(1) - right).sum() / max(int(has.sum()), 1)
    return to_text + F.cross_entropy(back, at) if len(at) else image.sum() * 0


def each_slot(
    image: Tensor, text: Tensor, owner: Tensor, scale: Tensor | float, meaning: Tensor | None = None, rows: slice | None = None
) -> Tensor:
    """The mean over s of ``info_nce`` between images and the s-th text of each (DreamLIP, Zheng et al. 2024, equation 4). Arguments
    as in ``multi_label``. An image with fewer texts takes no part in later ones.
    """
    slot, losses, counts = slots(owner), [], []
    for s in range(int(slot.max()) + 1 if len(slot) else 0):
        which = (slot == s).nonzero()[:, 0]
        at, part = owner[which], None
        if rows is not None:
            first, last = (int((at < edge).sum()) for edge in (rows.start, rows.stop))
            part = slice(first, last)
        n = len(at) if part is None else part.stop - part.start
        if n:
            same = None if meaning is None else meaning[which]
            losses.append(info_nce(image[at], text[which], scale, same, None, part) * n)
            counts.append(n)
    return torch.stack(losses).sum() / sum(counts) if losses else image.sum() * 0


class SeveralTexts(Scaled):
    """Contrast of images with several texts of each, the field ``captions`` (others by ``fields``, such as {captions: nouns}).

    positives: ``together``, GroupViT's multi-label contrast; ``each``, the mean of the contrasts with the first texts, the second
    ones, and so on (DreamLIP). false_negatives: ``mask`` leaves texts that mean the same out; ``keep`` does not. scale_of: the name
    of an objective, whose scale it uses; "": its own.
    """

    couples = ("image.embedding", "captions.embedding")
    needs = ("captions",)
    trains = ("text.embedding",)  # the same map

    def __init__(
        self,
        model: VLM,
        *,
        positives: Literal["together", "each"] = "together",
        temperature: float = 0.07,
        max_scale: float = 100.0,
        false_negatives: Literal["mask", "keep"] = "mask",
        scale_of: str = "",
    ):
        super().__init__(model, temperature=temperature, max_scale=max_scale)
        self.loss = multi_label if positives == "together" else each_slot
        self.masks, self.scale_of = false_negatives == "mask", scale_of

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        image, text = (p[name] for name in self.couples)
        if not len(text):
            result: Tensor = image.sum() * 0
            return result
        texts: Texts = p["captions"]
        assert texts.owner is not None
        with torch.autocast(image.device.type, enabled=False):
            return self.loss(image, text, texts.owner, self.scale, texts.meaning if self.masks else None, p.rows)


def sub_caption_groups(patches: Tensor, text: Tensor, owner: Tensor, threshold: float | None = None) -> Tensor:
    """For each sub-caption the mean of its image's patches weighted by their similarity to it (``grouped_patches``), as unit
    vectors: patches [B, N, E], text [m, E] → [m, E].
    """
    B = len(patches)
    slot = slots(owner)
    most = int(slot.max()) + 1 if len(slot) else 0
    padded = text.new_zeros(B, most, text.shape[1]).index_put((owner, slot), text)
    return F.normalize(grouped_patches(patches, padded, threshold)[owner, slot], dim=-1)


class SubCaptions(Scaled):
    """DreamLIP's fine-grained loss (§3.3): each sub-caption gathers the patches that fit it, and ``info_nce`` compares sub-captions
    and their groups over the whole batch. Field ``captions``; options as in ``several_texts``; threshold: of patches, None: 1/N.
    """

    couples = ("image.projected", "captions.embedding")
    needs = ("captions",)

    def __init__(
        self,
        model: VLM,
        *,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        threshold: float | None = None,
        false_negatives: Literal["mask", "keep"] = "mask",
    ):
        super().__init__(model, temperature=temperature, max_scale=max_scale)
        self.threshold, self.masks = threshold, false_negatives == "mask"
        self.extra = int(getattr(model.part("vision"), "extra", 0))

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        patches, text = (p[name] for name in self.couples)
        if not len(text):
            result: Tensor = patches.sum() * 0
            return result
        texts: Texts = p["captions"]
        owner = texts.owner
        assert owner is not None
        with torch.autocast(text.device.type, enabled=False):
            # Unit vectors: the weights are those of cosines.
            unit = F.normalize(patches.float()[:, self.extra :], dim=-1)
            groups = sub_caption_groups(unit, text, owner, self.threshold)
            rows = None
            if p.rows is not None:
                first, last = (int((owner < edge).sum()) for edge in (p.rows.start, p.rows.stop))
                rows = slice(first, last)
            return info_nce(groups, text, self.scale, texts.meaning if self.masks else None, None, rows)
