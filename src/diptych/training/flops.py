"""Floating-point operations of a training step, as torch counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.utils.flop_counter import FlopCounterMode

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
