"""Adapters: a few weights next to or inside a part, which itself does not change.

``adapters: {vision: {kind: lora, rank: 4}, text: {kind: prompt, tokens: 16}}`` in a recipe; trained by name (``train:
[adapters.text]``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diptych.core.errors import DiptychError
from diptych.core.registry import check_options, resolve
from diptych.models.adapters.base import Adapter
from diptych.models.adapters.bottleneck import Bottleneck
from diptych.models.adapters.cocoop import Cocoop
from diptych.models.adapters.llama_adapter import LlamaAdapter
from diptych.models.adapters.lora import Dora, Lora
from diptych.models.adapters.maple import Maple
from diptych.models.adapters.mmrl import Mmrl, MmrlPlus
from diptych.models.adapters.per_class import ClassPrompt
from diptych.models.adapters.prompt import Prompt
from diptych.models.adapters.qlora import Qlora
from diptych.models.adapters.soft_prompt import SoftPrompt
from diptych.models.adapters.tome import ToMe
from diptych.models.adapters.vera import Vera
from diptych.models.part import Part

if TYPE_CHECKING:
    from diptych.config.recipe import AdapterSpec
    from diptych.models.build import Build

ADAPTERS: dict[str, Any] = {
    "lora": Lora,
    "dora": Dora,
    "vera": Vera,
    "qlora": Qlora,
    "prompt": Prompt,
    "soft_prompt": SoftPrompt,
    "class_prompt": ClassPrompt,
    "cocoop": Cocoop,
    "maple": Maple,
    "mmrl": Mmrl,
    "mmrl++": MmrlPlus,
    "bottleneck": Bottleneck,
    "llama_adapter": LlamaAdapter,
    "window_lora": "diptych.models.adapters.windows:WindowLora",
    "tome": ToMe,
}
BY_PEFT = ("lora", "dora", "vera", "qlora")  # kinds that need the package

__all__ = ["ADAPTERS", "BY_PEFT", "Adapter", "build_adapter"]


def build_adapter(name: str, spec: AdapterSpec, build: Build) -> Adapter:
    """An adapter on its part, which exists already. DiptychError if the part has no place for it."""
    where = f"adapters.{name}"
    part = build.parts[spec.part or name]
    if not isinstance(part, Part):
        raise DiptychError(f"{where}: parts.{spec.part or name} ({type(part).__name__}) is not a Part, so it cannot have adapters")
    cls = resolve(spec.kind, ADAPTERS, "adapter")
    adapter: Adapter = cls(part, build, where, **check_options(cls, spec.options, where))
    return adapter
