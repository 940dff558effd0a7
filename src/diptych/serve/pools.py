"""Work that takes time, in a few threads and with a bounded line in front of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from diptych.serve.errors import ApiError, busy

Result = TypeVar("Result")


class Pool:
    """``workers`` threads; when ``waiting`` calls wait for one, the next is refused. timeout: seconds for one call, waiting
    included.

    A call that takes too long is answered, and its thread goes on to the end of its work: threads cannot be ended.
    """

    def __init__(self, name: str, workers: int, waiting: int, timeout: float):
        self.name, self.workers, self.most, self.timeout = name, workers, workers + waiting, timeout
        self.here = 0  # calls that run or wait; changed in the event loop alone
        self.typical = 0.05  # seconds of a call, smoothed
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=f"diptych-{name}")

    def enter(self) -> None:
        """Takes a place. ApiError 429 if all are taken."""
        if self.here >= self.most:
            raise busy(f"too many requests ({self.name})", self.typical * self.here / self.workers)
        self.here += 1

    def leave(self) -> None:
        """Gives the place back."""
        self.here -= 1

    def start(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        """``work`` in a thread, now or when one is free. ApiError 429 if too many wait."""
        self.enter()
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        future.add_done_callback(lambda done: self.leave())
        future.add_done_callback(_dropped)
        return future

    async def run(self, work: Callable[[], Result]) -> Result:
        """The result of ``work`` in a thread. ApiError 429 if too many wait, 504 if it takes too long."""
        begun, future = time.monotonic(), self.start(work)
        try:
            result = await asyncio.wait_for(asyncio.shield(future), self.timeout)
        except TimeoutError:
            if future.done():  # its own
                raise
            raise ApiError(504, f"no answer within {self.timeout:g} s", code="timeout") from None
        self.typical += 0.1 * (time.monotonic() - begun - self.typical)
        return result

    def close(self) -> None:
        """Ends the threads; calls that wait are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _dropped(future: asyncio.Future[Any]) -> None:
    """Reads an outcome that nobody waits for, so that it is not reported as forgotten."""
    if not future.cancelled():
        future.exception()
