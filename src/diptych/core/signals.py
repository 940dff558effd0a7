"""Ctrl-C and SIGTERM (``timeout``, a container that stops): long work keeps what is done before it ends."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def handled(numbers: Sequence[int], handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Installs ``handler`` for the duration of the context. Does nothing outside the main thread, since only the main thread
    receives signals.
    """
    try:
        before = {n: signal.signal(n, handler) for n in numbers}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def terminated_like_interrupted() -> Any:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does: otherwise the processes that were started would not be stopped."""
    return handled([signal.SIGTERM], signal.default_int_handler)


def how_it_ended(status: int) -> str:
    """In words, how a process ended: ``killed by SIGKILL`` or ``exit status 3``. ``status``: negative for a signal's number."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-status}"
