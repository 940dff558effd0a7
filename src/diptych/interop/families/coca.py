"""open_clip's ``CoCa`` (version 3.3; Yu et al. 2022): vision, text and decoder of kind ``coca`` under InfoNCE and captioning;
loaded by ``local-dir:PATH``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from diptych.interop.base import Geometry, Misfit, Same, linear, objective_of, same
from diptych.interop.families.open_clip import OpenClip, resblocks, tower
from diptych.models.decoders.coca import CocaDecoder, CocaText, CocaViT
from diptych.objectives.contrastive import InfoNCE

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.interop.tokenizer import Vocabulary
    from diptych.models.vlm import VLM

PARTS = {"vision": CocaViT, "text": CocaText, "decoder": CocaDecoder}


class Coca(OpenClip):
    """open_clip's CoCa."""

    name = "coca"
    architecture = "CoCa"
    scores = ("likelihood", "similarity")
    end_last = False

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what our model does."""
        result = [Misfit(f"part '{name}' has no place in it") for name in model.parts if name not in (*PARTS, "space")]
        for name, kind in PARTS.items():
            if name not in model.parts:
                result.append(Misfit(f"it has no part '{name}'"))
            elif not isinstance(model.parts[name], kind):
                result.append(Misfit(f"parts.{name} is of another geometry", f"parts.{name}={{kind: coca}}"))
        if result:
            return result
        vision, text = model.part("vision"), model.part("text")
        if not vision.width == text.width == model.embed_dim:
            widths = f"vision {vision.width}, text {text.width}, shared space {model.embed_dim}"
            result.append(Misfit(f"tokens and embeddings must be equally wide, not {widths}", f"embed_dim={text.width}"))
        acts = {Geometry.of(model.part(name).transformer).activation for name in PARTS}
        if len(acts) > 1 or not acts <= {"gelu", "quick_gelu"}:
            result.append(Misfit(f"activations are {', '.join(sorted(acts))}, not all gelu or all quick_gelu"))
        if objective_of(objectives, InfoNCE) is None:
            result.append(Misfit("no objective is an InfoNCE, which gives logits their scale"))
        return result

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        """How weights of ours and theirs correspond."""
        vision, text, decoder = (model.part(name) for name in PARTS)
        result = [
            same("parts.vision.classes", "visual.class_embedding", view=(-1,)),
            same("parts.vision.stem.weight", "visual.conv1.weight"),
            same("parts.vision.positions", "visual.positional_embedding"),
            *linear("parts.vision.norm", "visual.ln_pre"),
            *resblocks(vision.transformer, "parts.vision.transformer", "visual.transformer.resblocks"),
            same("parts.vision.read.queries", "visual.attn_pool.query"),
            *linear("parts.vision.read.norm_queries", "visual.attn_pool.ln_q"),
            *linear("parts.vision.read.norm", "visual.attn_pool.ln_k"),
            *attention(vision.read.attention, "parts.vision.read.attention", "visual.attn_pool.attn"),
            *linear("parts.vision.read.norm_out", "visual.ln_post"),
            same("parts.space.image.weight", "visual.proj", transposed=True),
            same("parts.text.embedding.weight", "text.token_embedding.weight"),
            same("parts.text.class_token", "text.cls_emb"),
            same("parts.text.positions", "text.positional_embedding"),
            *resblocks(text.transformer, "parts.text.transformer", "text.transformer.resblocks"),
            *linear("parts.text.transformer.norm", "text.ln_final"),
            same("parts.space.text.weight", "text.text_projection", transposed=True),
            *resblocks(decoder.transformer, "parts.decoder.transformer", "text_decoder.resblocks"),
            *linear("parts.decoder.transformer.norm", "text_decoder.ln_final"),
            same("parts.decoder.output.weight", "text_decoder.text_projection", transposed=True),
        ]
        for i, block in enumerate(decoder.transformer.blocks):
            here, there = f"parts.decoder.transformer.blocks.{i}", f"text_decoder.cross_attn.{i}"
            result += [
                *linear(f"{here}.norm_cross", f"{there}.ln_1"),
                *linear(f"{here}.cross.norm", f"{there}.ln_1_kv"),
                *attention(block.cross, f"{here}.cross", f"{there}.attn"),
                *linear(f"{here}.norm_mlp", f"{there}.ln_2"),
                *linear(f"{here}.mlp_cross.0", f"{there}.mlp.c_fc"),
                *linear(f"{here}.mlp_cross.2", f"{there}.mlp.c_proj"),
            ]
        contrast = objective_of(objectives, InfoNCE)
        return [*result, same(f"{contrast[0]}.logit_scale", "logit_scale")] if contrast else result

    def config(self, model: VLM, vocabulary: Vocabulary) -> dict[str, Any]:
        """The content of config.json, without ``architectures``."""
        vision, text, decoder = (model.part(name) for name in PARTS)
        seen, read, written = (Geometry.of(part.transformer) for part in (vision, text, decoder))
        lengths = {"context_length": len(text.positions) - 1, "vocab_size": len(vocabulary.order)}
        return {
            "model_cfg": {
                "embed_dim": model.embed_dim,
                "quick_gelu": seen.activation == "quick_gelu",
                "custom_text": True,
                "vision_cfg": {
                    "image_size": model.image_size,
                    "patch_size": vision.patch,
                    "head_width": seen.width // seen.heads,
                    "attentional_pool": True,
                    "attn_pooler_queries": len(vision.read.queries),
                    "attn_pooler_heads": vision.read.attention.heads,
                    "output_tokens": True,
                    **tower(seen),
                },
                "text_cfg": {
                    **lengths,
                    "heads": read.heads,
                    "embed_cls": True,
                    "output_tokens": True,
                    "pad_id": vocabulary.config()["pad_token_id"],
                    "hf_tokenizer_name": "tokenizer",  # any name: open_clip uses the tokenizer in the local directory
                    **tower(read),
                },
                "multimodal_cfg": {**lengths, "heads": written.heads, **tower(written)},
            },
            "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
        }


def attention(module: Any, ours: str, theirs: str) -> list[Same]:
    """torch's ``MultiheadAttention`` over a context: projections in one matrix if the context is as wide as the queries, otherwise
    in three.
    """
    q, kv = f"{ours}.q", f"{ours}.kv"
    biases = same([f"{q}.bias", f"{kv}.bias"], f"{theirs}.in_proj_bias")
    if module.kv.in_features == module.q.in_features:
        weights = [same([f"{q}.weight", f"{kv}.weight"], f"{theirs}.in_proj_weight")]
    else:
        weights = [
            same(f"{q}.weight", f"{theirs}.q_proj_weight"),
            same(f"{kv}.weight", [f"{theirs}.k_proj_weight", f"{theirs}.v_proj_weight"]),
        ]
    return [*weights, biases, *linear(f"{ours}.out", f"{theirs}.out_proj")]


FAMILY = Coca()
