"""Tanh-gated cross-attention between the layers of a frozen language model (Flamingo, Alayrac et al. 2022, §2.2), as in Idefics.

The image is not read as tokens among words: words attend to it; if there are several, to the last one before them. At the start the
gates are closed, and the language model is unchanged.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.models.build import Build
from diptych.models.layers.attention import Attention, SquaredReLU
from diptych.models.layers.masks import bias_of
from diptych.models.layers.rotary import GatedMLP
from diptych.models.part import Part

if TYPE_CHECKING:
    from diptych.models.pretrained import CausalLM


class GatedLayer(nn.Module):
    """x + tanh(α) · attention(x to the image), then + tanh(β) · MLP; α and β start at 0.

    mlp: ``squared_relu``: two linear layers without bias around a squared ReLU (Alayrac et al. 2022, table 5); ``gated``: SwiGLU,
    as in Idefics.
    """

    def __init__(self, width: int, heads: int, hidden: int, eps: float = 1e-6, mlp: str = "squared_relu"):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)
        self.attention = Attention(width, heads)
        plain = (nn.Linear(width, hidden, bias=False), SquaredReLU(), nn.Linear(hidden, width, bias=False))
        self.mlp: nn.Module = GatedMLP(width, hidden) if mlp == "gated" else nn.Sequential(*plain)
        self.alpha, self.beta = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, image: Tensor, looks: Tensor | None = None) -> Tensor:
        """x [B, L, D], image [B, S, D] → [B, L, D].

        looks [B, L or 1, S] bool: which image tokens each position sees; for one that sees none the attention adds nothing
        (Idefics).
        """
        if looks is None:
            result = self.attention(self.norm1(x), image)
        else:
            bias = bias_of(looks, x.dtype)[:, None]
            result = self.attention(self.norm1(x), image, bias) * looks.any(-1, keepdim=True)
        x = x + self.alpha.tanh() * result
        x = x + self.beta.tanh() * self.mlp(self.norm2(x))
        return x


class GatedCrossAttention(Part):
    """A ``fusion`` part that puts a gated layer before every ``every``-th layer of the ``lm`` part, which is not changed.

    hidden: width of the layers' MLPs; None: four times the language model's. mlp: as of ``GatedLayer``.
    """

    works_in = "lm"

    def __init__(
        self,
        build: Build,
        *,
        every: Annotated[int, Field(ge=1)] = 2,
        heads: int | None = None,
        hidden: int | None = None,
        mlp: Literal["squared_relu", "gated"] = "squared_relu",
    ):
        super().__init__()
        self.width = build.width_of("lm")
        part: Any = build.parts["lm"]
        heads = heads or build.size.heads
        build.require(self.width % heads == 0, f"heads: {heads} does not divide the language model's width {self.width}")
        theirs = decoder_layers(part.lm)
        build.require(every <= len(theirs), f"every: the language model has {len(theirs)} layers only")
        self.every = every
        self.layers = nn.ModuleList(GatedLayer(self.width, heads, hidden or 4 * self.width, mlp=mlp) for _ in theirs[::every])

    def attach(self, build: Build) -> None:
        """Registers the layers' hooks in the language model, which then gives images to them."""
        part: Any = build.parts["lm"]
        part.gated = True
        for own, layer in zip(self.layers, decoder_layers(part.lm)[:: self.every], strict=True):
            assert isinstance(own, GatedLayer)
            layer.register_forward_pre_hook(_Look(own, part.lm), with_kwargs=True)


class OpenedCrossAttention(GatedCrossAttention):
    """``GatedCrossAttention`` with gates that are partly open before training. start: tanh(α) and tanh(β) at the start.

    From closed gates nothing but the gates learns in the first step, and a step of Adam moves α by at most about the learning rate:
    a training of 150 steps at 1e-3 leaves tanh(α) below 0.15, whatever the data. Open gates change the language model's texts at
    the start, which a long training from closed ones avoids.
    """

    def __init__(
        self,
        build: Build,
        *,
        every: Annotated[int, Field(ge=1)] = 2,
        heads: int | None = None,
        hidden: int | None = None,
        mlp: Literal["squared_relu", "gated"] = "squared_relu",
        start: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    ):
        super().__init__(build, every=every, heads=heads, hidden=hidden, mlp=mlp)
        for layer in self.layers:
            assert isinstance(layer, GatedLayer)
            nn.init.constant_(layer.alpha, math.atanh(start))
            nn.init.constant_(layer.beta, math.atanh(start))


def decoder_layers(lm: CausalLM) -> list[nn.Module]:
    """The blocks of a model of transformers, under any name."""
    base = lm.model.base_model
    result = next((getattr(base, name) for name in ("layers", "h", "blocks") if hasattr(base, name)), None)
    if result is None:  # the longest list of modules
        result = max((m for m in base.modules() if isinstance(m, nn.ModuleList)), key=len)
    return list(result)


class _Look:
    """A hook before a layer of the language model. An object, not a closure: a copy of the model then has its own hooks."""

    def __init__(self, own: GatedLayer, lm: CausalLM):
        self.own, self.lm = own, lm

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        own, seen = self.own, self.lm.seen
        if seen is None:  # a text without an image
            return None
        x = args[0] if args else kwargs["hidden_states"]
        looked = own(x.to(own.alpha.dtype), seen.tokens.to(own.alpha.dtype), seen.looks).to(x.dtype)
        return ((looked, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": looked})
