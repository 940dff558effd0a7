"""Shards in parallel: worker processes take the next shard, and end as soon as they are asked to or their parent has died."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.signals import how_it_ended
from diptych.data.packing.shard import Parameters, Written, write_shard
from diptych.data.source import Source


class Stopped(Exception):  # noqa: N818 - an outcome
    """Asked to stop in the middle of a shard."""


def write_shards(
    source: Source,
    numbers: Sequence[int],
    parameters: Parameters,
    out: Path,
    workers: int,
    finished: Callable[[Written], None],
    seen: Callable[[int], None],
) -> None:
    """Writes the shards. Calls ``finished`` with each shard when it is written, and ``seen`` now and then with the number of items
    read so far.

    Anything that ends this, Ctrl-C included, ends the workers; unfinished shards are removed, finished ones are still passed to
    ``finished``.
    """
    if workers <= 1 or len(numbers) <= 1:
        _in_process(source, numbers, parameters, out, finished, seen)
        return
    context: Any = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    shared = _Shared(context)
    running: dict[Any, Any] = {}
    try:
        for _ in range(min(workers, len(numbers))):
            receive, send = context.Pipe(duplex=False)
            work = (source, numbers, parameters, out, shared, send, os.getpid())
            running[receive] = context.Process(target=_work, args=work, daemon=True)
            running[receive].start()
            send.close()  # so that the pipe ends when the worker does
        while running:
            ready: Any
            for ready in wait(list(running), timeout=0.5):
                if not _handed_on(ready, finished):
                    _ended(running.pop(ready), parameters)
            seen(shared.seen.value)
    finally:
        shared.stop.value = 1
        for receive, process in running.items():
            process.join(timeout=30)
            process.kill()
            while receive.poll() and _handed_on(receive, finished):
                pass


def _handed_on(receive: Any, finished: Callable[[Written], None]) -> bool:
    """Whether there was a message; False at the end of the pipe. Raises what the worker raised."""
    try:
        done = receive.recv()
    except EOFError:
        return False
    if isinstance(done, BaseException):
        raise done
    finished(done)
    return True


def _in_process(
    source: Source,
    numbers: Sequence[int],
    parameters: Parameters,
    out: Path,
    finished: Callable[[Written], None],
    seen: Callable[[int], None],
) -> None:
    count = 0

    def tick() -> None:
        """Count one more item."""
        nonlocal count
        count += 1
        seen(count)

    for number in numbers:
        finished(write_shard(source, number, parameters, out, tick))


class _Shared:
    """Counters that parent and workers share."""

    def __init__(self, context: Any):
        self.taken, self.seen, self.stop = (context.Value("q", 0) for _ in range(3))

    def take(self) -> int:
        """The index of the next shard that nobody has taken; it may be past the last one."""
        with self.taken.get_lock():
            self.taken.value += 1
            return int(self.taken.value) - 1


def _work(
    source: Source, numbers: Sequence[int], parameters: Parameters, out: Path, shared: _Shared, send: Any, parent: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which asks us to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def tick() -> None:
        """Counts an item. Raises Stopped if the parent asks for it or has died."""
        if shared.stop.value or os.getppid() != parent:
            raise Stopped
        with shared.seen.get_lock():
            shared.seen.value += 1

    try:
        while (turn := shared.take()) < len(numbers):
            send.send(write_shard(source, numbers[turn], parameters, out, tick))
    except (Stopped, BrokenPipeError):
        pass
    except Exception as error:
        send.send(error if isinstance(error, DiptychError | OSError) else RuntimeError(f"{type(error).__name__}: {error}"))


def _ended(process: Any, parameters: Parameters) -> None:
    process.join()
    if process.exitcode:
        raise DiptychError(
            f"{parameters.address}: a packing process died ({how_it_ended(process.exitcode)}; most often memory has run out). "
            "Finished shards are kept: run the same command again with fewer --workers"
        )
