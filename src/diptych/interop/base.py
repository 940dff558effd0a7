"""The interface of a family of other libraries' models, and the conversion between its weights and ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.core.files import read_json, write_json
from diptych.models.layers.attention import QuickGELU, Transformer
from diptych.models.text.towers import TextTransformer
from diptych.models.vision.towers import ViT

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.interop.tokenizer import Vocabulary
    from diptych.models.vlm import VLM

State = dict[str, Tensor]


@dataclass(frozen=True)
class Same:
    """Weights of ours that are weights of theirs, concatenated along the first axis if one side has one tensor for several of the
    other.

    view: the shape of theirs, if it differs; transposed: theirs is the transposed matrix.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    view: tuple[int, ...] | None = None
    transposed: bool = False


def same(ours: str | Sequence[str], theirs: str | Sequence[str], **more: Any) -> Same:
    """Weights of ours that are weights of theirs, by name."""

    def together(names: str | Sequence[str]) -> tuple[str, ...]:
        """One name or several as a tuple."""
        return (names,) if isinstance(names, str) else tuple(names)

    return Same(together(ours), together(theirs), **more)


def linear(ours: str | Sequence[str], theirs: str | Sequence[str]) -> list[Same]:
    """Weight and bias of a layer, or of layers that are one on the other side."""

    def named(names: str | Sequence[str], what: str) -> list[str]:
        """The names of one parameter in each of these modules."""
        return [f"{name}.{what}" for name in ([names] if isinstance(names, str) else names)]

    return [same(named(ours, what), named(theirs, what)) for what in ("weight", "bias")]


def to_theirs(state: Mapping[str, Tensor], entries: Iterable[Same]) -> State:
    """Our weights under their names and in their shapes."""
    result: State = {}
    for entry in entries:
        whole = torch.cat([_rows(state[name]) for name in entry.ours])
        whole = whole.T if entry.transposed else whole
        for name, part in zip(entry.theirs, whole.chunk(len(entry.theirs)), strict=True):
            shape = state[entry.ours[0]].shape if len(entry.ours) == len(entry.theirs) == 1 and not entry.transposed else part.shape
            result[name] = part.reshape(entry.view or shape).contiguous()
    return result


def to_ours(state: Mapping[str, Tensor], entries: Iterable[Same], shapes: Mapping[str, torch.Size]) -> State:
    """Their weights under our names; ``shapes``: of ours. Weights that they do not have are left out."""
    result: State = {}
    for entry in entries:
        if not all(name in state for name in entry.theirs):
            continue
        whole = torch.cat([_rows(state[name]) for name in entry.theirs])
        whole = whole.T if entry.transposed else whole
        if len(entry.ours) == 1:
            name = entry.ours[0]
            result[name] = whole.reshape(shapes[name]) if whole.numel() == shapes[name].numel() else whole
            continue
        total = sum(shapes[name][0] for name in entry.ours)
        share = [shapes[name][0] * len(whole) // total for name in entry.ours]
        result |= dict(zip(entry.ours, torch.split(whole, share), strict=True))
    return result


def _rows(x: Tensor) -> Tensor:
    return x if x.ndim else x[None]


BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention.out": "self_attn.out_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


def blocks(transformer: Transformer, ours: str, theirs: str, inside: Mapping[str, str] = BLOCK) -> list[Same]:
    """The blocks of a tower, as transformers names them in CLIP, SigLIP and BLIP: separate queries, keys and values."""
    entries: list[Same] = []
    for i in range(len(transformer.blocks)):
        here, there = f"{ours}.blocks.{i}", f"{theirs}.{i}"
        entries += linear(f"{here}.attention.q", f"{there}.self_attn.q_proj")
        entries += linear(f"{here}.attention.kv", [f"{there}.self_attn.k_proj", f"{there}.self_attn.v_proj"])
        for our_name, their_name in inside.items():
            entries += linear(f"{here}.{our_name}", f"{there}.{their_name}")
    return entries


@dataclass(frozen=True)
class Geometry:
    """The sizes of a stack of blocks, from its modules."""

    width: int
    depth: int
    heads: int
    hidden: int
    activation: str  # our name
    eps: float

    @classmethod
    def of(cls, transformer: Transformer) -> Geometry:
        """The sizes of a transformer of ours."""
        block: Any = transformer.blocks[0]
        first, active, _ = block.mlp
        return cls(
            first.in_features,
            len(transformer.blocks),
            block.attention.heads,
            first.out_features,
            activation_of(active),
            block.norm1.eps,
        )

    def config(self) -> dict[str, Any]:
        """As transformers names them."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
            "intermediate_size": self.hidden,
            "hidden_act": HIDDEN_ACT[self.activation],
            "layer_norm_eps": self.eps,
        }


HIDDEN_ACT = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "relu": "relu"}


def activation_of(module: nn.Module) -> str:
    """The name of a transformer's activation. DiptychError for one that other libraries do not have."""
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return "relu"


def options_of(config: Any) -> dict[str, Any]:
    """The options of one of our towers with the sizes of a tower of transformers."""
    acts = {theirs: ours for ours, theirs in HIDDEN_ACT.items()} | {"gelu_new": "gelu_tanh"}
    return {
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "hidden": config.intermediate_size,
        "activation": acts.get(config.hidden_act, config.hidden_act),
        "eps": config.layer_norm_eps,
    }


@dataclass(frozen=True)
class Misfit:
    """Why a model cannot be written in a format, and the ``--set`` with which a new run could be."""

    why: str
    set: str = ""


LOWER = "A text is lower-cased, its white space reduced to single spaces and its final full stop dropped by the tokenizer itself."


class Family:
    """One file of this package: the models of another library to which some of ours can be exported, and from which they can be
    loaded.

    ``entries`` pairs names of our state (the model's, and the objectives' under ``objectives.``) with theirs.
    """

    name: ClassVar[str]
    architecture: ClassVar[str]  # the class that loads what is exported
    format: ClassVar[str] = "transformers"
    weights: ClassVar[str] = "model.safetensors"  # the file of weights
    end_last: ClassVar[bool] = False  # [EOS] gets the highest id, because the class looks for the highest
    starts: ClassVar[bool] = (
        False  # whether a run can start from its weights: options, structure and shift are defined, and name is its model_type
    )
    reads: ClassVar[bool] = False  # whether an export that was trained further can be read back (``read``)
    kind: ClassVar[str] = ""  # of our parts that have its structure; "": those called as the family is
    masked: ClassVar[bool] = True  # whether texts come with an attention mask
    scores: ClassVar[tuple[str, ...]] = ()  # the scores for which this class is chosen, if a run fits several
    processor: ClassVar[str] = ""  # the class of transformers that holds tokenizer and image processor

    def structure(self, model: VLM) -> list[Misfit]:
        """What differs between the model's towers and theirs, regardless of other parts and objectives."""
        raise NotImplementedError

    def left_over(self, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Weights that only one side has, if none may be left out."""
        named = {name for entry in self.entries(model, objectives) for name in entry.ours if not name.startswith("objectives.")}
        odd = sorted(named ^ set(model.state_dict()))
        return [Misfit(f"{odd[0]} has no counterpart")] if odd else []

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what our model does."""
        raise NotImplementedError

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        """How weights of ours and theirs correspond."""
        raise NotImplementedError

    def config(self, model: VLM, vocabulary: Vocabulary) -> dict[str, Any]:
        """The content of config.json, without ``architectures``."""
        raise NotImplementedError

    def write(self, directory: Path, model: VLM, objectives: nn.ModuleDict, adapters: str = "") -> list[str]:
        """Write all files that the class loads; returns notes for the model card, one line each.

        adapters: the final place of the directory, if a run's adapters are written separately.
        """
        from safetensors.torch import save_file

        from diptych.interop.tokenizer import Vocabulary

        if adapters:
            raise DiptychError(f"{self.architecture} has no language model with adapters; export it without --adapters")
        vocabulary = Vocabulary(model.tokenizer, self.end_last)
        state = self.settled(state_of(model, objectives), objectives)
        state["parts.text.embedding.weight"] = vocabulary.rows(state["parts.text.embedding.weight"])
        weights = to_theirs(state, self.entries(model, objectives))
        weights = {name: value.detach().float().cpu().contiguous().clone() for name, value in weights.items()}
        save_file(weights, directory / self.weights, metadata={"format": "pt"})
        self.describe(directory, model, vocabulary)
        return [LOWER]

    def read(self, model: VLM, theirs: State) -> State:
        """The weights of an export under the names that they have in the exported run's model, without adapters."""
        raise NotImplementedError

    def warnings(self, model: VLM) -> list[str]:
        """Where the library's own pipelines do not do what the class does, and the remedy; one line each, without a full stop."""
        return []

    def describe(self, directory: Path, model: VLM, vocabulary: Vocabulary) -> None:
        """Write everything except the weights: configuration, tokenizer, image processor."""
        write_processor(directory, self.processor, vocabulary.of_transformers(self.masked), model.image_size)
        config = {"architectures": [self.architecture], "dtype": "float32", **self.config(model, vocabulary)}
        write_json(directory / "config.json", config)

    def options(self, config: Any) -> dict[str, Any]:
        """Overrides by dotted key that give a recipe of ours the geometry of theirs."""
        raise NotImplementedError

    def shift(self, state: State, shift: Tensor) -> State:
        """Their weights with ``shift`` [D] added to the stem's output for every patch."""
        raise NotImplementedError

    def settled(self, state: State, objectives: nn.ModuleDict) -> State:
        """Our state with the computations of every pass, such as a bound on a scale, applied once."""
        return state


def objective_of(objectives: nn.ModuleDict, *kinds: type) -> tuple[str, Any] | None:
    """The first objective of a kind, and the name of its parameters in our state; the first kind of which there is one counts."""
    found = ((f"objectives.{name}", o) for kind in kinds for name, o in objectives.items() if isinstance(o, kind))
    return next(found, None)


def state_of(model: VLM, objectives: nn.ModuleDict) -> State:
    """The weights of a model and its objectives, by name."""
    return {**model.state_dict(), **{f"objectives.{k}": v for k, v in objectives.state_dict().items()}}


def towers(model: VLM) -> list[Misfit]:
    """Reasons why a model does not consist of two plain transformer towers."""
    result = [Misfit(f"part '{name}' has no place in it") for name in model.parts if name not in ("vision", "text", "space")]
    for name, kind in (("vision", ViT), ("text", TextTransformer)):
        if name not in model.parts:
            result.append(Misfit(f"it has no part '{name}'"))
        elif not isinstance(model.parts[name], kind):
            result.append(Misfit(f"parts.{name} is not a transformer of ours"))
    return result


def lacks(module: Any, **wanted: Any) -> list[str]:
    """``name is value, not wanted`` for each attribute that is not as wanted."""
    has = {name: getattr(module, name, None) for name in wanted}
    return [f"{name} is {has[name]}, not {value}" for name, value in wanted.items() if has[name] != value]


def norms_elsewhere(text: Any) -> list[str]:
    """No norm on the embeddings, and one after the blocks."""
    last = getattr(getattr(text, "transformer", None), "norm", None)
    fits = isinstance(getattr(text, "norm", None), nn.Identity) and isinstance(last, nn.LayerNorm)
    return [] if fits else ["its norms are in other places"]


def write_processor(directory: Path, kind: str, tokenizer: Any, image_size: int) -> None:
    """Tokenizer and image processor of transformers, of pixels in [-1, 1]."""
    import transformers

    save_processor(directory, getattr(transformers, kind)(image_processor(image_size), tokenizer), kind)


def image_processor(size: int, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.5,) * 3) -> Any:
    """The central square, bicubic, as ``data.image.resize`` gives it.

    Theirs scales the whole picture and cuts the square out, ours scales the square: the same pixels if nothing is scaled, otherwise
    they differ by the position of the grid.
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=list(mean), image_std=list(std)
    )


def save_processor(directory: Path, processor: Any, kind: str) -> None:
    """Write the configuration of an image processor."""
    processor.save_pretrained(directory)
    pictures = read_json(directory / "processor_config.json")["image_processor"]
    write_json(directory / "preprocessor_config.json", {**pictures, "processor_class": kind})  # where version 4 looks for it
    rename_tokenizer(directory)


def save_tokenizer(directory: Path, tokenizer: Any) -> None:
    """Write a tokenizer for transformers."""
    tokenizer.save_pretrained(directory)
    rename_tokenizer(directory)


def rename_tokenizer(directory: Path) -> None:
    """Set the class of a saved tokenizer to the name that every version of transformers knows."""
    path = directory / "tokenizer_config.json"
    write_json(path, {**read_json(path), "tokenizer_class": "PreTrainedTokenizerFast"})
