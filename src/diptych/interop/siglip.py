"""transformers' ``SiglipModel`` (Zhai et al. 2023): two towers of kind ``siglip`` under the pairwise sigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from diptych.objectives.contrastive import Sigmoid

if TYPE_CHECKING:
    from diptych.interop.base import State
    from diptych.interop.tokenizer import Vocabulary
    from diptych.models.vlm import VLM
    from diptych.recipe import Recipe


class Siglip(Family):
    name = "siglip"
    architecture = "SiglipModel"
    masked = False
    starts = True
    processor = "SiglipProcessor"

    def structure(self, model: VLM) -> list[Misfit]:
        found = []
        if "vision" in model.parts:
            vision = model.part("vision")
            wrong = lacks(vision, extra=0, learned=True, pooling="map")
            if not isinstance(getattr(vision, "stem", None), nn.Conv2d) or vision.stem.bias is None:
                wrong.insert(0, "its stem is not one convolution with bias")
            if not isinstance(getattr(vision, "norm", None), nn.Identity):
                wrong.append("it has a norm before its blocks")
            if wrong:
                found.append(Misfit(f"parts.vision: {', '.join(wrong)}", "parts.vision.kind=siglip"))
        if "text" in model.parts:
            text = model.part("text")
            wrong = lacks(text, causal=False, whole=True) + norms_elsewhere(text)
            if wrong:
                found.append(Misfit(f"parts.text: {', '.join(wrong)}", "parts.text.kind=siglip"))
        return found

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        found = towers(model) or self.structure(model)
        if not found and not isinstance(model.image_projection, nn.Identity):
            found.append(Misfit("the image projection has no place in it", "parts.vision.kind=siglip"))
        if not found and (not isinstance(model.text_projection, nn.Linear) or model.text_projection.bias is None):
            found.append(Misfit("the text projection is not affine", "parts.text.kind=siglip"))
        if recipe.score != "similarity":
            found.append(Misfit(f"it scores by {recipe.score}, not by similarity"))
        if objective_of(objectives, Sigmoid) is None:
            found.append(Misfit("no objective is the pairwise sigmoid, which gives logits their scale and bias"))
        return found or self.left_over(model, objectives)

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        found: list[Same] = []
        if "vision" in model.parts:
            found += [
                *linear("parts.vision.stem", "vision_model.embeddings.patch_embedding"),
                same("parts.vision.positions", "vision_model.embeddings.position_embedding.weight"),
                *blocks(model.part("vision").transformer, "parts.vision.transformer", "vision_model.encoder.layers"),
                *linear("parts.vision.transformer.norm", "vision_model.post_layernorm"),
                *pooling("parts.vision.pool", "vision_model.head"),
            ]
        if "text" in model.parts:
            found += [
                same("parts.text.embedding.weight", "text_model.embeddings.token_embedding.weight"),
                same("parts.text.positions", "text_model.embeddings.position_embedding.weight"),
                *blocks(model.part("text").transformer, "parts.text.transformer", "text_model.encoder.layers"),
                *linear("parts.text.transformer.norm", "text_model.final_layer_norm"),
                *linear("text_projection", "text_model.head"),
            ]
        contrast = objective_of(objectives, Sigmoid)
        if contrast:
            found += [same(f"{contrast[0]}.{n}", n, view=(1,)) for n in ("logit_scale", "logit_bias")]
        return found

    def config(self, model: VLM, vocabulary: Vocabulary) -> dict[str, Any]:
        vision, text = model.part("vision"), model.part("text")
        return {
            "model_type": "siglip",
            "vision_config": {
                **Geometry.of(vision.transformer).config(),
                "model_type": "siglip_vision_model",
                "image_size": model.image_size,
                "patch_size": vision.patch,
            },
            "text_config": {
                **Geometry.of(text.transformer).config(),
                **vocabulary.config(),
                "model_type": "siglip_text_model",
                "max_position_embeddings": len(text.positions),
                "projection_size": model.embed_dim,
            },
        }

    def shift(self, state: State, shift: Tensor) -> State:
        name = "vision_model.embeddings.patch_embedding.bias"
        return {**state, name: state[name] + shift}

    def options(self, config: Any) -> dict[str, Any]:
        vision, text = config.vision_config, config.text_config
        towers = {
            "vision": {"kind": "siglip", "patch": vision.patch_size, **options_of(vision)},
            "text": {"kind": "siglip", **options_of(text)},
        }
        return {
            "data.image_size": vision.image_size,
            "data.tokenizer.max_length": text.max_position_embeddings,
            "embed_dim": vision.hidden_size,
            **{f"parts.{part}.{name}": value for part, options in towers.items() for name, value in options.items()},
        }


def pooling(ours: str, theirs: str) -> list[Same]:
    """``MapPool``; theirs keeps queries, keys and values in one matrix."""
    return [
        same(f"{ours}.query", f"{theirs}.probe", view=(1, 1, -1)),
        *(same([f"{ours}.attention.{n}.{w}" for n in ("q", "kv")], f"{theirs}.attention.in_proj_{w}") for w in ("weight", "bias")),
        *linear(f"{ours}.attention.out", f"{theirs}.attention.out_proj"),
        *linear(f"{ours}.norm", f"{theirs}.layernorm"),
        *linear(f"{ours}.mlp.0", f"{theirs}.mlp.fc1"),
        *linear(f"{ours}.mlp.2", f"{theirs}.mlp.fc2"),
    ]


FAMILY = Siglip()
