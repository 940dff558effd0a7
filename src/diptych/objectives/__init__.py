"""Objectives: pure functions easy to read and test, and thin modules that hold their parameters and wiring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from diptych.core.errors import DiptychError, nearest
from diptych.core.registry import check_options, resolve
from diptych.objectives.adapting import ClassNames, Distillation
from diptych.objectives.base import Objective
from diptych.objectives.chameleon import Interleaved, InterleavedDocuments
from diptych.objectives.contrastive import InfoNCE, Sigmoid
from diptych.objectives.filip import LateInteraction, QueryContrast
from diptych.objectives.flava import MaskedBoth, MaskedCodes, MaskedText
from diptych.objectives.generative import NextToken, PriorNextToken
from diptych.objectives.instruction import Answers
from diptych.objectives.language.documents import DocumentSimilarity, DocumentWords
from diptych.objectives.language.lengths import LongWords, ShortContrast
from diptych.objectives.language.prompts import PromptRegression, SentenceContrast, SentencePrompts
from diptych.objectives.language.reconstruction import VisualReconstruction
from diptych.objectives.language.retrieval import RetrievalWords
from diptych.objectives.language.states import StateRegression
from diptych.objectives.language.towers import EachTower
from diptych.objectives.llip import Contextual
from diptych.objectives.maskvlm import MaskedPatches, MaskedWords
from diptych.objectives.matching import Matching
from diptych.objectives.nova import TextPrediction
from diptych.objectives.prompted.cocoop import ConditionalPrompts
from diptych.objectives.prompted.mmrl import Represented
from diptych.objectives.sparc import GroupedTokens
from diptych.objectives.video.codes import FitCodebook, MaskedWordsAndCodes
from diptych.objectives.video.distilled import MaskedDistillation
from diptych.objectives.video.frames import MaskedFrames
from diptych.objectives.video.grained import MultiGrained
from diptych.objectives.video.granular import Granularities
from diptych.objectives.video.merlot import FrameContrast, FrameOrder, MaskedSpeech
from diptych.objectives.video.order import TimeOrder
from diptych.objectives.video.tubes import MaskedTubes
from diptych.objectives.vqvae import Reconstruction

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.models.vlm import VLM

OBJECTIVES: dict[str, Any] = {
    "answers": Answers,
    "class_names": ClassNames,
    "codebook": FitCodebook,
    "distillation": Distillation,
    "dpo": "diptych.objectives.preference.dpo:Preferences",
    "frame_contrast": FrameContrast,
    "frame_order": FrameOrder,
    "granularities": Granularities,
    "document_similarity": DocumentSimilarity,
    "document_words": DocumentWords,
    "each_tower": EachTower,
    "info_nce": InfoNCE,
    "short_info_nce": ShortContrast,
    "sigmoid": Sigmoid,
    "cocoop": ConditionalPrompts,
    "contextual": Contextual,
    "text_prediction": TextPrediction,
    "grouped_tokens": GroupedTokens,
    "interleaved": Interleaved,
    "interleaved_documents": InterleavedDocuments,
    "late_interaction": LateInteraction,
    "query_contrast": QueryContrast,
    "matching": Matching,
    "masked_words": MaskedWords,
    "masked_frames": MaskedFrames,
    "masked_words_and_codes": MaskedWordsAndCodes,
    "masked_patches": MaskedPatches,
    "masked_codes": MaskedCodes,
    "masked_text": MaskedText,
    "masked_tubes": MaskedTubes,
    "masked_both": MaskedBoth,
    "masked_distillation": MaskedDistillation,
    "masked_speech": MaskedSpeech,
    "mmrl": Represented,
    "multi_grained": MultiGrained,
    "next_token": NextToken,
    "long_next_token": LongWords,
    "reconstruction": Reconstruction,
    "reward": "diptych.objectives.preference.reward:Reward",
    "region_contrast": "diptych.objectives.regions.pairs:RegionContrast",
    "region_sigmoid": "diptych.objectives.regions.pairs:RegionSigmoid",
    "region_matching": "diptych.objectives.regions.pairs:RegionMatching",
    "region_words": "diptych.objectives.regions.pairs:RegionWords",
    "region_negatives": "diptych.objectives.regions.wrong:RegionNegatives",
    "phrase_contrast": "diptych.objectives.regions.wrong:PhraseContrast",
    "region_concepts": "diptych.objectives.regions.concepts:RegionConcepts",
    "grounding": "diptych.objectives.regions.anchors:Grounding",
    "anchor_concepts": "diptych.objectives.regions.anchors:AnchorConcepts",
    "query_regions": "diptych.objectives.regions.queries:QueryRegions",
    "several_texts": "diptych.objectives.several:SeveralTexts",
    "sub_captions": "diptych.objectives.several:SubCaptions",
    "wrong_captions": "diptych.objectives.regions.structured:WrongCaptions",
    "hinge": "diptych.objectives.regions.structured:Hinge",
    "region_masks": "diptych.objectives.regions.masks:RegionMasks",
    "boxes": "diptych.objectives.regions.boxes:Boxes",
    "prior_next_token": PriorNextToken,
    "prompt_regression": PromptRegression,
    "prototype_alignment": "diptych.objectives.language.prototypes:PrototypeAlignment",
    "sentence_contrast": SentenceContrast,
    "sentence_prompts": SentencePrompts,
    "retrieval_words": RetrievalWords,
    "state_regression": StateRegression,
    "tight": "diptych.objectives.video.tight:TightContrast",
    "time_order": TimeOrder,
    "visual_reconstruction": VisualReconstruction,
}

__all__ = ["OBJECTIVES", "Objective", "build_objectives", "check_needs", "fields_needed"]


def build_objectives(recipe: Recipe, model: VLM, training: bool = True) -> nn.ModuleDict:
    """One module for each objective named in any stage; stages that name the same one share its parameters.

    training: False: for scoring alone, without the teachers that some need. Raises DiptychError if the recipe's parts cannot
    provide what an objective needs.
    """
    built = nn.ModuleDict()
    for i, stage in enumerate(recipe.stages):
        for name, spec in stage.objectives.items():
            if name in built:
                continue
            where = f"stages.{i}.objectives.{name}"
            cls = resolve(spec.kind, OBJECTIVES, "objective")
            options = check_options(cls, spec.options, where)
            for part in cls.parts:
                choices = part.split("|")
                model.part(next((c for c in choices if c in model.parts), choices[0]))  # says what is missing
            objective = cls(model, **options)
            objective.fields = spec.fields
            for provider in (objective, *objective.helpers):
                model.graph.add(f"objectives.{name}", provider, spec.fields)
            check_needs(objective, model, where, training)
            built[name] = objective
            if recipe.data.text_mask and objective.predicts_text:
                raise DiptychError(f"data.text_mask hides tokens that {where} has to predict; set it to 0 or remove the objective")
    for i, stage in enumerate(recipe.stages):
        for name in stage.objectives:
            for option, other in built[name].uses().items():  # type: ignore[operator]
                where = f"stages.{i}.objectives.{name}.{option}"
                if other not in built or other == name:
                    raise DiptychError(f"{where}: the recipe has no other objective '{other}'{nearest(other, set(built) - {name})}")
                if other not in stage.objectives:
                    raise DiptychError(f"{where}: {other} is not in this stage, so nothing would learn it")
    for name, objective in built.items():
        others = {option: built[other] for option, other in objective.uses().items()}  # type: ignore[operator]
        try:
            objective.attach(others)  # type: ignore[operator]
        except DiptychError as error:
            raise DiptychError(f"objectives.{name}.{next(iter(others))}: {error}") from None
    return built


# The part to add for an encoding that nothing provides.
SUGGESTED = {
    "tokens": "vision or text", "embedding": "space, or vision and text", "fused": "fusion", "logits": "decoder or lm",
    "prefix": "connector",
    "codes": "quantizer", "queries": "text of the kind q_former", "query_embedding": "text of the kind q_former", "state": "lm",
    "kv_cache": "lm", "projected": "space, or vision and text", "token_embedding": "space, or vision and text",
}  # fmt: skip


def check_needs(objective: Objective, model: VLM, where: str, training: bool = True) -> None:
    """DiptychError unless everything that an objective needs has exactly one provider."""
    for need in objective.needed():
        if ":" in need and not training:
            continue
        try:
            model.graph.leaves(need.rstrip("?"))
        except DiptychError as error:
            missing = str(error).partition("'")[2].partition("'")[0]
            part = SUGGESTED.get(missing.rpartition(".")[2])
            remedy = f"; add a part {part}" if part and "nothing provides" in str(error) else ""
            raise DiptychError(f"{where} needs '{need}': {error}{remedy}; parts: {', '.join(model.parts)}") from None


def fields_needed(objectives: Iterable[Objective], model: VLM) -> tuple[str, ...]:
    """The fields of a batch that objectives read, in the order of their needs."""
    result: dict[str, None] = {}
    for objective in objectives:
        for need in objective.needed():
            result |= dict.fromkeys(sorted(model.graph.leaves(need.rstrip("?"))))
    return tuple(result)
