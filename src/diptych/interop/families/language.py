"""A run's language model in its original form: the whole vocabulary, adapters merged or separate, the original tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.core.files import read_json, write_json
from diptych.interop import chat
from diptych.interop.base import Misfit, State
from diptych.models.adapters.lora import NAME as ADAPTER_NAME
from diptych.models.adapters.lora import Injected, is_adapted, is_adapters, merged_weight
from diptych.models.language.lm import IMAGE_PROMPTS
from diptych.models.pretrained.tokenizer import LMTokenizer, TrimmedTokenizer

if TYPE_CHECKING:
    from diptych.data.conversations.template import Chat
    from diptych.models.language.lm import PretrainedLM
    from diptych.models.vlm import VLM


@dataclass
class Language:
    """Configuration, weights and tokenizer of a causal language model of transformers.

    state: under the names of its base class, such as ``layers.0.self_attn.q_proj.weight``; ``head`` [V, D] is separate, and is the
    embedding's own tensor if ``tied``. kept: the ids that the run's trimmed vocabulary had; None: all.
    """

    config: Any
    state: State
    head: Tensor
    embedding: str  # the name of the word vectors in ``state``
    tied: bool
    tokenizer: Any  # of transformers
    ours: LMTokenizer  # the same as our class, untrimmed: its pad, bos and eos are the original ids
    kept: list[int] | None

    @property
    def learned(self) -> bool:
        """Whether some of it is in full precision, as trained weights are."""
        return any(value.dtype == torch.float32 for value in self.state.values())

    def original(self, i: int) -> int:
        """The id of a piece in the whole vocabulary."""
        return i if self.kept is None else self.kept[i]

    def add_token(self, token: str) -> int:
        """Add a special token for something other than a word to the tokenizer; returns its id. Its row is the mean of the others,
        so that it is never the likeliest.
        """
        from tokenizers import AddedToken

        self.tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
        i = int(self.tokenizer.convert_tokens_to_ids(token))
        self.state[self.embedding] = with_row(self.state[self.embedding], i)
        self.head = self.state[self.embedding] if self.tied else with_row(self.head, i)
        self.config.vocab_size = len(self.head)
        return i


def with_row(rows: Tensor, i: int) -> Tensor:
    """``rows`` [V, D] with their mean as row ``i``, which may be after the last."""
    mean = rows.float().mean(0, keepdim=True).to(rows.dtype)
    rows = torch.cat([rows, mean.expand(max(0, i + 1 - len(rows)), -1)])
    rows[i] = mean[0]
    return rows


def misfits(part: Any) -> list[Misfit]:
    """Features of a language model that a class of transformers with a plain output layer does not support."""
    result = []
    model, head = part.lm.model, part.lm.model.get_output_embeddings()
    if hasattr(model.config, "vision_config"):
        result.append(Misfit("parts.lm is itself a vision-language model"))
    if getattr(head, "bias", None) is not None:
        result.append(Misfit("the language model's output layer has a bias"))
    if getattr(model.config, "final_logit_softcapping", None) is not None:
        result.append(Misfit("the language model caps its logits"))
    if getattr(model.config, "quantization_config", None):
        result.append(Misfit("the language model's weights are quantised"))
    if part.gated:
        result.append(Misfit("layers of the language model look at the image"))
    if any(is_adapters(n) for m in (head, model.get_input_embeddings()) for n, _ in m.named_parameters()):
        result.append(Misfit("there are adapters on word vectors or output layer"))
    return result


def whole(part: PretrainedLM, merged: bool = True) -> Language:
    """The language model of a run, loaded again for the words that the run left out because its corpus does not have them.

    Weights that the run has, trained or not, replace the original ones. merged: adapters are merged, in float32; otherwise they are
    left out.
    """
    original = part.open()
    model, own = original.model, part.lm.model
    head, embedding = own.get_output_embeddings(), own.get_input_embeddings()
    trimmed = part.lm.tokenizer if isinstance(part.lm.tokenizer, TrimmedTokenizer) else None
    kept = None if trimmed is None else trimmed.kept.tolist()
    state = {name: value.detach() for name, value in model.state_dict().items()}
    for name, value in plain_state(own, merged).items():
        state[name] = value if state[name].shape == value.shape else put_back(state[name], value, kept or [])
    prefix = f"{model.base_model_prefix}."
    names = {id(module): name for name, module in own.named_modules()}
    at_head = f"{names[id(head)]}.weight"
    return Language(
        copy.deepcopy(model.config),
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)},
        state[at_head],
        f"{names[id(embedding)]}.weight".removeprefix(prefix),
        head.weight is embedding.weight,
        tokenizer_of(original.tokenizer),
        original.tokenizer,
        kept,
    )


def put_back(whole: Tensor, rows: Tensor, kept: list[int]) -> Tensor:
    """``whole`` [V, …] with ``rows`` at the indices ``kept``."""
    filled = whole.to(rows.dtype, copy=True)
    filled[torch.tensor(kept)] = rows
    return filled


def read_back(part: PretrainedLM, inside: State, head: Tensor) -> State:
    """The weights of a language model under the names of our part, from those of its base class and of its output layer in an
    export: rows of words that the run does not have are left out. Names are those without adapters.
    """
    model = part.lm.model
    names = {id(module): name for name, module in model.named_modules()}
    at_head = f"{names[id(model.get_output_embeddings())]}.weight"
    kept = part.lm.tokenizer.kept.tolist() if isinstance(part.lm.tokenizer, TrimmedTokenizer) else None
    prefix = f"{model.base_model_prefix}."
    result: State = {}
    for name, own in plain_state(model, merged=False).items():
        value = head if name == at_head else inside.get(name.removeprefix(prefix))
        if value is not None:
            if value.shape != own.shape and value.shape[1:] == own.shape[1:]:
                value = value[: len(own)] if kept is None else value[torch.tensor(kept)]
            result[f"lm.model.{name}"] = value
    return result


def plain_state(model: Any, merged: bool) -> State:
    """A model's weights under the names that they have without adapters."""
    result = {n.replace(".base_layer.", "."): v.detach() for n, v in model.state_dict().items() if not is_adapters(n)}
    if merged:
        for name, module in model.named_modules():
            if is_adapted(module):
                result[f"{name}.weight"] = merged_weight(module)
    return result


def tokenizer_of(tokenizer: LMTokenizer) -> Any:
    """A fast tokenizer of transformers: the one from which ours was made, or one that begins a text with [BOS]."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if tokenizer.given is not None:
        return tokenizer.given
    pad, bos, eos = (tokenizer.token(i) for i in (tokenizer.pad, tokenizer.bos, tokenizer.eos))
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, pad_token=pad, bos_token=bos, eos_token=eos)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos)])
    return made


def lora_of(model: VLM) -> Injected | None:
    """The low-rank adapters of the language model; None if it has none."""
    return next((a for a in model.adapters.values() if isinstance(a, Injected) and a.part is model.part("lm")), None)


def write_adapters(directory: Path, model: VLM, base: str, inside: str) -> None:
    """The run's adapters as a directory of ``peft``.

    base: the place of the model that they belong to; inside: its name for the language model's base class, such as
    ``model.language_model``.
    """
    lora = lora_of(model)
    if lora is None:
        raise DiptychError("this run has no adapters on its language model (adapters.lm); export it without --adapters")
    own = model.part("lm").lm.model
    prefix = f"{own.base_model_prefix}."
    save_adapters(directory, lora, own, base, lambda name: f"{inside}.{name.removeprefix(prefix)}")


def save_adapters(directory: Path, lora: Injected, own: nn.Module, base: str, named: Callable[[str], str] = str) -> None:
    """Low-rank adapters as a directory that ``PeftModel.from_pretrained`` reads.

    own: the module that they are in; base: the place of the model that they belong to, in which a layer has the name
    ``named(its name in own)``.
    """
    from safetensors.torch import save_file

    weights, targets = {}, set()
    for name, value in own.state_dict().items():
        if is_adapters(name):
            place = named(name)
            targets.add(place.partition(f".{lora.mark}")[0])
            weights[f"base_model.model.{in_files(place)}"] = value.detach().float().cpu().contiguous().clone()
    for name, value in lora.shared().items():
        weights[f"base_model.{name}"] = value.detach().float().cpu().contiguous().clone()
    config = lora.config(sorted(targets))
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(directory))
    path = directory / "adapter_config.json"
    says = read_json(path)
    write_json(path, {**says, "target_modules": sorted(says["target_modules"])})  # a set is saved in any order
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def in_files(name: str) -> str:
    """The name in ``peft``'s files of a weight that it added: without the adapter's own name."""
    name = name.replace(f".lora_magnitude_vector.{ADAPTER_NAME}.weight", ".lora_magnitude_vector")
    return name.replace(f".{ADAPTER_NAME}.", ".").removesuffix(f".{ADAPTER_NAME}")


def template(lm: Any, speaks: Chat | None, tokenizer: Any, words: Language) -> str:
    """The chat template that an export gets."""
    if speaks is not None:
        return chat.of_conversations(speaks, set(tokenizer.special_tokens_map))
    bos, eos = (tokenizer.convert_ids_to_tokens(i) for i in (words.ours.bos, words.ours.eos))
    return chat.of_captions(bos, eos, IMAGE_PROMPTS[0] if lm.prompted else "")
