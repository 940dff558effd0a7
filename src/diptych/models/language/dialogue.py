"""A whole model of transformers that talks about images, as one part: LLaVA, Qwen-VL, Idefics, SmolVLM, Gemma 3, InternVL …

Everything that ``AutoModelForImageTextToText`` opens. It reads the field ``dialogue``, which its own processor makes.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.data.conversations.processed import ChatProcessor
from diptych.data.fields.dialogue import Dialogue
from diptych.models.build import Build
from diptych.models.part import Part
from diptych.models.pretrained.hub import fetch, place
from diptych.models.pretrained.processor import open_processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KIND = "diptych.models.language.dialogue:DialogueModel"
Within = Literal["language", "connector", "vision"]
CONNECTORS = {
    "multi_modal_projector", "connector", "merger", "merger_list", "deepstack_merger_list", "projector", "mm_projector", "aligner",
    "modality_projection", "qformer", "language_projection", "embed_vision", "mlp1", "perceiver_resampler",
}  # fmt: skip
TOWERS = {"vision_tower", "visual", "vision_model", "vision_encoder", "image_tower", "vision_embed_tokens", "vision"}


def within(name: str) -> Within:
    """The part of a model that a layer of this name belongs to: the connector, the vision tower, else the language model."""
    steps = set(name.split("."))
    return "connector" if steps & CONNECTORS else "vision" if steps & TOWERS else "language"


class DialogueModel(Part):
    """The model at ``from`` (``hf:NAME_OR_PATH``).

    adapt: what adapters extend, and what learns if the part itself is trained. precision: of its own weights; auto: bfloat16 where
    there is a GPU, else float32. What an adapter learns is float32.
    """

    packaged: tuple[str, ...] = ("",)  # all weights are the model's; a checkpoint holds none of them while the part is frozen
    model: PreTrainedModel

    def __init__(
        self,
        build: Build,
        *,
        from_: str,
        adapt: Sequence[Within] = ("language",),
        precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ):
        super().__init__()
        self.address, self.adapt = from_, tuple(adapt)
        self.options: dict[str, Any] = {"trust_remote_code": trust_remote_code, **({"revision": revision} if revision else {})}
        half = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        self.dtype = half if precision == "auto" else getattr(torch, precision)
        self.model = self.opened()
        if self.model.config.is_encoder_decoder:
            raise DiptychError(f"{build.where}: {from_} has an encoder of its own for the words; this part is for decoders")
        self.processor = ChatProcessor(open_processor(place(from_), **self.options), from_)
        self.checkpointing = False
        self.width = int(getattr(self.model.config.get_text_config(), "hidden_size", 0))
        self.keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters

    def opened(self) -> PreTrainedModel:
        """The model with its own weights, opened anew. DiptychError if it cannot be."""
        from transformers import AutoModelForImageTextToText

        made: PreTrainedModel = fetch(AutoModelForImageTextToText, place(self.address), dtype=self.dtype, **self.options)
        return made

    @property
    def own_tokenizer(self) -> Any:
        """The processor, which is the tokenizer of the whole model."""
        return self.processor

    @property
    def adapted_root(self) -> nn.Module:
        """The model of transformers."""
        return self.model

    def requires_grad_(self, requires_grad: bool = True) -> DialogueModel:
        """What ``adapt`` names learns, or nothing."""
        for name, p in self.named_parameters():
            p.requires_grad_(requires_grad and within(name) in self.adapt)
        return self

    def adaptable(self, targets: Sequence[str] | None) -> list[str]:
        """The linear layers within ``adapt``; targets: endings of names, of which one fits. DiptychError if there is none."""
        last = self.model.get_output_embeddings()
        names = [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear)
            and module is not last
            and within(name) in self.adapt
            and (not targets or any(name == t or name.endswith(f".{t}") for t in targets))
        ]
        if not names:
            kinds = sorted({n.rpartition(".")[2] for n, m in self.model.named_modules() if isinstance(m, nn.Linear)})
            asked = f" with the names {', '.join(targets)}" if targets else ""
            raise DiptychError(
                f"{self.address}: no linear layer{asked} in its {' and '.join(self.adapt)}; its linear layers are called "
                f"{', '.join(kinds)}"
            )
        return names

    def set_checkpointing(self, on: bool) -> None:
        """Whether layers are computed again in the backward pass."""
        if on and self.model.supports_gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        elif self.checkpointing:
            self.model.gradient_checkpointing_disable()
        self.checkpointing = on

    @provides("dialogue.logits", "dialogue")
    def logits(self, dialogue: Dialogue) -> Tensor:
        """What the model expects in place of each learned token, [n, V], row by row."""
        more = {n: v.to(self.model.dtype) if torch.is_tensor(v) and v.is_floating_point() else v for n, v in dialogue.more.items()}
        wanted = dialogue.learned[:, 1:]
        columns = wanted.any(0).nonzero()[:, 0]
        keep = {"logits_to_keep": columns} if self.keeps else {}  # the output layer is the largest: only where it counts
        out = self.model(input_ids=dialogue.ids, attention_mask=dialogue.mask.long(), **more, **keep, use_cache=False)
        logits: Tensor = out.logits if keep else out.logits[:, columns]
        return logits[wanted[:, columns]]

    def write(self, directory: Path, model: Any = None) -> None:
        """A model (its own, with its weights as they are now) and its processor, as transformers loads them."""
        (model or self.model).save_pretrained(directory)
        self.processor.processor.save_pretrained(directory)
