"""Work for the benchmarks' harness to measure."""

from __future__ import annotations

from collections.abc import Callable


def allocate(before: int, during: int) -> Callable[[], int]:
    """Bytes held before the work starts and bytes that the work takes."""
    held = bytearray(b"x") * before

    def work() -> int:
        taken = bytearray(b"y") * during
        return len(held) + len(taken)

    return work


def fail() -> Callable[[], None]:
    raise ValueError("no such thing")
