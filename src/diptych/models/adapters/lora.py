"""Low-rank adapters for linear layers, by ``peft``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from torch import nn

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.models.adapters.base import Adapter

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part

MARK = "lora_"  # in the names of peft's weights
NAME = "default"  # peft's, of what is injected without a name


class Lora(Adapter):
    """W x + (alpha / rank) B A x, with B from zero (Hu et al. 2022, §4.1). The layers' own weights do not change.

    targets: endings of the names of the layers that get one, such as ``q_proj``; None: all linear layers but those that the part
    reads the weights of.
    dropout: of x, before A. The adapters are float32, for layers of any precision.
    """

    mark = MARK

    def __init__(
        self,
        part: Part,
        build: Build,
        where: str,
        *,
        rank: Annotated[int, Field(ge=1)] = 8,
        alpha: Annotated[int, Field(ge=1)] = 16,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        targets: list[str] | None = None,
    ):
        super().__init__(part, build, where)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        if super().own():
            raise DiptychError(f"{where}: the part has low-rank adapters already; use one with a higher rank instead of two")
        root = part.adapted_root
        peft = need("peft", extra="adapt", what=where)
        config = peft.LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets or linear_layers(part), bias="none"
        )
        try:
            peft.inject_adapter_in_model(config, root)
        except ValueError as error:  # names that no layer has
            raise DiptychError(f"{where}: {error}") from None
        for p in self.own():
            p.data = p.data.float()

    def bare(self, name: str) -> str:
        """The name without the layer that peft wraps around each adapted one."""
        return name.replace(".base_layer.", ".")  # peft wraps the layer

    def merge(self) -> None:
        """Each layer becomes W + (alpha / rank) B A."""
        for parent in list(self.part.modules()):
            for name, layer in list(parent.named_children()):
                if NAME in getattr(layer, "lora_A", ()):
                    base: Any = layer.get_base_layer()  # type: ignore[operator]
                    base.weight.data = (base.weight.float() + layer.get_delta_weight(NAME).float()).to(base.weight.dtype)  # type: ignore[operator]
                    setattr(parent, name, base)


def linear_layers(part: Part) -> Any:
    """The layers to adapt, as peft's ``target_modules``. DiptychError if the part has no linear layer."""
    root = part.adapted_root
    if hasattr(root, "get_output_embeddings"):
        return "all-linear"  # of a model of transformers: all but the output layer
    names = [n for n, m in root.named_modules() if isinstance(m, nn.Linear) and n not in part.read_directly]
    if not names:
        raise DiptychError(f"{type(part).__name__} has no linear layers, so it cannot have low-rank adapters")
    return names
