"""Short captions are compared, long ones are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from diptych.core.encodings import IMAGE_EMBEDDING, TEXT, TEXT_EMBEDDING
from diptych.objectives.contrastive import InfoNCE, info_nce, meanings, negatives_of
from diptych.objectives.generative import NextToken

if TYPE_CHECKING:
    from diptych.core.batch import Texts
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def words_of(text: Texts) -> Tensor:
    """How many tokens each text has between [BOS] and [EOS]: [B]."""
    return text.mask.sum(1) - 2


class ShortContrast(InfoNCE):
    """InfoNCE of the images with short captions alone, at most ``most`` tokens without [BOS] and [EOS] (VladVA, Ouali et al. 2025,
    arXiv:2412.04378, §3.2). The others are neither queries nor negatives. Other options: as of ``InfoNCE``.
    """

    def __init__(
        self,
        model: VLM,
        *,
        most: Annotated[int, Field(ge=1)],
        temperature: float = 0.07,
        hard_negatives: bool = False,
        false_negatives: Literal["mask", "keep"] = "mask",
    ):
        super().__init__(model, temperature=temperature, hard_negatives=hard_negatives, false_negatives=false_negatives)
        self.most = most

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar; 0 of one without short captions."""
        short = words_of(p[TEXT]) <= self.most
        image, text = p[IMAGE_EMBEDDING], p[TEXT_EMBEDDING]
        rows = p.rows or slice(0, len(image))
        start, n = int(short[: rows.start].sum()), int(short[rows].sum())
        if n == 0:
            return (image.sum() + text.sum()) * 0 * self.scale
        meaning = meanings(p, self.false_negatives)
        meaning = None if meaning is None else meaning[short]
        negatives = negatives_of(p) if self.hard_negatives else None
        with torch.autocast(image.device.type, enabled=False):
            return info_nce(image[short], text[short], self.scale, meaning, negatives, slice(start, start + n))

    def terms(self, p: Pass) -> int:
        """How many images count."""
        return int((words_of(p[TEXT]) <= self.most).sum())


class LongWords(NextToken):
    """Next-token loss of long captions alone, at least ``least`` tokens without [BOS] and [EOS] (VladVA, ibid.)."""

    def __init__(self, model: VLM, *, least: Annotated[int, Field(ge=1)]):
        super().__init__(model)
        self.least = least

    def learned(self, text: Texts) -> Tensor:
        """Which tokens count, [B, T − 1] bool: those after [BOS] of long texts."""
        return super().learned(text) & (words_of(text) >= self.least)[:, None]
