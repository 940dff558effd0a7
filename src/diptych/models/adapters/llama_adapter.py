"""LLaMA-Adapter: prefixes with zero-initialised attention in a language model's upper layers, and LLaMA-Adapter v2's scales.

Shapes: B batch, L queries, n prefix vectors, D width, H heads, h key heads, d their width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.models.adapters.base import Adapter
from diptych.models.adapters.lora import is_adapters
from diptych.models.fusion.gated import decoder_layers

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part

NAME = "diptych_prefix_"  # of the attention that reads prefixes, for transformers; then the name of the one within it


class LlamaAdapter(Adapter):
    """``tokens`` learned vectors [n, D] in each of the last ``layers`` layers of a language model. Its words attend to them by a
    softmax of their own: o + tanh(g) · softmax(q kᵀ/√d) v, where k and v are those of the vectors by the layer's own maps, and the
    gate g of each head begins at 0 (LLaMA-Adapter, Zhang et al. 2024, arXiv:2303.16199, §3.2). unlock: every linear layer gets a
    scale and a bias, s ⊙ (W x + b), and every norm a factor for its weight (and a shift, where it has a bias), from 1 and 0
    (LLaMA-Adapter V2, Gao et al. 2023, arXiv:2304.15010). At the start nothing is changed.

    layers: None: all but the first (31 of 32, as in V2's code; the first paper has 30). Left out of V2: its visual tokens, which
    are added to the prefixes; here images come by a connector.

    Checked with the authors' code: the vectors are not normalised and have no positions; queries have theirs. Their code for 65B
    scales the input of a linear layer, the paper its output.
    """

    def __init__(
        self,
        part: Part,
        build: Build,
        where: str,
        *,
        tokens: Annotated[int, Field(ge=1)] = 10,
        layers: Annotated[int, Field(ge=1)] | None = None,
        unlock: bool = True,
        std: Annotated[float, Field(gt=0)] = 0.02,
    ):
        super().__init__(part, build, where)
        lm: Any = getattr(part, "lm", None)
        if lm is None:
            raise DiptychError(
                f"{where}: {type(part).__name__} is no language model; for towers there is kind: prompt or bottleneck"
            )
        blocks = decoder_layers(lm)
        layers = layers or max(1, len(blocks) - 1)
        if layers > len(blocks):
            raise DiptychError(f"{where}.layers: the language model has {len(blocks)} layers only")
        attentions = [attention_of(block, where) for block in blocks[-layers:]]
        self.prefixes = nn.ModuleList(Prefix(a, tokens, part.width, std) for a in attentions)
        for prefix, attention in zip(self.prefixes, attentions, strict=True):
            attention.diptych_prefix = [prefix]  # in a list: not the language model's
        use_prefixes(lm.model)
        self.scales, self.factors = nn.ModuleList(), nn.ModuleList()
        named = [m for block in blocks for n, m in block.named_modules() if not is_adapters(n)]
        inside = [*named, *lm.model.base_model.children()]  # the last norm, too
        for module in inside if unlock else ():
            if linear := width_of(module):
                self.scales.append(Scale(linear, bias=True))
                module.register_forward_hook(Through(self.scales[-1]))
            elif "norm" in type(module).__name__.lower() and (weight := getattr(module, "weight", None)) is not None:
                self.factors.append(Scale(len(weight), bias=getattr(module, "bias", None) is not None, first=False))
                module.register_forward_hook(Through(self.factors[-1]))

    def merge(self) -> None:
        """DiptychError: the gated attention cannot be merged into the part's weights."""
        raise DiptychError(
            f"{self.where}: prefixes with gates cannot be merged into a language model; use the run itself "
            "(`diptych evaluate RUN`), or adapt by kind: lora, which can be merged"
        )


class Prefix(nn.Module):
    """The vectors of one layer, and the gates of its heads."""

    def __init__(self, attention: Any, tokens: int, width: int, std: float):
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(tokens, width) * std)
        self.gate = nn.Parameter(torch.zeros(attention.config.num_attention_heads))

    def look(self, attention: Any, query: Tensor, scaling: float | None) -> Tensor:
        """tanh(g) · attention over the vectors, [B, L, H, d], for queries [B, H, L, d] of a layer."""
        d, dtype = attention.head_dim, query.dtype
        vectors = self.vectors.to(dtype)
        k, v = (layer(vectors).view(len(vectors), -1, d) for layer in (attention.k_proj, attention.v_proj))  # [n, h, d]
        if (norm := getattr(attention, "k_norm", None)) is not None:
            k = norm(k)
        k, v = (x.transpose(0, 1).repeat_interleave(len(self.gate) // x.shape[1], 0) for x in (k, v))  # [H, n, d]
        weights = torch.softmax((query @ k.transpose(1, 2)).float() * (scaling or d**-0.5), -1).to(dtype)
        looked: Tensor = self.gate.tanh()[:, None, None].to(dtype) * (weights @ v)
        return looked.transpose(1, 2)


class Scale(nn.Module):
    """s ⊙ (x + b), or s ⊙ x + b if ``first`` is false; from s = 1 and b = 0."""

    def __init__(self, width: int, bias: bool, first: bool = True):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]"""
        scale = self.scale.to(x.dtype)
        if self.bias is None:
            return x * scale
        bias = self.bias.to(x.dtype)
        return (x + bias) * scale if self.first else x * scale + bias


class Through:
    """A hook by which what a layer gives passes a module. An object, not a closure: a copy of the model then has its own."""

    def __init__(self, own: nn.Module):
        self.own = own

    def __call__(self, _: nn.Module, args: Any, out: Tensor) -> Tensor:
        passed: Tensor = self.own(out)
        return passed


def width_of(module: Any) -> int:
    """The number of outputs of a linear layer; 0: it is none."""
    return module.out_features if isinstance(module, nn.Linear) else 0


def attention_of(block: nn.Module, where: str) -> Any:
    """A block's self-attention. DiptychError if its queries, keys and values are not by maps of their own."""
    inner = next(
        (m for m in block.children() if all(hasattr(m, n) for n in ("q_proj", "k_proj", "v_proj", "head_dim", "config"))), None
    )
    module = sys.modules[type(inner).__module__]
    if inner is None or not hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        raise DiptychError(
            f"{where}: the attention of {type(block).__name__} is not built as Llama's (q_proj, k_proj, v_proj); use kind: "
            "bottleneck or lora"
        )
    return inner


def use_prefixes(model: Any) -> None:
    """Let a model of transformers compute attention by a function that adds the prefixes of a layer, where it has them."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = model.config.get_text_config()
    plain = config._attn_implementation
    if plain.startswith(NAME):
        return
    if plain in ALL_MASK_ATTENTION_FUNCTIONS:
        ALL_MASK_ATTENTION_FUNCTIONS.register(f"{NAME}{plain}", ALL_MASK_ATTENTION_FUNCTIONS[plain])
    ALL_ATTENTION_FUNCTIONS.register(f"{NAME}{plain}", attended)
    config._attn_implementation = f"{NAME}{plain}"


def attended(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **how: Any) -> Any:
    """What the attention within gives, with what a layer's prefixes add: as transformers' attention functions."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = module.config._attn_implementation.removeprefix(NAME)
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    inner: Callable[..., Any] = eager if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    out, weights = inner(module, query, key, value, mask, **how)
    for prefix in getattr(module, "diptych_prefix", ()):
        out = out + prefix.look(module, query, how.get("scaling"))
    return out, weights
