"""transformers' ``Blip2ForConditionalGeneration`` (Li et al. 2023): a vision tower, the queries' half of the Q-Former, then a
causal language model.

For export only. Weights that only the first stage needs (the text's feed-forward layers and words, heads, projections) are not
exported. The class puts its features among word vectors unchanged, ours first scales them to the size of word vectors: that factor
goes into ``language_projection``. Its processor would put the image before [BOS], where it never is in our runs; the exported
tokenizer itself writes the image's positions after [BOS].
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from diptych.core.files import read_json, write_json
from diptych.core.sample import IMAGE
from diptych.interop.base import (
    Family,
    Geometry,
    Misfit,
    Same,
    State,
    image_processor,
    linear,
    same,
    save_processor,
    to_theirs,
)
from diptych.interop.families import language
from diptych.interop.families.blip import vision_entries, vision_misfits
from diptych.interop.families.llava import generation, words_left_out
from diptych.models.fusion.qformer import QFormerText, Queries
from diptych.models.language.lm import IMAGE_PROMPTS
from diptych.models.pretrained.packages import quiet
from diptych.models.vision.towers import HubTower
from diptych.objectives.base import learns_turns

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.interop.families.language import Language
    from diptych.models.vlm import VLM

TOWERS = ("Blip2VisionModel", "BlipVisionModel")  # of transformers; the two are equivalent
ORDER = (
    "The image is after [BOS], as in training: the tokenizer writes its positions there. Give the processor a text, if only "
    "an empty one; without a text the class would put the image before [BOS]."
)
WRITING = "`generate` of this class uses `generation_config.json` only if it is passed, as above."


def qformer_entries(text: QFormerText, words: bool = False, ours: str = "parts.text") -> list[Same]:
    """Queries and a ``Blip2QFormerModel``. words: with the text's feed-forward layers, which a class that reads no text does not
    have.
    """
    result = [
        same(f"{ours}.queries", "query_tokens", view=(1, len(text.queries), text.width)),
        *linear(f"{ours}.norm", "qformer.layernorm"),
    ]
    for i, block in enumerate(text.transformer.blocks):
        here, there = f"{ours}.transformer.blocks.{i}", f"qformer.encoder.layer.{i}"
        attentions = [("attention", "norm1", "attention")]
        attentions += [("cross", "norm_cross", "crossattention")] if block.cross is not None else []
        for mine, norm, name in attentions:
            result += linear(f"{here}.{mine}.q", f"{there}.{name}.attention.query")
            result += linear(f"{here}.{mine}.kv", [f"{there}.{name}.attention.key", f"{there}.{name}.attention.value"])
            result += linear(f"{here}.{mine}.out", f"{there}.{name}.output.dense")
            result += linear(f"{here}.{norm}", f"{there}.{name}.output.LayerNorm")
        halves = [("mlp", "norm2", "_query")] + ([("mlp_text", "norm_text", "")] if words else [])
        for mine, norm, end in halves:
            result += linear(f"{here}.{mine}.0", f"{there}.intermediate{end}.dense")
            result += linear(f"{here}.{mine}.2", f"{there}.output{end}.dense")
            result += linear(f"{here}.{norm}", f"{there}.output{end}.LayerNorm")
    return result


class Blip2(Family):
    """``Blip2ForConditionalGeneration``."""

    name = "blip-2"
    architecture = "Blip2ForConditionalGeneration"
    scores = ("likelihood",)
    processor = "Blip2Processor"

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what our model does."""
        result = [Misfit(f"it has no part '{name}'") for name in ("vision", "text", "lm", "connector") if name not in model.parts]
        if result:
            return result
        text, connector = model.part("text"), model.part("connector")
        if not isinstance(text, QFormerText):
            return [Misfit("parts.text is not of kind q_former", "parts.text.kind=q_former")]
        result += self._vision(model)
        if not isinstance(text.norm_image, nn.Identity):
            result.append(
                Misfit("its Q-Former has no norm for the tower's tokens, which have one already", "parts.text.norm=false")
            )
        if text.places is not None:
            result.append(Misfit("its Q-Former adds no positions to the tower's tokens", "parts.text.places=false"))
        if not isinstance(connector, Queries):
            result.append(Misfit("parts.connector is not of kind queries", "parts.connector.kind=queries"))
        if any(map(learns_turns, objectives.values())):
            result.append(Misfit("its processor has no place for an image within a conversation, and the run learned from some"))
        return result + language.misfits(model.part("lm"))

    def _vision(self, model: VLM) -> list[Misfit]:
        vision = model.part("vision")
        if not isinstance(vision, HubTower):
            return vision_misfits(vision)
        tower: Any = vision.tower
        if type(tower.model).__name__ not in TOWERS:
            return [Misfit(f"parts.vision is a {type(tower.model).__name__}, its tower a {TOWERS[0]}", "parts.vision.kind=class")]
        result = [Misfit("it takes the last of the tower's layers", "parts.vision.layer=-1")] if tower.layer != -1 else []
        if tower.size != model.image_size:
            why = f"pictures are scaled to {model.image_size} pixels and then, within the model, to the tower's {tower.size}"
            result.append(Misfit(why, f"data.image_size={tower.size}"))
        return result

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        """How weights of our own parts correspond; the rest is converted."""
        vision: Any = model.parts["vision"]
        own = [] if isinstance(vision, HubTower) else vision_entries(vision)
        return [*own, *qformer_entries(model.part("text")), *linear("parts.connector.layer", "language_projection")]

    def write(self, directory: Path, model: VLM, objectives: nn.ModuleDict, adapters: str = "") -> list[str]:
        """Write all files that the class loads; returns notes for the model card, one line each."""
        from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor

        words = language.whole(model.part("lm"), merged=not adapters)
        image = words.add_token(IMAGE)
        for name in ("bos", "eos", "pad"):  # with which the class begins and ends
            setattr(words.config, f"{name}_token_id", getattr(words.ours, name))
        dtype = torch.float32 if words.learned else next(iter(words.state.values())).dtype
        vision, mean, std = self._tower(model)
        words.config.dtype = dtype
        config = Blip2Config(
            vision_config={**vision, "dtype": dtype},
            qformer_config=self._qformer(model),
            text_config=words.config,
            num_query_tokens=len(model.part("text").queries),
            image_text_hidden_size=model.embed_dim,
            image_token_index=image,
            dtype=dtype,
        )
        with torch.device("meta"):
            made: Any = Blip2ForConditionalGeneration(config)
        state = self._state(model, words, made)
        made.load_state_dict({k: v.detach().cpu().contiguous() for k, v in state.items()}, strict=True, assign=True)
        made.language_model.tie_weights()
        made.generation_config = generation(words, [image], [words.ours.eos])
        with quiet():
            made.save_pretrained(directory)
        says = read_json(directory / "config.json")  # it has the precision of the first weight
        write_json(directory / "config.json", {**says, "dtype": str(dtype).removeprefix("torch.")})
        processor = Blip2Processor(image_processor(model.image_size, mean, std), self._tokenizer(model, words))
        save_processor(directory, processor, self.processor)
        if adapters:
            language.write_adapters(directory / "adapter", model, adapters, inside(made))
        return [ORDER, *words_left_out(words), WRITING]

    def _state(self, model: VLM, words: Language, made: Any) -> State:
        """All weights under the class's names."""
        state = to_theirs(model.state_dict(), self.entries(model, nn.ModuleDict()))
        for what in ("weight", "bias"):
            state[f"language_projection.{what}"] = state[f"language_projection.{what}"] * float(model.part("lm").scale)
        vision: Any = model.parts["vision"]
        if isinstance(vision, HubTower):
            state |= {f"vision_model.{name}": value for name, value in vision.tower.model.state_dict().items()}
        names = {id(module): name for name, module in made.named_modules()}
        state |= {f"{inside(made)}.{name}": value for name, value in words.state.items()}
        return state | {f"{names[id(made.get_output_embeddings())]}.weight": words.head}

    def _tower(self, model: VLM) -> tuple[dict[str, Any], list[float], list[float]]:
        """Configuration, mean and deviation of pixels."""
        vision: Any = model.parts["vision"]
        if isinstance(vision, HubTower):
            tower: Any = vision.tower
            says = tower.model.config.to_dict()
            kept = (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "image_size",
                "patch_size",
                "hidden_act",
                "layer_norm_eps",
            )
            mean, std = (getattr(tower, name).flatten().tolist() for name in ("mean", "std"))
            biases = says.get("qkv_bias", True)
            return {**{name: says[name] for name in kept}, "qkv_bias": biases}, mean, std
        sizes = {"image_size": model.image_size, "patch_size": vision.patch}
        return {**Geometry.of(vision.transformer).config(), **sizes}, [0.5] * 3, [0.5] * 3

    def _qformer(self, model: VLM) -> dict[str, Any]:
        text = model.part("text")
        return {
            **Geometry.of(text.transformer).config(),
            "encoder_hidden_size": model.part("vision").width,
            "cross_attention_frequency": text.every,
            "max_position_embeddings": len(text.positions),
            "vocab_size": len(model.tokenizer),
            "use_qformer_text_input": False,
        }

    def _tokenizer(self, model: VLM, words: Language) -> Any:
        """Their tokenizer, which begins a text with [BOS] and the image's positions, and pads on the left, since the class writes
        after its prompt.
        """
        from tokenizers import processors

        tokenizer = words.tokenizer
        asked = words.ours.pieces([IMAGE_PROMPTS[0]])[0] if model.part("lm").prompted else []
        shown = [tokenizer.convert_tokens_to_ids(IMAGE)] * model.part("connector").tokens
        opening = [words.ours.bos, *asked, *shown]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="OPENING $A",
            special_tokens=[{"id": "OPENING", "ids": opening, "tokens": tokenizer.convert_ids_to_tokens(opening)}],
        )
        tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(words.ours.pad)
        tokenizer.chat_template = None  # the run wrote captions
        return tokenizer


def inside(made: Any) -> str:
    """The name of the language model's base class within the class."""
    return f"language_model.{made.language_model.base_model_prefix}"


FAMILY = Blip2()
