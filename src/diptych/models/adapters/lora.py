"""Low-rank adapters for linear layers, by ``peft``: LoRA and DoRA.

Shapes: W [out, in], A [rank, in], B [out, rank].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.models.adapters.base import Adapter

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part

MARKS = ("lora_", "vera_")  # in the names of peft's weights
NAME = "default"  # peft's, of what is injected without a name


class Injected(Adapter):
    """What ``peft`` puts around linear layers, whose own weights do not change. Subclasses give peft's configuration.

    targets: endings of the names of the layers that get one, such as ``q_proj``; None: all linear layers but those that the part
    reads the weights of. What learns is float32, for layers of any precision.
    """

    def __init__(self, part: Part, build: Build, where: str, targets: list[str] | None):
        super().__init__(part, build, where)
        if any(is_adapters(name) for name, _ in part.named_parameters()):
            raise DiptychError(f"{where}: the part has low-rank adapters already; use one with a higher rank instead of two")
        peft, root = need("peft", extra="adapt", what=where), part.adapted_root
        config = self.config(part.adaptable(targets) or targets or linear_layers(part))
        try:
            self.inject(peft, config, root)
        except (ValueError, TypeError) as error:  # names that no layer has; a layer of a kind that peft cannot adapt
            raise DiptychError(f"{where}: {error}{f' (targets: {targets})' if targets else ''}") from None
        for p in self.own():
            p.data = p.data.float()

    def config(self, targets: Any) -> Any:
        """peft's configuration, for ``target_modules`` = targets."""
        raise NotImplementedError

    def inject(self, peft: Any, config: Any, root: nn.Module) -> None:
        """Let peft replace the layers within ``root``."""
        peft.inject_adapter_in_model(config, root)

    def shared(self) -> dict[str, Tensor]:
        """Tensors that all its layers share, by the names that they have in peft's files."""
        return {}

    def layers(self) -> list[tuple[nn.Module, str, Any]]:
        """(parent, name within it, peft's layer) of every adapted layer."""
        inside = [(parent, name, m) for parent in self.part.modules() for name, m in parent.named_children()]
        return [place for place in inside if is_adapted(place[2])]

    def bare(self, name: str) -> str:
        """The name without the layer that peft wraps around each adapted one."""
        return name.replace(".base_layer.", ".")

    def merge(self) -> None:
        """Each layer gets the weight that does what layer and adapter did, in the layer's precision."""
        for parent, name, layer in self.layers():
            base, weight = plain_layer(layer), merged_weight(layer)
            base.weight.data = weight.to(base.weight.dtype)
            setattr(parent, name, base)


class Lora(Injected):
    """W x + (alpha / rank) B A x, with B from zero (Hu et al. 2022, §4.1).

    targets: as for ``Injected``. dropout: of x, before A.
    """

    mark = "lora_"
    form: ClassVar[dict[str, Any]] = {}  # further fields of peft's configuration

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
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        super().__init__(part, build, where, targets)

    def config(self, targets: Any) -> Any:
        """peft's ``LoraConfig``."""
        return need("peft", extra="adapt", what=self.where).LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets, bias="none", **self.form
        )


class Dora(Lora):
    """m · V / ‖V‖ with V = W + (alpha / rank) B A, where m [out] learns and begins as ‖W‖ (Liu et al. 2024, arXiv:2402.09353,
    eq. 5). Options as for LoRA.

    ‖·‖ is the norm of each row of W, so an output has one magnitude, as in peft and in the authors' code. The gradient passes it by
    (§4.3): ‖V‖ is computed anew each time, but counts as a constant.
    """

    form: ClassVar[dict[str, Any]] = {"use_dora": True}

    def restart(self) -> None:
        """The magnitudes are those of the weights as they are now."""
        for _, _, layer in self.layers():
            magnitude = layer.lora_magnitude_vector[NAME].weight
            with torch.no_grad():
                magnitude.copy_(row_norms(layer, merged_direction(layer)))


def is_adapters(name: str) -> bool:
    """Whether a weight of this name is one that peft added."""
    return any(mark in name for mark in MARKS)


def is_adapted(layer: Any) -> bool:
    """Whether a module is a linear layer with peft's weights around it."""
    return any(NAME in getattr(layer, name, ()) for name in ("lora_A", "vera_lambda_b"))


def plain_layer(layer: Any) -> Any:
    """The layer within an adapted one, as one that holds its weight as a parameter."""
    base = layer.get_base_layer()
    return base.unpacked() if hasattr(base, "unpacked") else base


def merged_direction(layer: Any) -> Tensor:
    """W + what the adapter adds, in float32 and in the layout of the layer's own weight; without DoRA's magnitude."""
    added: Tensor = layer.get_delta_weight(NAME).detach().float()
    own: Tensor = layer.get_base_layer().weight.detach().float()
    return own + added


def row_norms(layer: Any, weight: Tensor) -> Tensor:
    """The norm of each output's weights, [out]. Layers of GPT-2 hold theirs as [in, out]."""
    norms: Tensor = weight.norm(dim=0 if layer.fan_in_fan_out else 1)
    return norms


def merged_weight(layer: Any) -> Tensor:
    """The weight with which the layer alone computes what layer and adapter do, in float32."""
    weight = merged_direction(layer)
    if NAME not in getattr(layer, "lora_magnitude_vector", ()):
        return weight
    factor = layer.lora_magnitude_vector[NAME].weight.detach().float() / row_norms(layer, weight)
    scaled: Tensor = weight * (factor[None] if layer.fan_in_fan_out else factor[:, None])
    return scaled


def linear_layers(part: Part) -> Any:
    """The layers to adapt, as peft's ``target_modules``. DiptychError if the part has no linear layer."""
    root = part.adapted_root
    if hasattr(root, "get_output_embeddings"):
        return "all-linear"  # of a model of transformers: all but the output layer
    names = [n for n, m in root.named_modules() if isinstance(m, nn.Linear) and n not in part.read_directly]
    if not names:
        raise DiptychError(f"{type(part).__name__} has no linear layers, so it cannot have low-rank adapters")
    return names
