"""open_clip's ``CLIP`` (version 3.3): the same model as transformers' ``CLIPModel`` under other names; loaded by
``local-dir:PATH``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from diptych.core.files import write_json
from diptych.interop.base import Geometry, Misfit, Same, linear, same, save_tokenizer
from diptych.interop.families.clip import Clip
from diptych.models.layers.attention import Transformer

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.interop.tokenizer import Vocabulary
    from diptych.models.vlm import VLM

ACTS = {"quick_gelu": None, "gelu": None, "gelu_tanh": {"approximate": "tanh"}}


class OpenClip(Clip):
    """open_clip's CLIP."""

    name = "open_clip"
    architecture = "CLIP"
    format = "open_clip"
    weights = "open_clip_model.safetensors"

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what our model does."""
        result = super().misfits(recipe, model, objectives)
        if result:
            return result
        acts = {name: Geometry.of(model.part(name).transformer).activation for name in ("vision", "text")}
        for name, act in acts.items():
            if act not in ACTS:
                result.append(Misfit(f"parts.{name}.activation is {act}, which it does not have", f"parts.{name}.activation=gelu"))
        if not result and (acts["vision"] == "quick_gelu") != (acts["text"] == "quick_gelu"):
            result.append(Misfit("only one tower has quick_gelu", f"parts.text.activation={acts['vision']}"))
        return result

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        """How weights of ours and theirs correspond."""
        vision, text = model.part("vision"), model.part("text")
        result = [
            same("parts.vision.classes", "visual.class_embedding", view=(-1,)),
            same("parts.vision.stem.weight", "visual.conv1.weight"),
            same("parts.vision.positions", "visual.positional_embedding"),
            *linear("parts.vision.norm", "visual.ln_pre"),
            *resblocks(vision.transformer, "parts.vision.transformer", "visual.transformer.resblocks"),
            *linear("parts.vision.transformer.norm", "visual.ln_post"),
            same("parts.space.image.weight", "visual.proj", transposed=True),
            same("parts.text.embedding.weight", "token_embedding.weight"),
            same("parts.text.positions", "positional_embedding"),
            *resblocks(text.transformer, "parts.text.transformer", "transformer.resblocks"),
            *linear("parts.text.transformer.norm", "ln_final"),
            same("parts.space.text.weight", "text_projection", transposed=True),
        ]
        contrast = self.scaled(objectives)
        return [*result, same(f"{contrast[0]}.logit_scale", "logit_scale")] if contrast else result

    def config(self, model: VLM, vocabulary: Vocabulary) -> dict[str, Any]:
        """The content of config.json, without ``architectures``."""
        vision, text = model.part("vision"), model.part("text")
        seen, read = Geometry.of(vision.transformer), Geometry.of(text.transformer)
        ids = vocabulary.config()
        return {
            "model_cfg": {
                "embed_dim": model.embed_dim,
                "quick_gelu": seen.activation == "quick_gelu",
                "vision_cfg": {
                    "image_size": model.image_size,
                    "patch_size": vision.patch,
                    "head_width": seen.width // seen.heads,
                    **tower(seen),
                },
                "text_cfg": {
                    "context_length": len(text.positions),
                    "vocab_size": ids["vocab_size"],
                    "pad_id": ids["pad_token_id"],
                    "eos_id": ids["eos_token_id"],
                    "hf_tokenizer_name": "tokenizer",  # any name: open_clip uses the tokenizer in the local directory
                    "heads": read.heads,
                    **tower(read),
                },
            },
            "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
        }

    def describe(self, directory: Path, model: VLM, vocabulary: Vocabulary) -> None:
        """Write everything except the weights: configuration, tokenizer, image processor."""
        write_json(directory / "open_clip_config.json", self.config(model, vocabulary))
        save_tokenizer(directory, vocabulary.of_transformers())


def tower(sizes: Geometry) -> dict[str, Any]:
    """How the weights of one tower correspond."""
    return {
        "width": sizes.width,
        "layers": sizes.depth,
        "mlp_ratio": sizes.hidden / sizes.width,
        "norm_kwargs": {"eps": sizes.eps},
        "act_kwargs": ACTS[sizes.activation],
    }


def resblocks(transformer: Transformer, ours: str, theirs: str) -> list[Same]:
    """The blocks of a tower, as torch's ``MultiheadAttention`` and open_clip name them: queries, keys and values in one matrix."""
    names = {"norm1": "ln_1", "norm2": "ln_2", "attention.out": "attn.out_proj", "mlp.0": "mlp.c_fc", "mlp.2": "mlp.c_proj"}
    entries: list[Same] = []
    for i in range(len(transformer.blocks)):
        here, there = f"{ours}.blocks.{i}", f"{theirs}.{i}"
        for what in ("weight", "bias"):
            entries.append(same([f"{here}.attention.{n}.{what}" for n in ("q", "kv")], f"{there}.attn.in_proj_{what}"))
        for our_name, their_name in names.items():
            entries += linear(f"{here}.{our_name}", f"{there}.{their_name}")
    return entries


FAMILY = OpenClip()
