"""QLoRA: low-rank adapters on linear layers whose own weights are held in 4 bits, by ``bitsandbytes``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.extras import need
from diptych.models.adapters.lora import Lora

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part

BLOCK = 64  # weights that share a scale (QLoRA, §3)


class Qlora(Lora):
    """LoRA on frozen layers whose weights are in 4-bit NormalFloat (Dettmers et al. 2023, arXiv:2305.14314, §3), one float32 scale
    for each 64 weights: 4.5 bits a weight. Options as for LoRA.

    Left out of the paper's method: its second quantisation, of the scales (saves 0.4 bits a weight), since a saved run could then
    not be read back to the bit; and optimizer states in paged memory.
    """

    freezes = True

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
        need("bitsandbytes", extra="quantize", what=where)
        super().__init__(part, build, where, rank=rank, alpha=alpha, dropout=dropout, targets=targets)
        for _, _, layer in self.layers():
            layer.base_layer = NF4Linear(layer.base_layer)


class NF4Linear(nn.Module):
    """A linear layer that never changes, with its weights in NF4.

    To the state dict it is the plain layer: it gives ``weight`` in full and packs what is loaded. Packing what was unpacked gives
    the same codes and scales, so nothing is lost on the way.
    """

    packed: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dtype = layer.weight.dtype
        self.bias = layer.bias
        self.register_buffer("packed", torch.empty(0, dtype=torch.uint8), persistent=False)
        self.register_buffer("scales", torch.empty(0), persistent=False)
        self.register_buffer("code", torch.empty(0), persistent=False)
        self._pack(layer.weight.detach())

    def _pack(self, weight: Tensor) -> None:
        pack = _bitsandbytes().functional.quantize_4bit
        self.packed, state = pack(weight.contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=False)
        self.scales, self.code, self.dtype = state.absmax, state.code, weight.dtype

    @property
    def _state(self) -> Any:
        """What bitsandbytes has to know about the packed weights."""
        shape = torch.Size((self.out_features, self.in_features))
        return _bitsandbytes().functional.QuantState(
            absmax=self.scales, shape=shape, code=self.code, blocksize=BLOCK, quant_type="nf4", dtype=self.dtype
        )

    @property
    def weight(self) -> Tensor:
        """The weights with which it computes, [out, in], in the precision that they had."""
        weight: Tensor = _bitsandbytes().functional.dequantize_4bit(self.packed, self._state)
        return weight

    def unpacked(self) -> nn.Linear:
        """A plain layer of the same weights."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, dtype=self.dtype, device=self.packed.device)
        layer.weight.data, layer.bias = self.weight, self.bias
        return layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]; the weights are unpacked again in the backward pass instead of being kept."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y: Tensor = _bitsandbytes().matmul_4bit(x, self.packed.t(), self._state, bias=bias)
        return y

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NF4Linear:
        """Moved to another device, but not to another precision: the scales stay float32."""
        kept = {name: getattr(self, name) for name in ("scales", "code")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[no-untyped-call]
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(self, state: Any, prefix: str, local: Any, strict: bool, missing: Any, odd: Any, errors: Any) -> None:
        key = f"{prefix}weight"
        given = state.get(key)
        if given is None:
            missing.append(key)
        elif given.shape != (self.out_features, self.in_features):
            errors.append(f"size mismatch for {key}: {tuple(given.shape)}, not {(self.out_features, self.in_features)}")
        else:
            self._pack(given.detach().to(self.packed.device, self.dtype))
        rest = {k: v for k, v in state.items() if k != key}
        super()._load_from_state_dict(rest, prefix, local, strict, missing, odd, errors)  # type: ignore[no-untyped-call]


def _bitsandbytes() -> Any:
    return need("bitsandbytes", extra="quantize", what="an adapter of kind qlora")
