"""transformers' ``SiglipModel`` (Zhai et al. 2023): two towers of kind ``siglip`` under the pairwise sigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from diptych.interop.base import Family, Geometry, Misfit, Same, blocks, lacks, linear, objective_of, options_of, same, towers
from diptych.models.attention import MapPool
from diptych.objectives.contrastive import Sigmoid

if TYPE_CHECKING:
    from diptych.interop.tokenizer import Vocabulary
    from diptych.models.vlm import VLM
    from diptych.recipe import Recipe


class Siglip(Family):
    name = "siglip"
    architecture = "SiglipModel"
    masked = False
    processor = "SiglipProcessor"

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        found = towers(model)
        if found:
            return found
        vision, text = model.part("vision"), model.part("text")
        wrong = lacks(vision, extra=0, learned=True, pooling="map")
        if not isinstance(vision.stem, nn.Conv2d) or vision.stem.bias is None:
            wrong.insert(0, "its stem is not one convolution with bias")
        if not isinstance(vision.norm, nn.Identity):
            wrong.append("it has a norm before its blocks")
        if wrong:
            found.append(Misfit(f"parts.vision: {', '.join(wrong)}", "parts.vision.kind=siglip"))
        elif not isinstance(model.image_projection, nn.Identity):
            found.append(Misfit("the image projection has no place in it", "parts.vision.kind=siglip"))
        wrong = lacks(text, causal=False, whole=True)
        if not isinstance(text.norm, nn.Identity) or isinstance(text.transformer.norm, nn.Identity):
            wrong.append("its norms stand elsewhere")
        if wrong:
            found.append(Misfit(f"parts.text: {', '.join(wrong)}", "parts.text.kind=siglip"))
        elif not isinstance(model.text_projection, nn.Linear) or model.text_projection.bias is None:
            found.append(Misfit("the text projection is not affine", "parts.text.kind=siglip"))
        if recipe.score != "similarity":
            found.append(Misfit(f"it scores by {recipe.score}, not by similarity"))
        if objective_of(objectives, Sigmoid) is None:
            found.append(Misfit("no objective is the pairwise sigmoid, which gives logits their scale and bias"))
        return found

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        vision, text = model.part("vision"), model.part("text")
        found = [
            *linear("parts.vision.stem", "vision_model.embeddings.patch_embedding"),
            same("parts.vision.positions", "vision_model.embeddings.position_embedding.weight"),
            *blocks(vision.transformer, "parts.vision.transformer", "vision_model.encoder.layers"),
            *linear("parts.vision.transformer.norm", "vision_model.post_layernorm"),
            same("parts.text.embedding.weight", "text_model.embeddings.token_embedding.weight"),
            same("parts.text.positions", "text_model.embeddings.position_embedding.weight"),
            *blocks(text.transformer, "parts.text.transformer", "text_model.encoder.layers"),
            *linear("parts.text.transformer.norm", "text_model.final_layer_norm"),
            *linear("text_projection", "text_model.head"),
        ]
        if isinstance(vision.pool, MapPool):
            pool, head = "parts.vision.pool", "vision_model.head"
            found += [
                same(f"{pool}.query", f"{head}.probe", view=(1, 1, -1)),
                *(
                    same([f"{pool}.attention.{n}.{w}" for n in ("q", "kv")], f"{head}.attention.in_proj_{w}")
                    for w in ("weight", "bias")
                ),
                *linear(f"{pool}.attention.out", f"{head}.attention.out_proj"),
                *linear(f"{pool}.norm", f"{head}.layernorm"),
                *linear(f"{pool}.mlp.0", f"{head}.mlp.fc1"),
                *linear(f"{pool}.mlp.2", f"{head}.mlp.fc2"),
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


FAMILY = Siglip()
