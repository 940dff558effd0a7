"""Shards side by side: processes that take the next one to do, and end as soon as they are asked to or their parent is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from diptych.data.packing.shard import Parameters, Written, write_shard
from diptych.data.source import Source
from diptych.errors import DiptychError


class Stopped(Exception):  # noqa: N818 - an outcome
    """Asked to stop in the middle of a shard."""


def write_shards(
    source: Source, numbers: Sequence[int], parameters: Parameters, out: Path, workers: int, seen: Callable[[int], None]
) -> Generator[Written, None, None]:
    """Each shard as it is finished. ``seen`` is told now and then how many items were looked at in all.

    Closing the iterator, Ctrl-C included, ends the workers and removes what they had not finished.
    """
    if workers <= 1 or len(numbers) <= 1:
        yield from _in_process(source, numbers, parameters, out, seen)
        return
    context: Any = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    shared = _Shared(context)
    running: dict[Any, Any] = {}
    for _ in range(min(workers, len(numbers))):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(source, numbers, parameters, out, shared, send, os.getpid()), daemon=True)
        process.start()
        send.close()  # so that the pipe ends when the worker does
        running[receive] = process
    try:
        while running:
            ready: Any
            for ready in wait(list(running), timeout=0.5):
                try:
                    done = ready.recv()
                except EOFError:
                    _ended(running.pop(ready), parameters)
                    continue
                if isinstance(done, BaseException):
                    raise done
                yield done
            seen(shared.seen.value)
    finally:
        shared.stop.value = 1
        for process in running.values():
            process.join(timeout=30)
            process.kill()


def _in_process(
    source: Source, numbers: Sequence[int], parameters: Parameters, out: Path, seen: Callable[[int], None]
) -> Generator[Written, None, None]:
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        seen(count)

    for number in numbers:
        yield write_shard(source, number, parameters, out, tick)


class _Shared:
    """What parent and workers see of each other."""

    def __init__(self, context: Any):
        self.taken, self.seen, self.stop = (context.Value("q", 0) for _ in range(3))

    def take(self) -> int:
        with self.taken.get_lock():
            self.taken.value += 1
            return self.taken.value - 1


def _work(
    source: Source, numbers: Sequence[int], parameters: Parameters, out: Path, shared: _Shared, send: Any, parent: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which asks us to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def tick() -> None:
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
        how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"status {process.exitcode}"
        raise DiptychError(
            f"{parameters.address}: a packing process was killed ({how}; most often memory has run out). Finished shards are kept: "
            "run the same command again with fewer --workers"
        )
