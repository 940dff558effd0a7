"""transformers' ``LlavaForConditionalGeneration`` (Liu et al. 2023; 2024): a vision tower, an MLP on each of its patches, a causal
language model.

For export only. The class puts projected patches among word vectors unchanged, ours first scales them to the size of word vectors:
that factor goes into the last layer of the projector. (If a family scales its word vectors, as Gemma does, both sides do so in the
embedding, so it does not matter here.)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from diptych.core.files import read_json, write_json
from diptych.core.sample import IMAGE, Turn
from diptych.data.conversations.template import IMAGE_ID, Chat
from diptych.data.conversations.turns import question
from diptych.interop.base import Family, Geometry, Misfit, Same, State, image_processor, save_processor, to_ours, to_theirs
from diptych.interop.families import language
from diptych.interop.families.siglip import Siglip
from diptych.models.connectors.clips import ClipConnector
from diptych.models.connectors.mlp import MLP
from diptych.models.connectors.tiles import AnyResolution
from diptych.models.pretrained.packages import quiet
from diptych.models.vision.towers import HubTower, ViT
from diptych.objectives.base import learns_turns

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.interop.families.language import Language
    from diptych.models.vlm import VLM

TIE = "tie_last_hidden_states"
INSIDE = "model.language_model"
TOWER = "parts.vision={kind: hf, from: hf:CLIP_OR_SIGLIP}"
PROBE = [question("one two?"), Turn("assistant", "three"), Turn("user", "why?")]
MLP_OF_IT = "parts.connector={kind: mlp, norm: false}"


class Llava(Family):
    """``LlavaForConditionalGeneration``."""

    name = "llava"
    architecture = "LlavaForConditionalGeneration"
    scores = ("likelihood",)
    processor = "LlavaProcessor"
    marks: ClassVar[tuple[str, ...]] = (IMAGE,)  # words in place of what is not a word
    towers: ClassVar[tuple[str, ...]] = ("model.vision_tower",)
    reads: ClassVar[bool] = True
    made_processor: ClassVar[str] = "LlavaProcessor"  # the class that writes the processor's file
    unused: ClassVar[tuple[str, ...]] = ()  # weights of the class that ours have nothing for, and that it does not use for ours

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what our model does."""
        result = [Misfit(f"it has no part '{name}'") for name in ("vision", "connector", "lm") if name not in model.parts]
        if result:
            return result
        for name in model.parts:
            if name not in ("vision", "connector", "lm", "space"):
                result.append(Misfit(f"part '{name}' has no place in it"))
        return result + self._vision(model) + self._connector(model.part("connector")) + language.misfits(model.part("lm"))

    def _vision(self, model: VLM) -> list[Misfit]:
        vision = model.part("vision")
        if isinstance(vision, HubTower):
            tower: Any = vision.tower
            config = tower_config(tower)
            if isinstance(config, Misfit):
                return [config]
            if tower.size != model.image_size:
                why = f"pictures are scaled to {model.image_size} pixels and then, within the model, to the tower's {tower.size}"
                return [Misfit(why, f"data.image_size={tower.size}")]
            return []
        if isinstance(vision, ViT):
            return [Misfit(m.why, m.set) for m in Siglip().structure(model) if m.why.startswith("parts.vision")]
        return [Misfit(f"parts.vision is a {type(vision).__name__}, which is not one of its towers", TOWER)]

    def _connector(self, connector: Any) -> list[Misfit]:
        if isinstance(connector, ClipConnector):
            return [Misfit(f"parts.connector, a {type(connector).__name__}, reads clips, and the class reads pictures")]
        if isinstance(connector, AnyResolution):
            return [Misfit("parts.connector reads pictures in tiles, and the class reads them whole", MLP_OF_IT)]
        if not isinstance(connector, MLP):
            return [Misfit(f"parts.connector is a {type(connector).__name__}, its projector is an MLP", MLP_OF_IT)]
        return projector_misfits(connector)

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        """How weights of our own tower correspond; the rest is converted."""
        return [e for e in Siglip().entries(model, objectives) if e.ours[0].startswith("parts.vision.")]

    def write(self, directory: Path, model: VLM, objectives: nn.ModuleDict, adapters: str = "") -> list[str]:
        """Write all files that the class loads; returns notes for the model card, one line each."""
        import transformers

        lm, words = model.part("lm"), language.whole(model.part("lm"), merged=not adapters)
        marks = {f"{mark.strip('<>')}_token_index": words.add_token(mark) for mark in self.marks}
        tower, weights, strategy, mean, std = self._tower(model)
        vision: Any = transformers.AutoConfig.for_model(**tower)
        tied = words.tied and words.embedding == "embed_tokens.weight"  # the only name that the class looks for
        words.config.tie_word_embeddings = tied
        dtype = torch.float32 if words.learned else next(iter(words.state.values())).dtype
        vision.dtype = words.config.dtype = dtype
        layers = linear_layers(model.part("connector"))
        options: dict[str, Any] = {
            "vision_config": vision,
            "text_config": words.config,
            **marks,
            **self._lengths(model.part("connector")),
            **self._more_options(model),
            "projector_hidden_act": "gelu" if len(layers) == 2 else "linear",
            "vision_feature_layer": getattr(getattr(model.part("vision"), "tower", None), "layer", -1),
            "vision_feature_select_strategy": strategy,
            "tie_word_embeddings": tied,
            "pad_token_id": words.ours.pad,
            "bos_token_id": words.ours.bos,
            "eos_token_id": words.ours.eos,
            "dtype": dtype,
        }
        config = getattr(transformers, self.architecture.replace("ForConditionalGeneration", "Config"))(**options)
        with torch.device("meta"):
            made: Any = getattr(transformers, self.architecture)(config)
        state = {f"{INSIDE}.{name}": value for name, value in words.state.items()} | {
            "lm_head.weight": words.head if tied else words.head.clone()
        }
        state |= projector(layers, float(lm.scale)) | self._more_weights(model.part("connector"), float(lm.scale))
        for place in self.towers:  # each with weights of its own, since files hold no weight twice
            state |= named_as(made, place, {name: value.clone() for name, value in weights.items()})
        state |= {name: torch.zeros(value.shape) for name, value in made.state_dict().items() if name in self.unused}
        made.load_state_dict({k: v.detach().cpu().contiguous() for k, v in state.items()}, strict=True, assign=True)
        if tied:
            made.tie_weights()
        talks = any(map(learns_turns, objectives.values()))
        speaks = Chat(model.tokenizer, model.part("connector").tokens) if talks else None
        made.generation_config = generation(
            words, list(marks.values()), [words.original(i) for i in speaks.ends] if speaks else [words.ours.eos]
        )
        with quiet():
            made.save_pretrained(directory)
        says = read_json(directory / "config.json")  # it has the precision of the first weight
        write_json(directory / "config.json", {**says, "dtype": str(dtype).removeprefix("torch.")})
        tokenizer = words.tokenizer
        tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side = "left"  # the class writes after its prompt
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(words.ours.pad)
        if speaks and not begins(speaks):
            without_beginning(tokenizer)
        processor = getattr(transformers, self.made_processor)(
            self._pictures(model, mean, std),
            tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy=strategy,
            image_token=IMAGE,
            num_additional_image_tokens=1 if strategy == "default" else 0,
            chat_template=self._template(lm, speaks, tokenizer, words),
        )
        save_processor(directory, processor, self.processor)
        self._describe_clips(directory, model)
        if adapters:
            language.write_adapters(directory / "adapter", model, adapters, INSIDE)
        return [*words_left_out(words), *(read_otherwise(processor, speaks, words) if speaks else ())]

    def read(self, model: VLM, theirs: State) -> State:
        """The weights of an export under the names that they have in the exported run's model, without adapters."""
        lm, connector = model.part("lm"), model.part("connector")
        result = {f"parts.lm.{k}": v for k, v in language.read_back(lm, inside(theirs, INSIDE), theirs["lm_head.weight"]).items()}
        result |= read_projector(connector, inside(theirs, "model.multi_modal_projector"), float(lm.scale))
        tower, vision = inside(theirs, self.towers[0]), model.part("vision")
        tower = {name.removeprefix("vision_model."): value for name, value in tower.items()}
        if isinstance(vision, HubTower):
            own = vision.tower.model.state_dict()
            names = {name.removeprefix("vision_model."): name for name in own}
            return result | {f"parts.vision.tower.model.{names[k]}": v for k, v in tower.items() if k in names}
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        return result | to_ours({f"vision_model.{k}": v for k, v in tower.items()}, self.entries(model, nn.ModuleDict()), shapes)

    def _lengths(self, connector: Any) -> dict[str, Any]:
        """The options of the configuration that depend on the connector."""
        return {"image_seq_length": connector.tokens}

    def _more_options(self, model: VLM) -> dict[str, Any]:
        """Options of the configuration that only some of the classes have."""
        return {}

    def _more_weights(self, connector: Any, scale: float) -> State:
        """Weights between tower and language model besides the projector's, as large as word vectors (``scale``)."""
        return {}

    def _pictures(self, model: VLM, mean: list[float], std: list[float]) -> Any:
        """What prepares pictures."""
        return image_processor(model.image_size, mean, std)

    def _template(self, lm: Any, speaks: Chat | None, tokenizer: Any, words: Language) -> str:
        return language.template(lm, speaks, tokenizer, words)

    def _describe_clips(self, directory: Path, model: VLM) -> None:
        """For classes that read clips: what prepares them."""

    def _tower(self, model: VLM) -> tuple[dict[str, Any], State, str, list[float], list[float]]:
        """Configuration, weights, strategy (whether there is a token before the patches), mean and deviation of pixels."""
        vision = model.part("vision")
        if isinstance(vision, HubTower):
            tower: Any = vision.tower
            config = tower_config(tower)
            assert not isinstance(config, Misfit)
            mean, std = (getattr(tower, name).flatten().tolist() for name in ("mean", "std"))
            return config, dict(tower.model.state_dict()), "default" if tower.extra else "full", mean, std
        config = {
            **Geometry.of(vision.transformer).config(),
            "model_type": "siglip_vision_model",
            "image_size": model.image_size,
            "patch_size": vision.patch,
            TIE: True,
        }
        weights = to_theirs(model.state_dict(), self.entries(model, nn.ModuleDict()))
        weights = {name.removeprefix("vision_model."): value for name, value in weights.items()}
        return config, weights, "full", [0.5] * 3, [0.5] * 3


def tower_config(tower: Any) -> dict[str, Any] | Misfit:
    """The configuration with which the class reads the same states as our tower: one token per patch, after at most one other.

    The class selects a hidden state by number. In most families the last one is before the last norm and ours is after it; the
    configuration then makes them the same (``tie_last_hidden_states``), if the family supports that.
    """
    from transformers import AutoModel

    odd = Misfit(f"parts.vision is a {type(tower.model).__name__}, without one token per patch after at most one other", TOWER)
    config: Any = tower.model.config
    patch = getattr(config, "patch_size", None)
    if tower.extra > 1 or not isinstance(patch, int) or (tower.size // patch) ** 2 != tower.tokens:
        return odd
    try:
        with torch.device("meta"):
            names = set(AutoModel.from_config(config).state_dict())
    except ValueError:  # a part that is not a separate model
        return odd
    if not set(tower.model.state_dict()) <= names | {name.removeprefix("vision_model.") for name in names}:
        return odd
    pixels = torch.rand(1, 3, tower.size, tower.size, generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(tower.mean.device, next(tower.model.parameters()).dtype)
    says = {key: value for key, value in config.to_dict().items() if key not in ("architectures", "dtype", "transformers_version")}
    given = getattr(config, TIE, None)
    for tie in (given, True):
        setattr(config, TIE, tie)
        try:
            with torch.no_grad():
                states = tower.model(pixel_values=pixels, output_hidden_states=True).hidden_states
                seen = tower._tokens(pixels)[0]
        finally:
            setattr(config, TIE, given)
        if torch.equal(states[tower.layer], seen):
            return says if tie is given else {**says, TIE: True}
    return Misfit("the class cannot use the tower's last state after its norm", "parts.vision.layer=-2")


def projector_misfits(connector: Any) -> list[Misfit]:
    """Why the layers of a connector are not those of the class's projector: no norm, at most two, with a middle not too wide."""
    result = []
    if not isinstance(connector.norm, nn.Identity):
        result.append(Misfit("its projector has no norm", "parts.connector.norm=false"))
    layers = linear_layers(connector)
    if len(layers) > 2:
        result.append(Misfit(f"its projector has two layers, not {len(layers)}", "parts.connector.depth=2"))
    elif layers[0].out_features > connector.width:
        result.append(
            Misfit("the middle of its projector is as wide as the language model", f"parts.connector.width={connector.width}")
        )
    return result


def linear_layers(connector: Any) -> list[nn.Linear]:
    """The linear layers of a connector, in order."""
    return [layer for layer in connector.layers if isinstance(layer, nn.Linear)]


def projector(layers: list[nn.Linear], scale: float) -> State:
    """Two layers, the second times ``scale``. A narrow middle is padded with zeros, which GELU does not change; a single layer gets
    the identity as its second.
    """
    width = layers[-1].out_features
    first, bias = (_filled(x.detach().float(), width) for x in (layers[0].weight, layers[0].bias))
    if len(layers) == 2:
        second = _filled(layers[1].weight.detach().float().T, width).T
        last = layers[1].bias.detach().float()
    else:
        second, last = torch.eye(width), torch.zeros(width)
    name = "model.multi_modal_projector"
    return {
        f"{name}.linear_1.weight": first,
        f"{name}.linear_1.bias": bias,
        f"{name}.linear_2.weight": (second * scale).contiguous(),
        f"{name}.linear_2.bias": last * scale,
    }


def read_projector(connector: Any, theirs: State, scale: float) -> State:
    """The layers of a connector from those of the class's projector, the inverse of ``projector``; theirs: its weights by name."""
    layers = linear_layers(connector)
    result: State = {}
    names = {id(module): name for name, module in connector.named_modules()}
    if len(layers) == 1:  # the first of theirs; the second is the identity until something trains it
        second = theirs["linear_2.weight"] / scale
        found = [(second @ theirs["linear_1.weight"], second @ theirs["linear_1.bias"] + theirs["linear_2.bias"] / scale)]
    else:
        middle = layers[0].out_features
        first = theirs["linear_1.weight"][:middle], theirs["linear_1.bias"][:middle]
        found = [first, (theirs["linear_2.weight"][:, :middle] / scale, theirs["linear_2.bias"] / scale)]
    for layer, (weight, bias) in zip(layers, found, strict=True):
        result |= {f"parts.connector.{names[id(layer)]}.weight": weight, f"parts.connector.{names[id(layer)]}.bias": bias}
    return result


def inside(state: State, place: str) -> State:
    """The weights of one module, by their names within it."""
    return {name.removeprefix(f"{place}."): value for name, value in state.items() if name.startswith(f"{place}.")}


def _filled(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])


def named_as(made: Any, inside: str, weights: State) -> State:
    """Weights of a tower under the names of the class, which in some versions has it one level deeper."""
    names = set(made.state_dict())
    deeper = "" if f"{inside}.{next(iter(weights))}" in names else ".vision_model"
    return {f"{inside}{deeper}.{name}": value for name, value in weights.items()}


def generation(words: Language, marks: list[int], ends: list[int]) -> Any:
    """Greedy, and only with words that the run could write: it has not learned when not to write the others."""
    from transformers import GenerationConfig

    silent = set(marks)
    if words.kept is not None:
        silent |= set(range(len(words.head))) - set(words.kept)
    return GenerationConfig(
        do_sample=False,
        bos_token_id=words.ours.bos,
        eos_token_id=sorted(ends),
        pad_token_id=words.ours.pad,
        suppress_tokens=sorted(silent),
    )


def words_left_out(words: Language) -> list[str]:
    """Note for the model card if the vocabulary was trimmed."""
    if words.kept is None:
        return []
    return [
        f"The run knew {len(words.kept)} of the {len(words.head)} pieces of its language model's vocabulary, those that its "
        "texts need. Here the vocabulary is whole; `generation_config.json` suppresses the others (`suppress_tokens`), since the "
        "run never learned when not to write them. A word that none of the run's texts had is split by the whole vocabulary "
        "here, and was spelled with the known pieces there."
    ]


def begins(speaks: Chat) -> bool:
    """Whether the run's conversations begin with [BOS]."""
    return bool(speaks.document(PROBE[:1], ask=True).ids[0] == speaks.tokenizer.bos)


def without_beginning(tokenizer: Any) -> None:
    """Make a tokenizer leave a text unchanged: no [BOS] before it, which the run never saw."""
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    if getattr(tokenizer, "add_bos_token", None):
        tokenizer.add_bos_token = False


def read_otherwise(processor: Any, speaks: Chat, words: Language) -> list[str]:
    """Whether a conversation is split into the same tokens on both sides; the run splits the text between two images, or answers,
    separately.
    """
    ours = Chat(words.ours, speaks.tokens).document(PROBE, ask=True).ids
    messages = [{"role": turn.role, "content": turn.text} for turn in PROBE]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    image = processor.image_token_id
    theirs = processor.tokenizer(text, add_special_tokens=not text.startswith(processor.tokenizer.bos_token or " "))["input_ids"]
    there = [i for run in theirs for i in ([IMAGE_ID] * speaks.tokens if run == image else [run])]
    if ours == there:
        return []
    at = next((k for k, (a, b) in enumerate(zip(ours, there, strict=False)) if a != b), min(len(ours), len(there)))
    return [
        "Conversations are split into tokens a little otherwise here than in training, for instance at the "
        f"{at + 1}th token of a conversation: answers may differ from those of `diptych chat`."
    ]


FAMILY = Llava()
