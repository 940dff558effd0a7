"""Attention, forward and backward, in two implementations: torch's fused kernel, and the matrix products written out. `attend` in
`models/layers/attention.py` chooses between them. Also two alternatives for the projections that were tried and are not used: one
product for q, k and v, and oneDNN's own product in fp32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import Bench, interleave
from diptych.models.layers.attention import attend, attend_plainly

SIZES = [(128, 4, 16, 32), (128, 4, 36, 32), (64, 6, 77, 64), (16, 6, 196, 64), (4, 6, 576, 64), (2, 12, 1024, 64)]


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))


def forward_backward(form: Callable[..., Tensor], qkv: Tensor, bias: Tensor | None) -> Callable[[], None]:
    def work() -> None:
        x = qkv.clone().requires_grad_()
        q, k, v = x.permute(2, 0, 3, 1, 4)
        form(q, k, v, bias).transpose(1, 2).reshape(*qkv.shape[:2], -1).sum().backward()

    return work


def run(bench: Bench) -> None:
    rows, worst = [], 0.0
    for dtype in (torch.float32, torch.bfloat16):
        for B, H, L, d in SIZES[:2] if bench.quick else SIZES:
            qkv = torch.randn(B, L, 3, H, d, dtype=dtype)
            bias = torch.zeros(B, 1, 1, L).masked_fill_(torch.arange(L) > 0.75 * L, -1e4)
            forms = {"chosen": attend, "fused": fused, "written out": attend_plainly}
            t = interleave({n: forward_backward(f, qkv, bias) for n, f in forms.items()}, "chosen", 3 if bench.quick else 9)
            size = f"{str(dtype).removeprefix('torch.')}: {B} × {H} heads × {L} tokens × {d}"
            a, b = t["fused"], t["written out"]
            rows.append([size, f"{a.median * 1e3:.1f}", f"{b.median * 1e3:.1f}", f"{b.median / a.median:.2f}"])
            worst = max(worst, a.ratio, b.ratio)  # the chosen form's seconds by the other's
            print("  ", *rows[-1], flush=True)
    bench.table(["size, a quarter masked", "fused, ms", "written out, ms", "written out / fused"], rows)
    bench.goal("the chosen form is at most 10 % slower than the other, at every size", f"{worst - 1:+.0%} at worst", worst <= 1.1)
    projections(bench)


def projections(bench: Bench) -> None:
    B, L, D = 8, 196, 384
    q, kv = torch.nn.Linear(D, D), torch.nn.Linear(D, 2 * D)
    x = torch.randn(B * L, D, requires_grad=True)

    def step(of: Callable[[], Tensor], bf16: bool) -> Callable[[], None]:
        def work() -> None:
            with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                y = of()
            y.backward(torch.ones_like(y))

        return work

    for name, bf16 in (("fp32", False), ("bf16", True)):
        two = step(lambda: torch.cat([q(x), kv(x)], 1), bf16)
        one = step(lambda: F.linear(x, torch.cat([q.weight, kv.weight]), torch.cat([q.bias, kv.bias])), bf16)
        title = f"q, k, v of {B} × {L} tokens of width {D}, forward and backward, {name}"
        bench.compare(title, {"two products": two, "one product": one}, "two products", rounds=15)
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None:
        return
    y, weight, bias = torch.randn(B * L, D), torch.randn(4 * D, D), torch.randn(4 * D)
    forms = {"torch": lambda: F.linear(y, weight, bias), "oneDNN": lambda: operator(y, weight, bias, "none", [], "")}
    bench.compare(f"fp32 product of {B} × {L} tokens, width {D} to {4 * D}, forward", forms, "torch", rounds=25)
