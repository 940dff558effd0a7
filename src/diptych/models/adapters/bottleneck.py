"""Bottleneck adapters behind attention and MLP of every block.

Shapes: D width, r the bottleneck.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.models.adapters.base import Adapter
from diptych.models.fusion.gated import decoder_layers
from diptych.models.layers.attention import ACTIVATIONS, Activation, Block
from diptych.models.layers.rotary import RotaryBlock

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part

LAST = ("o_proj", "out_proj", "c_proj", "dense", "wo")  # the last layer of an attention of transformers
MLPS = ("mlp", "feed_forward", "ffn", "fc2")
At = Literal["both", "attention", "mlp"]


class Bottleneck(Adapter):
    """h + W_up f(W_down h) on what attention and MLP of every block give, before it is added to the residual stream; W_down: D →
    r, W_up: r → D, which begins at 0, so that nothing is changed (Houlsby et al. 2019, arXiv:1902.00751, §2.1; VL-Adapter, Sung et
    al. 2022, arXiv:2112.06825). On towers, decoders of ours and language models.

    reduction: r = D / reduction (VL-Adapter: 8); rank: r itself. at: behind which of a block's two layers (``mlp`` alone: MAGMA,
    Eichenberg et al. 2022, arXiv:2112.05253, §3.2). std: of the random initial weights and biases of both layers, drawn again where
    they are beyond two of it (MAGMA: 1e-3); 0: W_up begins at 0. In a language model the weights are float32 beside layers of any
    precision. Checked with VL-Adapter's code, whose adapters have a layer norm behind W_up as well, with a random W_up; it is left
    out here, since the tower would then not begin as it was.
    """

    def __init__(
        self,
        part: Part,
        build: Build,
        where: str,
        *,
        reduction: Annotated[int, Field(ge=1)] = 8,
        rank: Annotated[int, Field(ge=1)] | None = None,
        activation: Activation = "gelu",
        at: At = "both",
        std: Annotated[float, Field(ge=0)] = 0.0,
    ):
        super().__init__(part, build, where)
        places = list(dict.fromkeys(sublayers(part, at)))  # blocks may share an MLP
        if not places:
            raise DiptychError(f"{where}: {type(part).__name__} has no blocks with attention and MLP; transformers have")
        width = part.width
        self.layers = nn.ModuleList(Small(width, rank or max(1, width // reduction), activation, std) for _ in places)
        for layer, module in zip(self.layers, places, strict=True):
            assert isinstance(layer, Small)
            module.register_forward_hook(Behind(layer))

    def merge(self) -> None:
        """DiptychError: they are not linear, so they cannot be merged into the part's weights."""
        raise DiptychError(
            f"{self.where}: bottleneck adapters are not linear, so they cannot be merged into a part; use the run itself "
            "(`diptych evaluate RUN`), or adapt by kind: lora, which can be merged"
        )


class Small(nn.Module):
    """x + W_up f(W_down x). std: as of ``Bottleneck``."""

    def __init__(self, width: int, rank: int, activation: str, std: float = 0.0):
        super().__init__()
        self.down, self.act, self.up = nn.Linear(width, rank), ACTIVATIONS[activation](), nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        if std:
            for p in self.parameters():
                nn.init.trunc_normal_(p, std=std, a=-2 * std, b=2 * std)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]"""
        weight = self.down.weight
        own = x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)
        added: Tensor = self.up(self.act(self.down(own)))
        return x + added.to(x.dtype)


class Behind:
    """A hook on what a layer gives. An object, not a closure: a copy of the model then has its own."""

    def __init__(self, own: Small):
        self.own = own

    def __call__(self, _: nn.Module, args: Any, out: Any) -> Any:
        return (self.own(out[0]), *out[1:]) if isinstance(out, tuple) else self.own(out)


def sublayers(part: Any, at: At = "both") -> Iterator[nn.Module]:
    """The last layer of each block's attention, and its MLP, in order; or those of one kind (``at``). DiptychError for a language
    model of another form.
    """
    for attention, mlp in _pairs(part):
        if at != "mlp":
            yield attention
        if at != "attention":
            yield mlp


def _pairs(part: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Both layers of each block."""
    if hasattr(part, "lm"):
        yield from map(_of_transformers, decoder_layers(part.lm))
        return
    for block in part.modules():
        if isinstance(block, Block | RotaryBlock):
            yield block.attention.out, block.mlp


def _of_transformers(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Those of a block of transformers."""
    attentions = [m for n, m in layer.named_children() if "att" in n]
    last = next((m for a in attentions for n in LAST if (m := getattr(a, n, None)) is not None), None)
    mlp = next((m for n in MLPS if (m := getattr(layer, n, None)) is not None), None)
    if last is None or mlp is None:
        names = ", ".join(n for n, _ in layer.named_children())
        raise DiptychError(
            f"bottleneck adapters: {type(layer).__name__} has no attention and MLP under names that are known ({names})"
        )
    return last, mlp
