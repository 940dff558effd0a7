"""What an operator is: a pure function from record batches to columns, with declared inputs, outputs, version, parameters.

Score first, decide later: an operator adds columns to rows and drops none; ``keep`` rules decide (``curation.keep``).

Columns that every row has
    row       int64         the row's place in the pool; what pointers such as ``duplicate_of`` hold
    id        string        as a user would look it up
    hash      uint64        of the id: breaks ties, keys randomness
    text      string        the caption (the first, where an image has several)
    captions  list<string>  all of them
    image     binary        the encoded file
    pixels    PIXELS        the decoded picture; ``arrays`` gives uint8 [height, width, 3] views
    extra.X   any           what the source said beside image and caption, such as ``extra.similarity``

and whatever earlier operators added. A row without one of an operator's inputs (an image that cannot be read) is not shown
to the operator: its outputs are null and it carries the reason.

To write one: a frozen dataclass whose fields are the plan's options.

    @dataclass(frozen=True, kw_only=True)
    class Exclaims(Operator):
        name = "exclaims"
        inputs = ("text",)
        outputs = {"exclaims": pa.int32()}
        mark: str = "!"

        def compute(self, batch):
            return {"exclaims": [text.count(self.mark) for text in batch["text"].to_pylist()]}
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

Columns = Mapping[str, Any]  # name → pa.Array, NumPy array or list, one value a row; None or null: no value
PIXELS = pa.struct([("height", pa.int32()), ("width", pa.int32()), ("data", pa.large_binary())])
HEAVY = ("image", "pixels")  # columns that come in batches of few rows


class RowError(Exception):
    """Raised by an operator for a row that it cannot score; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Operator(ABC):
    """A function of each row alone. ``compute`` may see any number of rows at once and must not let one touch another.

    If it raises for a batch, it is asked again row by row, and a row that still raises carries the reason.
    ``version`` is raised when the same parameters give other results: stored results of the old version are not used.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    resources: ClassVar[Literal["cpu", "model"]] = "cpu"  # model: workers that load it once (under Ray: actors)

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Columns that it reads. A class attribute does, or a property that depends on parameters."""

    @property
    @abstractmethod
    def outputs(self) -> Mapping[str, pa.DataType]:
        """Columns that it adds."""

    @abstractmethod
    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""

    def depends(self) -> str:
        """What else the result depends on, such as a hash of a word list's or a model's file; part of the result's address."""
        return ""


@dataclass(frozen=True, kw_only=True)
class Reduce(Operator):
    """A function of a row and of all rows: counts, clusters, duplicates. Two passes, each over whole shards.

    Sees only the rows that are still kept when the plan comes to it (``of: all`` in the plan: every row); the others get
    nulls. Its inputs may not be ``image`` or ``pixels``: let an operator score those first.
    """

    @abstractmethod
    def summarise(self, batch: pa.RecordBatch) -> pa.Table:
        """First pass: what must be known of one shard, as small as it can be."""

    @abstractmethod
    def combine(self, summaries: Iterator[pa.Table]) -> pa.Table:
        """All shards' summaries, in the order of the pool, to the state that the second pass needs."""

    @abstractmethod
    def decide(self, batch: pa.RecordBatch, state: pa.Table) -> Columns:
        """Second pass: the outputs for the rows of one shard."""

    def compute(self, batch: pa.RecordBatch) -> Columns:
        state = self.combine(iter([self.summarise(batch)]))
        return self.decide(batch, state)


def arrays(pixels: pa.Array) -> list[np.ndarray]:
    """The pictures of a ``pixels`` column, uint8 [height, width, 3], read-only views."""
    heights, widths, data = (pixels.field(name) for name in ("height", "width", "data"))
    pictures = []
    for height, width, raw in zip(heights.to_numpy(), widths.to_numpy(), data, strict=True):
        pictures.append(np.frombuffer(raw.as_buffer(), dtype=np.uint8).reshape(height, width, 3))
    return pictures


def pixels_of(pictures: Sequence[np.ndarray]) -> pa.Array:
    """The other way: uint8 [height, width, 3] arrays to a ``pixels`` column."""
    heights = pa.array([p.shape[0] for p in pictures], pa.int32())
    widths = pa.array([p.shape[1] for p in pictures], pa.int32())
    offsets = np.cumsum([0, *(p.size for p in pictures)], dtype=np.int64)
    joined = np.concatenate([np.ascontiguousarray(p).reshape(-1) for p in pictures]) if pictures else np.zeros(0, np.uint8)
    # From buffers: pa.array keeps each memoryview that it is given for ever (pyarrow 26), and with it the picture.
    data = pa.Array.from_buffers(pa.large_binary(), len(pictures), [None, pa.py_buffer(offsets), pa.py_buffer(joined)])
    return pa.StructArray.from_arrays([heights, widths, data], fields=list(PIXELS))


def sample_hash(identity: str) -> int:
    """The 64-bit hash of a row, from its id."""
    return int.from_bytes(hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def uniform(hashes: np.ndarray, salt: str) -> np.ndarray:
    """For each row a number in [0, 1) that depends on its hash and ``salt`` alone: randomness that no order can change.

    ``hashes``: uint64 of any shape. Each salt is an independent stream. The mixer is SplitMix64's (Steele et al. 2014).
    """
    with np.errstate(over="ignore"):
        z = hashes.astype(np.uint64) ^ np.uint64(sample_hash(salt))
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)
