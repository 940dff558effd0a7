"""Floating-point operations of a training step, by torch's own formulas for its operators."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_flop_count

T = TypeVar("T")


class FlopMeter:
    """Counts one run of each kind and keeps the result, since the count depends only on shapes."""

    def __init__(self, compiled: bool = False) -> None:
        self._known: dict[tuple[Any, ...], float] = {}
        self._compiled = compiled

    def count(self, key: tuple[Any, ...], run: Callable[[], T]) -> tuple[T, float]:
        """``run()`` and the operations it took; ``key`` identifies what determines them (the computation and its shapes)."""
        if key in self._known:
            return run(), self._known[key]
        # Compiled code hides its operations: the run that is counted is not compiled.
        eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()
        with eager, _Counter() as counter:  # type: ignore[no-untyped-call]
            result = run()
        self._known[key] = float(counter.total)
        return result, self._known[key]


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """torch's ``FlopCounterMode`` without its statistics by module, which cannot be used without gradients."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _count_attention_on_the_cpu() -> None:
    """torch's counter ignores its fused attention on the CPU. Count it as separate products; backward is twice forward."""
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    attention: Callable[..., int] = sdpa_flop_count  # which torch leaves without types

    if forward not in flop_registry:
        register_flop_formula(forward)(lambda q, k, v, *_, **__: attention(q, k, v))
    if backward not in flop_registry:
        register_flop_formula(backward)(lambda _, q, k, v, *__, **___: 2 * attention(q, k, v))


_count_attention_on_the_cpu()
