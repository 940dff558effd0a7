"""Batches read ahead: in the process, in a thread, or in worker processes. The order is always that of the loader."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diptych.core.errors import DiptychError
from diptych.data.source import Problem

if TYPE_CHECKING:
    from diptych.core.batch import Batch
    from diptych.data.loader import Loader

Rows = tuple[int, int, int]  # step, start, stop: what ``Loader.rows`` takes
AHEAD = 2  # batches each worker prepares beyond the one it is asked for


def slices(step: int, start: int, stop: int, micro: int | None) -> Iterator[Rows]:
    """Rows start..stop of ``step`` and of all that follow, in pieces of at most ``micro`` rows."""
    for s in itertools.count(step):
        for first in range(start, stop, micro or stop - start):
            yield s, first, min(first + (micro or stop - start), stop)


def in_process(loader: Loader, wanted: Iterator[Rows]) -> Iterator[Batch]:
    """Batches read when they are asked for."""
    return (loader.rows(*rows) for rows in wanted)


def in_thread(loader: Loader, wanted: Iterator[Rows], pin: bool) -> Iterator[Batch]:
    """One batch ahead: useful if training waits for a GPU, not if it needs the same cores."""

    def read(rows: Rows) -> Batch:
        """The batch of these rows, in pinned memory if asked for."""
        batch = loader.rows(*rows)
        return batch.pin_memory() if pin else batch

    with ThreadPoolExecutor(1, "loader") as pool:
        coming = pool.submit(read, next(wanted))
        for rows in wanted:
            batch = coming.result()
            coming = pool.submit(read, rows)
            yield batch


class _Work:
    """What torch's ``DataLoader`` asks its workers for: item k is the k-th slice wanted."""

    def __init__(self, loader: Loader, first: Rows, stop: int, micro: int | None):
        self.loader, self.first, self.stop, self.micro = loader, first, stop, micro

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, k: int) -> tuple[Batch | None, list[Problem], str]:
        step, start, _ = self.first
        size = self.micro or self.stop - start
        steps, piece = divmod(k, -(-(self.stop - start) // size))
        first = start + piece * size
        self.loader.problems.clear()
        try:
            batch = self.loader.rows(step + steps, first, min(first + size, self.stop))
        except DiptychError as error:  # raised in the main process, without the worker's traceback
            return None, [], str(error)
        return batch, list(self.loader.problems.values()), ""


def _start_worker(_number: int) -> None:
    """Ctrl-C is handled by the main process, which may save first and still needs batches until it stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from torch.utils.data import get_worker_info

    get_worker_info().dataset.loader.in_worker()  # type: ignore[union-attr]


def in_workers(loader: Loader, step: int, start: int, stop: int, micro: int | None, workers: int, pin: bool) -> Iterator[Batch]:
    """Batches from ``workers`` processes. Raises ``DiptychError`` if one of them is killed."""
    from torch.utils.data import DataLoader

    work: Any = _Work(loader, (step, start, stop), stop, micro)
    feed = DataLoader(
        work,
        batch_size=None,
        sampler=itertools.count(),
        num_workers=workers,
        prefetch_factor=AHEAD,
        pin_memory=pin,
        worker_init_fn=_start_worker,
    )
    with _own_handler(signal.SIGCHLD):
        batches = iter(feed)
    while True:
        try:
            batch, problems, error = next(batches)
        except RuntimeError as failure:
            if "DataLoader worker" not in str(failure):
                raise
            raise DiptychError(
                f"a process that reads data was killed ({str(failure).splitlines()[0].strip(' .')}); most often memory, or "
                "the space in "
                "/dev/shm, has run out. Checkpoints are untouched: continue with --resume and fewer workers than "
                f"data.workers={workers}; "
                "with data.workers=0 all is read in the process itself"
            ) from failure
        if error:
            raise DiptychError(error)
        loader.problems.update({p.item: p for p in problems})
        yield batch


@contextmanager
def _own_handler(number: signal.Signals) -> Iterator[None]:
    """Undo torch's signal handler: when a worker dies, it raises in the middle of unrelated code. Without it, a dead worker is
    noticed when the next batch does not come.
    """
    before = signal.getsignal(number)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, before if before is not None else signal.SIG_DFL)


def timed(loader: Loader, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Adds the time that the consumer waits to ``loader.waited``, in seconds."""
    while True:
        began = time.perf_counter()
        batch = next(batches)
        loader.waited += time.perf_counter() - began
        yield batch
