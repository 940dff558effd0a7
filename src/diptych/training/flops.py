"""Floating-point operations of a training step, as torch counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula, sdpa_flop_count

from diptych.batch import Batch

T = TypeVar("T")


class FlopMeter:
    """Counts one step of each shape for real and remembers it: the count depends on nothing but shapes."""

    def __init__(self) -> None:
        self._known: dict[tuple, float] = {}

    def step(self, stage: str, batch: Batch, run: Callable[[], T]) -> tuple[T, float]:
        """Run forward and backward; returns its result and the operations it took."""
        shapes = (t.shape if t is not None else None for t in (batch.pixels, batch.text, batch.negatives))
        key = (stage, *shapes)
        if key in self._known:
            return run(), self._known[key]
        with FlopCounterMode(display=False) as counter:
            result = run()
        self._known[key] = float(counter.get_total_flops())
        return result, self._known[key]


def _count_attention_on_the_cpu() -> None:
    """torch's counter passes over its fused attention on the CPU. Counted as written out: the backward pass is twice the forward."""
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    if forward not in flop_registry:
        register_flop_formula(forward)(lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v))
    if backward not in flop_registry:
        register_flop_formula(backward)(lambda _, q, k, v, *__, **___: 2 * sdpa_flop_count(q, k, v))


_count_attention_on_the_cpu()
