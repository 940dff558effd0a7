"""Objectives of images and texts, on regions and their phrases (X-VLM, Zeng et al. 2022; RegionCLIP; FG-CLIP): contrast, matching,
masked words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diptych.objectives.contrastive import InfoNCE, Sigmoid
from diptych.objectives.maskvlm import MaskedWords
from diptych.objectives.matching import Matching
from diptych.objectives.regions.base import OnRegions

if TYPE_CHECKING:
    from diptych.models.vlm import VLM


class RegionContrast(OnRegions, InfoNCE):
    """``info_nce`` of the regions of all images of the batch and their phrases.

    temperature, max_scale: of the learned scale. scale_of: the name of an objective, whose scale it uses instead; "": its own.
    false_negatives: ``mask`` leaves phrases that mean the same out of each other's denominators; ``keep`` does not.
    """

    def __init__(
        self,
        model: VLM,
        *,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        scale_of: str = "",
        false_negatives: Literal["mask", "keep"] = "mask",
    ):
        super().__init__(model, temperature=temperature, max_scale=max_scale, false_negatives=false_negatives)
        self.scale_of = scale_of


class RegionSigmoid(OnRegions, Sigmoid):
    """``sigmoid`` of the regions of all images of the batch and their phrases. scale, bias: learned, from these."""

    def __init__(self, model: VLM, *, scale: float = 10.0, bias: float = -10.0, false_negatives: Literal["mask", "keep"] = "mask"):
        super().__init__(model, scale=scale, bias=bias, false_negatives=false_negatives)


class RegionMatching(OnRegions, Matching):
    """``matching`` of regions and phrases; wrong pairs come from the regions of the whole batch."""

    scores_as = ""


class RegionWords(OnRegions, MaskedWords):
    """``masked_words`` of phrases, with the region in sight."""

    scores_as = ""
