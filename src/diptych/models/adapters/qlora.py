"""QLoRA: low-rank adapters on linear layers whose own weights are held in 4 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.models.adapters.lora import Lora

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part

BLOCK = 64  # weights that share a scale (QLoRA, §3)
# NormalFloat of 4 bits: quantiles of a normal distribution in [−1, 1], with a 0 (QLoRA, appendix E)
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


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
        super().__init__(part, build, where, rank=rank, alpha=alpha, dropout=dropout, targets=targets)
        for _, _, layer in self.layers():
            layer.base_layer = NF4Linear(layer.base_layer)


def packed_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, two in a byte, uint8 [⌈n / 64⌉ · 32]; the largest absolute value of each block of 64, float32) of a tensor of n
    weights, in their order; the last block is filled up with zeros. A weight's code is that of the nearest level.
    """
    flat = weight.detach().float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    levels = torch.tensor(LEVELS, device=flat.device)
    codes = torch.bucketize(blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None], (levels[1:] + levels[:-1]) / 2)
    first, second = codes.to(torch.uint8).view(-1, 2).unbind(1)
    return first << 4 | second, scales


def unpacked_nf4(packed: Tensor, scales: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The weights that ``packed_nf4`` packed, rounded to the levels."""
    codes = torch.stack([packed >> 4, packed & 15], 1).view(-1, BLOCK)
    weights = torch.tensor(LEVELS, device=packed.device)[codes.int()] * scales[:, None]
    return weights.flatten()[: torch.Size(shape).numel()].view(shape).to(dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        """x Wᵀ; W is not kept for the backward pass."""
        ctx.layer, ctx.dtype = layer, x.dtype
        return F.linear(x, layer.weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradient of x."""
        return (grad @ ctx.layer.weight.to(grad.dtype)).to(ctx.dtype), None


_product: Callable[..., Tensor] = _Product.apply  # which torch leaves without types


class NF4Linear(nn.Module):
    """A linear layer that never changes, with its weights in NF4.

    To the state dict it is the plain layer: it gives ``weight`` in full and packs what is loaded. Packing what was unpacked gives
    the same codes and scales, so nothing is lost on the way.
    """

    packed: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.shape, self.dtype = tuple(layer.weight.shape), layer.weight.dtype  # [out, in]
        self.bias = layer.bias
        packed, scales = packed_nf4(layer.weight)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The weights with which it computes, [out, in], in the precision that they had."""
        return unpacked_nf4(self.packed, self.scales, self.shape, self.dtype)

    def unpacked(self) -> nn.Linear:
        """A plain layer of the same weights."""
        layer = nn.Linear(self.shape[1], self.shape[0], bias=False, dtype=self.dtype, device=self.packed.device)
        layer.weight.data, layer.bias = self.weight, self.bias
        return layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]; the weights are unpacked again in the backward pass instead of being kept."""
        y = _product(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NF4Linear:
        """Moved to another device, but not to another precision: the scales stay float32."""
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scales = scales.to(self.scales.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(self, state: Any, prefix: str, local: Any, strict: bool, missing: Any, odd: Any, errors: Any) -> None:
        key = f"{prefix}weight"
        given = state.get(key)
        if given is None:
            missing.append(key)
        elif tuple(given.shape) != self.shape:
            errors.append(f"size mismatch for {key}: {tuple(given.shape)}, not {self.shape}")
        else:
            self.packed, self.scales = packed_nf4(given.to(self.packed.device, self.dtype))
        rest = {k: v for k, v in state.items() if k != key}
        super()._load_from_state_dict(rest, prefix, local, strict, missing, odd, errors)
