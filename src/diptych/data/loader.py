"""From a source to batches. ``rows(step, start, stop)`` is a pure function, so a resumed run, or one spread over other ranks,
micro-batches or workers, sees what an uninterrupted one would."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from diptych.core.batch import Batch
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data import stream
from diptych.data.fields import UNPAIRED, Context, Draw, Field, build_fields
from diptych.data.order import ENDLESS, Epochs, Mixed, Neighboured, Order, mixed
from diptych.data.source import BrokenItem, Problem, Source
from diptych.data.sources.mixture import Mixture

if TYPE_CHECKING:
    import numpy as np

CACHE_BYTES = 2**30  # of decoded and resized images, kept for sources that are read repeatedly


class Loader:
    """Batches of a source, in an order fixed by (seed, step). A broken item is recorded, and the next item takes its place.

    fields: what is collated, by name; nothing else of a sample is prepared. workers: processes that ``stream`` reads with; 0: none.
    debiased: each batch is of one source of a mixture (debiased sampling, ZeroVL, Cui et al. 2022, arXiv:2112.09331), so
    that a sample's source does not tell it from its negatives; weights are then shares of the batches.
    offset: samples by which the stream is ahead of step × batch size, in a run of which the batch size was changed (``move_to``).
    unpaired: loaders by the name of a field here; they read that field alone, and their rows join every batch
    (``add_unpaired``). problems: what was wrong with items that were read, by item. waited: seconds that the consumer of
    ``stream`` spent waiting.
    neighbours: int [N, K], the nearest samples of each of the first N (``data.neighbours``). Half of a batch are then samples drawn
    of these N, and after each of them comes one of its neighbours.
    """

    def __init__(
        self,
        source: Source,
        fields: Mapping[str, Field],
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        debiased: bool = False,
        neighbours: np.ndarray | None = None,
    ):
        self.source, self.fields, self.batch_size, self.seed = source, dict(fields), batch_size, seed
        self.workers, self.waited, self.offset = workers, 0.0, 0
        self.unpaired: dict[str, Loader] = {}
        self.problems: dict[str, Problem] = {}
        self.joined: tuple[Loader, str] | None = None  # whose batches this one's rows join, and under which name
        for field in self.fields.values():
            field.note = self.note
        if len(source) == 0:
            raise DiptychError(f"{source.address}: no samples to train on")
        self.drawn_fields = any(field.drawn for field in self.fields.values())
        boxed = tuple(name for name, field in self.fields.items() if field.kind == "regions")
        if boxed and any(f.moves for f in self.fields.values()):
            raise DiptychError(
                "data.augment.also: boxes of regions follow crops and flips, but not an operation of your own that moves pixels; "
                "leave it out, or, if it leaves pixels where they are, say so by `moves = False` in its class"
            )
        for field in self.fields.values():
            field.sides = boxed
        self.items = len(source) if neighbours is None else len(neighbours)  # that are drawn
        self.debiased = debiased and isinstance(source, Mixture)
        self.order: Order = Epochs(self.items, seed)
        if isinstance(source, Mixture):
            self.order = source.order(seed, batch_size if self.debiased else 1)
        self.paired = neighbours is not None
        if neighbours is not None:
            if batch_size % 2:
                raise DiptychError(f"data.neighbours: half of a batch are neighbours, so batch_size must be even, not {batch_size}")
            if self.debiased:
                raise DiptychError("data.debiased: a batch with data.neighbours is not of one source; remove one of the two")
            self.order = Neighboured(self.order, neighbours, seed)
        self._prepare()

    def add_unpaired(self, name: str, loader: Loader) -> None:
        """Rows of another loader join every batch as the field ``name``. Its problems are listed here too, as ``NAME/ITEM``."""
        self.unpaired[name] = loader
        loader.joined = self, name
        for problem in loader.source.problems:
            loader.note(problem)

    def _prepare(self, worker: bool = False) -> None:
        """Sets up what each process must have for itself; a worker needs less."""
        self._seen: OrderedDict[int, tuple[Sample, dict[str, Any]]] = OrderedDict()
        once = worker or self.items > ENDLESS  # this process reads, or draws, each image once
        plain = once or getattr(self.source, "instant", False)
        size = sum(field.memory() for field in self.fields.values())
        self._keep = 0 if once or self.drawn_fields else CACHE_BYTES // max(size, 1024)
        self._threads = None if plain else ThreadPoolExecutor(4)

    def in_worker(self) -> None:
        """Called in a worker process, where the parent's threads do not exist and a cache would take memory in every worker."""
        self._prepare(worker=True)
        for loader in self.unpaired.values():
            loader.in_worker()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_seen", "_threads")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def note(self, problem: Problem) -> None:
        """Record what was wrong with an item."""
        self.problems[problem.item] = problem
        if self.joined is not None:
            loader, name = self.joined
            loader.note(Problem(f"{name}/{problem.item}", problem.reason))

    def start_of(self, step: int) -> int:
        """The position in the stream of the first sample of a step."""
        return step * self.batch_size + self.offset

    def move_to(self, step: int, position: int) -> None:
        """Let a step begin at this position of the stream, and the rows that join its batch too: a run that resumes with another
        batch size goes on where it was; if each batch is of one source, with the next whole batch.
        """
        if self.paired:  # a batch begins with a pair
            position += position % 2
        if self.debiased:
            position = -(-position // self.batch_size) * self.batch_size
        self.offset = position - step * self.batch_size
        for loader in self.unpaired.values():
            loader.move_to(step, position)

    def index(self, position: int) -> int:
        """The index of the sample at this position of the endless stream."""
        return self.order[position]

    def drawn(self, samples: int) -> dict[str, int]:
        """How many of the first ``samples`` samples come from each source."""
        if isinstance(self.source, Mixture) and isinstance(self.order, Mixed):
            return dict(zip(self.source.addresses, self.order.counts(samples), strict=True))
        return {self.source.address: samples}

    def _read(self, position: int) -> tuple[Sample, dict[str, Any]]:
        """The sample for this position, or the next one that can be used, and its fitted values."""
        source, n, index = self.source, self.items, self.index(position)
        for turn in range(min(n, 1000)):
            if turn:
                index = source.successor(index) if isinstance(source, Mixture) else (index + 1) % n
            seen = self._seen.get(index)  # looked up once: another thread may remove it
            if seen is not None:
                return seen
            try:
                sample = source[index]
                fitted = {
                    name: field.fit(sample, lambda: random.Random(mixed(self.seed, position, 1)))
                    for name, field in self.fields.items()
                }
            except BrokenItem as broken:
                self.note(broken.problem)
                continue
            sample = self._rest(sample)
            if self._keep:
                self._seen[index] = (sample, fitted)
                if len(self._seen) > self._keep:
                    self._seen.popitem(last=False)
            return sample, fitted
        first = next(iter(self.problems.values()))
        raise DiptychError(f"{self.source.address}: no usable sample among {min(n, 1000)}; first: {first.item}: {first.reason}")

    def _rest(self, sample: Sample) -> Sample:
        """The sample as it is kept: its texts, and the small fields among those that are read."""
        sample = sample.with_(
            **{name: None for name in sample.fields if name not in self.fields and name not in ("text", "negatives")}
        )
        for field in self.fields.values():
            sample = field.rest(sample)
        return sample

    def batch(self, step: int) -> Batch:
        """The whole batch of a step."""
        return self.rows(step, 0, self.batch_size)

    def stream(
        self, step: int, start: int = 0, stop: int | None = None, micro: int | None = None, ahead: bool = False, pin: bool = False
    ) -> Iterator[Batch]:
        """``rows(step, start, stop)`` and the same rows of every later step, without end; in pieces of ``micro`` rows if given.

        ``workers`` processes read; without workers but with ``ahead``, a thread reads one batch ahead. ``pin``: in
        page-locked memory, for a GPU. Close it (``stream.close()``) when done, so that the workers end.
        """
        stop = self.batch_size if stop is None else stop
        if self.workers:
            batches = stream.in_workers(self, step, start, stop, micro, self.workers, pin)
        else:
            wanted = stream.slices(step, start, stop, micro)
            batches = stream.in_thread(self, wanted, pin) if ahead else stream.in_process(self, wanted)
        return stream.timed(self, batches)

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Samples start..stop of the global batch of that step: a rank's share, or a micro-batch.

        Depends on (seed, offset, step, start, stop) and the source alone; pixels are uint8.
        """
        if not 0 <= start < stop <= self.batch_size:
            raise ValueError(f"rows {start} to {stop} of a batch of {self.batch_size}")
        first = self.start_of(step)
        positions = range(first + start, first + stop)
        read = map if self._threads is None else self._threads.map  # decoding releases the interpreter; drawing scenes does not
        draws = [Draw(self.seed, p, *pair) for p, pair in zip(positions, read(self._read, positions), strict=True)]
        collated = {name: field.collate(draws) for name, field in self.fields.items()}
        batch = Batch({n: c for n, c in collated.items() if c is not None}, stop - start, start, tuple(d.sample.id for d in draws))
        for name, loader in self.unpaired.items():
            batch.fields[name] = loader.rows(step, start, stop)[UNPAIRED[name]]
        return batch


def loader_for(
    source: Source,
    tokenizer: Any,
    image_size: int,
    batch_size: int,
    seed: int = 0,
    augment: Any = "none",
    fields: tuple[str, ...] = ("image", "text"),
    workers: int = 0,
    text_mask: float = 0.0,
    own: Mapping[str, Any] | None = None,
) -> Loader:
    """A loader of fields from their names; ``own``: what a recipe declares (``data.fields``)."""
    context = Context(tokenizer, image_size, augment, text_mask, source=source, own=own or {})
    return Loader(source, build_fields(fields, context), batch_size, seed, workers)
