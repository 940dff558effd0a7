"""transformers' ``CLIPModel`` (Radford et al. 2021): two towers of kind ``clip`` under InfoNCE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diptych.interop.base import (
    Family,
    Geometry,
    Misfit,
    Same,
    blocks,
    lacks,
    linear,
    norms_elsewhere,
    objective_of,
    options_of,
    same,
    towers,
)
from diptych.objectives.contrastive import InfoNCE

if TYPE_CHECKING:
    from diptych.interop.base import State
    from diptych.interop.tokenizer import Vocabulary
    from diptych.models.vlm import VLM
    from diptych.recipe import Recipe


class Clip(Family):
    """The class pools a text at ``eos_token_id``, except where that is 2, as ours is: then at its highest id. With [EOS] the highest, both are right."""

    name = "clip"
    architecture = "CLIPModel"
    end_last = True
    starts = True
    processor = "CLIPProcessor"

    def structure(self, model: VLM) -> list[Misfit]:
        found = []
        if "vision" in model.parts:
            vision = model.part("vision")
            wrong = lacks(vision, extra=1, learned=True, norm_sum=True, pooling="class")
            if not isinstance(getattr(vision, "stem", None), nn.Conv2d) or vision.stem.bias is not None:
                wrong.insert(0, "its stem is not one convolution without bias")
            if wrong:
                found.append(Misfit(f"parts.vision: {', '.join(wrong)}", "parts.vision.kind=clip"))
        if "text" in model.parts:
            text = model.part("text")
            wrong = lacks(text, causal=True, pool="eos", whole=False) + norms_elsewhere(text)
            if wrong:
                found.append(Misfit(f"parts.text: {', '.join(wrong)}", "parts.text.kind=clip"))
        return found

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        found = towers(model) or self.structure(model)
        for side in ("image", "text"):
            layer: Any = getattr(model, f"{side}_projection")
            if not found and (not isinstance(layer, nn.Linear) or layer.bias is not None):
                found.append(Misfit(f"the {side} projection is not a matrix"))
        if recipe.score != "similarity":
            found.append(Misfit(f"it scores by {recipe.score}, not by similarity"))
        if objective_of(objectives, InfoNCE) is None:
            found.append(Misfit("no objective is an InfoNCE, which gives logits their scale"))
        return found or self.left_over(model, objectives)

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        found: list[Same] = []
        if "vision" in model.parts:
            found += [
                same("parts.vision.classes", "vision_model.embeddings.class_embedding", view=(-1,)),
                same("parts.vision.stem.weight", "vision_model.embeddings.patch_embedding.weight"),
                same("parts.vision.positions", "vision_model.embeddings.position_embedding.weight"),
                *linear("parts.vision.norm", "vision_model.pre_layrnorm"),
                *blocks(model.part("vision").transformer, "parts.vision.transformer", "vision_model.encoder.layers"),
                *linear("parts.vision.transformer.norm", "vision_model.post_layernorm"),
                same("image_projection.weight", "visual_projection.weight"),
            ]
        if "text" in model.parts:
            found += [
                same("parts.text.embedding.weight", "text_model.embeddings.token_embedding.weight"),
                same("parts.text.positions", "text_model.embeddings.position_embedding.weight"),
                *blocks(model.part("text").transformer, "parts.text.transformer", "text_model.encoder.layers"),
                *linear("parts.text.transformer.norm", "text_model.final_layer_norm"),
                same("text_projection.weight", "text_projection.weight"),
            ]
        contrast = objective_of(objectives, InfoNCE)
        return [*found, same(f"{contrast[0]}.logit_scale", "logit_scale")] if contrast else found

    def config(self, model: VLM, vocabulary: Vocabulary) -> dict[str, Any]:
        vision, text = model.part("vision"), model.part("text")
        return {
            "model_type": "clip",
            "projection_dim": model.embed_dim,
            "vision_config": {
                **Geometry.of(vision.transformer).config(),
                "model_type": "clip_vision_model",
                "image_size": model.image_size,
                "patch_size": vision.patch,
                "projection_dim": model.embed_dim,
            },
            "text_config": {
                **Geometry.of(text.transformer).config(),
                **vocabulary.config(),
                "model_type": "clip_text_model",
                "max_position_embeddings": len(text.positions),
                "projection_dim": model.embed_dim,
            },
        }

    def settled(self, state: State, objectives: nn.ModuleDict) -> State:
        contrast = objective_of(objectives, InfoNCE)
        return state if contrast is None else {**state, f"{contrast[0]}.logit_scale": contrast[1].scale.detach().log()}

    def shift(self, state: State, shift: Tensor) -> State:
        """What the stem adds to every patch: it has no bias, but each patch has a position."""
        name = "vision_model.embeddings.position_embedding.weight"
        return {**state, name: torch.cat([state[name][:1], state[name][1:] + shift])}

    def options(self, config: Any) -> dict[str, Any]:
        vision, text = config.vision_config, config.text_config
        towers = {
            "vision": {"kind": "clip", "patch": vision.patch_size, **options_of(vision)},
            "text": {"kind": "clip", **options_of(text)},
        }
        return {
            "data.image_size": vision.image_size,
            "data.tokenizer.max_length": text.max_position_embeddings,
            "embed_dim": config.projection_dim,
            **{f"parts.{part}.{name}": value for part, options in towers.items() for name, value in options.items()},
        }


FAMILY = Clip()
