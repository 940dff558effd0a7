"""transformers' ``BlipForImageTextRetrieval`` and ``BlipForConditionalGeneration`` (Li et al. 2022): a vision tower of kind
``class`` under MED.

A run of the recipe holds both: matching and contrast in the first, captions in the second. If texts begin with [ENC] and [DEC],
these are the last two of the vocabulary and the exported tokenizer writes the one that the class expects; for the first class's
cosine a text begins with [BOS] instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from diptych.core.files import write_json
from diptych.data.text import EOS
from diptych.interop.base import (
    Family,
    Geometry,
    Misfit,
    Same,
    lacks,
    linear,
    objective_of,
    options_of,
    same,
    write_processor,
)
from diptych.models.fusion.med import MedDecoder, MedEncoder, MedText
from diptych.models.vision.towers import ViT
from diptych.objectives.matching import Matching

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.interop.tokenizer import Vocabulary
    from diptych.models.vlm import VLM

MARKS = ("[DEC]", "[ENC]")


def vision_entries(vision: Any) -> list[Same]:
    """How the image tower's weights correspond."""
    ours, theirs = "parts.vision", "vision_model"
    result = [
        same(f"{ours}.classes", f"{theirs}.embeddings.class_embedding", view=(1, 1, -1)),
        *linear(f"{ours}.stem", f"{theirs}.embeddings.patch_embedding"),
        same(f"{ours}.positions", f"{theirs}.embeddings.position_embedding", view=(1, -1, vision.width)),
        *linear(f"{ours}.transformer.norm", f"{theirs}.post_layernorm"),
    ]
    inside = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attention.out": "self_attn.projection",
        "mlp.0": "mlp.fc1",
        "mlp.2": "mlp.fc2",
    }
    for i in range(len(vision.transformer.blocks)):
        here, there = f"{ours}.transformer.blocks.{i}", f"{theirs}.encoder.layers.{i}"
        result += linear([f"{here}.attention.q", f"{here}.attention.kv"], f"{there}.self_attn.qkv")
        for our_name, their_name in inside.items():
            result += linear(f"{here}.{our_name}", f"{there}.{their_name}")
    return result


def vision_misfits(vision: Any) -> list[Misfit]:
    """How a part differs from the tower of BLIP and BLIP-2."""
    if isinstance(vision, ViT):
        wrong = lacks(vision, extra=1, learned=True, norm_sum=False, pooling="class", mask_token=None)
        wrong += lacks(vision.transformer, bare=False)
        if not isinstance(vision.stem, nn.Conv2d) or vision.stem.bias is None or not isinstance(vision.norm, nn.Identity):
            wrong.insert(0, "its stem is not one convolution without a norm")
    else:
        wrong = ["it is not a transformer of ours"]
    return [Misfit(f"parts.vision: {', '.join(wrong)}", "parts.vision.kind=class")] if wrong else []


def text_entries(depth: int, theirs: str, ours: str = "parts.text", attention: str = "") -> list[Same]:
    """A ``BlipTextModel``. attention: the blocks that give the self-attention, if not those in ``ours``."""
    result = [
        same(f"{ours}.embedding.weight", f"{theirs}.embeddings.word_embeddings.weight"),
        same(f"{ours}.positions", f"{theirs}.embeddings.position_embeddings.weight"),
        *linear(f"{ours}.norm", f"{theirs}.embeddings.LayerNorm"),
    ]
    for i in range(depth):
        block, there = f"{ours}.transformer.blocks.{i}", f"{theirs}.encoder.layer.{i}"
        own = f"{attention}.blocks.{i}" if attention else block
        for at, norm, name in (
            (f"{own}.attention", f"{own}.norm1", "attention"),
            (f"{block}.cross", f"{block}.norm_cross", "crossattention"),
        ):
            result += linear(f"{at}.q", f"{there}.{name}.self.query")
            result += linear(f"{at}.kv", [f"{there}.{name}.self.key", f"{there}.{name}.self.value"])
            result += linear(f"{at}.out", f"{there}.{name}.output.dense")
            result += linear(norm, f"{there}.{name}.output.LayerNorm")
        result += linear(f"{block}.mlp.0", f"{there}.intermediate.dense")
        result += linear(f"{block}.mlp.2", f"{there}.output.dense")
        result += linear(f"{block}.norm2", f"{there}.output.LayerNorm")
    return result


class _Blip(Family):
    processor = "BlipProcessor"
    first: ClassVar[str]  # the token that begins a text

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what our model does."""
        result = vision_misfits(model.parts["vision"] if "vision" in model.parts else None)
        for name, kind in (("text", MedText), *self.modes()):
            if name not in model.parts or not isinstance(model.parts[name], kind):
                result.append(Misfit(f"parts.{name} is not of kind med", f"parts.{name}.kind=med"))
        result += [
            Misfit(f"part '{name}' has no place in it")
            for name in model.parts
            if name not in ("vision", "text", "fusion", "decoder", "space")
        ]
        return result

    def modes(self) -> tuple[tuple[str, type], ...]:
        """The parts that compute with the text transformer, and their classes."""
        raise NotImplementedError

    def config(self, model: VLM, vocabulary: Vocabulary) -> dict[str, Any]:
        """The content of config.json, without ``architectures``."""
        vision: Any = model.parts["vision"]
        text: Any = model.parts["text"]
        return {
            "model_type": "blip",
            "image_text_hidden_size": model.embed_dim,
            "projection_dim": model.embed_dim,
            "vision_config": {
                **Geometry.of(vision.transformer).config(),
                "model_type": "blip_vision_model",
                "image_size": model.image_size,
                "patch_size": vision.patch,
            },
            "text_config": {
                **Geometry.of(text.transformer).config(),
                **vocabulary.config(),
                "model_type": "blip_text_model",
                "vocab_size": text.embedding.num_embeddings,
                "bos_token_id": text.dec,  # with which a caption begins
                "sep_token_id": vocabulary.id(EOS),  # and ends
                "encoder_hidden_size": vision.width,
                "max_position_embeddings": len(text.positions),
            },
        }

    def describe(self, directory: Path, model: VLM, vocabulary: Vocabulary) -> None:
        """Write everything except the weights: configuration, tokenizer, image processor."""
        from tokenizers import AddedToken, processors

        tokenizer = vocabulary.of_transformers()
        text: Any = model.parts["text"]
        tokenizer.sep_token = "[EOS]"  # at which the class stops
        first = "[BOS]"
        if text.dec != text.bos:
            tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS], special_tokens=True)
            first = self.first
        ends = [(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in (first, "[EOS]")]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A [EOS]", special_tokens=ends)
        write_processor(directory, self.processor, tokenizer, model.image_size)
        config = {"architectures": [self.architecture], "dtype": "float32", **self.config(model, vocabulary)}
        write_json(directory / "config.json", config)

    def options(self, config: Any) -> dict[str, Any]:
        """Their start tokens are ordinary ids: our [BOS], [DEC] and [ENC] are the same token, and ``marks`` is false."""
        vision, text = config.vision_config, config.text_config
        towers = {
            "vision": {"kind": "class", "patch": vision.patch_size, **options_of(vision)},
            "text": {"kind": "med", "marks": False, **options_of(text)},
        }
        return {
            "data.image_size": vision.image_size,
            "data.tokenizer.max_length": text.max_position_embeddings,
            "embed_dim": config.image_text_hidden_size,
            **{f"parts.{part}.{name}": value for part, options in towers.items() for name, value in options.items()},
            "parts.decoder.share": False,
            "stages.0.objectives.next_token.label_smoothing": text.label_smoothing,
        }


class BlipMatching(_Blip):
    """Matching and contrast: the image-grounded encoder, and the text alone."""

    name = "blip-matching"
    architecture = "BlipForImageTextRetrieval"
    scores = ("matching", "similarity")
    first = "[ENC]"

    def modes(self) -> tuple[tuple[str, type], ...]:
        """The parts that compute with the text transformer, and their classes."""
        return (("fusion", MedEncoder),)

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what our model does."""
        result = super().misfits(recipe, model, objectives)
        matching = objective_of(objectives, Matching)
        if matching is None or not isinstance(matching[1].head, nn.Linear):
            result.append(Misfit("no objective is a matching of one layer", "stages.0.objectives.matching.pooler=none"))
        return result

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        """How weights of ours and theirs correspond."""
        matching = objective_of(objectives, Matching)
        return [
            *vision_entries(model.parts["vision"]),
            *text_entries(len(model.parts["text"].transformer.blocks), "text_encoder"),  # type: ignore[union-attr, arg-type]
            *linear("parts.space.image", "vision_proj"),
            *linear("parts.space.text", "text_proj"),
            *(linear(f"{matching[0]}.head", "itm_head") if matching else ()),
        ]


class BlipCaptioning(_Blip):
    """Captions: the image-grounded decoder; what it shares with the encoder is written out."""

    name = "blip-captioning"
    architecture = "BlipForConditionalGeneration"
    scores = ("likelihood",)
    first = "[DEC]"

    def modes(self) -> tuple[tuple[str, type], ...]:
        """The parts that compute with the text transformer, and their classes."""
        return (("decoder", MedDecoder),)

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        """How weights of ours and theirs correspond."""
        decoder: Any = model.parts["decoder"]
        depth = len(decoder.blocks.blocks)
        ours, attention = ("parts.text", "parts.decoder.transformer") if decoder.share else ("parts.decoder.own", "")
        return [
            *vision_entries(model.parts["vision"]),
            *text_entries(depth, "text_decoder.bert", ours, attention),
            *linear("parts.decoder.transform", "text_decoder.cls.predictions.transform.dense"),
            *linear("parts.decoder.norm", "text_decoder.cls.predictions.transform.LayerNorm"),
            same("parts.decoder.bias", "text_decoder.cls.predictions.bias"),
        ]


FAMILIES = (BlipMatching(), BlipCaptioning())
