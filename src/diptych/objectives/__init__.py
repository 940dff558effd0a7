"""Objectives: pure functions easy to read and test, and thin modules that hold their parameters and wiring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from diptych.core.errors import DiptychError
from diptych.core.registry import check_options, resolve
from diptych.objectives.base import Objective
from diptych.objectives.chameleon import Interleaved
from diptych.objectives.contrastive import InfoNCE, Sigmoid
from diptych.objectives.filip import LateInteraction, QueryContrast
from diptych.objectives.flava import MaskedBoth, MaskedCodes, MaskedText
from diptych.objectives.generative import NextToken, PriorNextToken
from diptych.objectives.instruction import Answers
from diptych.objectives.llip import Contextual
from diptych.objectives.maskvlm import MaskedPatches, MaskedWords
from diptych.objectives.matching import Matching
from diptych.objectives.nova import TextPrediction
from diptych.objectives.sparc import GroupedTokens
from diptych.objectives.vqvae import Reconstruction

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.models.vlm import VLM

OBJECTIVES: dict[str, Any] = {
    "answers": Answers,
    "info_nce": InfoNCE,
    "sigmoid": Sigmoid,
    "contextual": Contextual,
    "text_prediction": TextPrediction,
    "grouped_tokens": GroupedTokens,
    "interleaved": Interleaved,
    "late_interaction": LateInteraction,
    "query_contrast": QueryContrast,
    "matching": Matching,
    "masked_words": MaskedWords,
    "masked_patches": MaskedPatches,
    "masked_codes": MaskedCodes,
    "masked_text": MaskedText,
    "masked_both": MaskedBoth,
    "next_token": NextToken,
    "reconstruction": Reconstruction,
    "prior_next_token": PriorNextToken,
}

__all__ = ["OBJECTIVES", "Objective", "build_objectives"]


def build_objectives(recipe: Recipe, model: VLM) -> nn.ModuleDict:
    """One module for each objective named in any stage; stages that name the same one share its parameters."""
    built = nn.ModuleDict()
    for i, stage in enumerate(recipe.stages):
        for name, spec in stage.objectives.items():
            if name in built:
                continue
            where = f"stages.{i}.objectives.{name}"
            cls = resolve(spec.kind, OBJECTIVES, "objective")
            options = check_options(cls, spec.options, where)
            for part in cls.needs:
                choices = part.split("|")
                model.part(next((c for c in choices if c in model.parts), choices[0]))  # says what is missing
            built[name] = cls(model, **options)
            if recipe.data.text_mask and getattr(built[name], "predicts_text", False):
                raise DiptychError(
                    f"data.text_mask hides tokens that {where} has to predict; set it to 0 or leave the objective out"
                )
    return built
