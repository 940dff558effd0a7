"""The operator interface: a pure function from record batches to columns, with declared inputs, outputs, version, parameters.

Score first, decide later: an operator adds columns and removes no rows; ``keep`` rules decide (``curation.keep``).

Columns that every row has
    row       int64         the row's position in the pool; the value of pointers such as ``same_image_as``
    id        string        the id that users see
    hash      uint64        of the id: breaks ties, keys randomness
    text      string        the caption (the first, where an image has several)
    captions  list<string>  all captions
    image     binary        the encoded file
    pixels    PIXELS        the decoded picture; ``arrays`` gives uint8 [height, width, 3] views
    extra.X   any           further columns of the source, such as ``extra.similarity``

and the columns of earlier operators. An operator does not receive rows in which one of its inputs is missing (an unreadable image):
their outputs are null and they carry the reason.

Your own operator is a frozen dataclass; its fields are the plan's options:

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

Columns = Mapping[str, Any]  # name → pa.Array, NumPy array or list, one value for each row; None or null: no value
PIXELS = pa.struct([("height", pa.int32()), ("width", pa.int32()), ("data", pa.large_binary())])
HEAVY = ("image", "pixels")  # columns that come in batches of few rows


class RowError(Exception):
    """An operator raises it for a row that it cannot score; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Operator(ABC):
    """A function of single rows: ``compute`` receives any number of rows, and the result of each must not depend on the others.

    If it raises for a batch, it is called again row by row, and a row that still raises carries the reason.
    Increase ``version`` when the same parameters give different results: stored results of another version are not used.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    resources: ClassVar[Literal["cpu", "model"]] = "cpu"  # model: workers that load it once (under Ray: actors)

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that it reads: a class attribute, or a property that depends on parameters."""

    @property
    @abstractmethod
    def outputs(self) -> Mapping[str, pa.DataType]:
        """Names and types of the columns that it adds."""

    @abstractmethod
    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""

    def depends(self) -> str:
        """Anything else that the result depends on, such as a hash of a model's files; part of the result's address."""
        return ""


@dataclass(frozen=True, kw_only=True)
class Reduce(Operator):
    """A function of all rows: counts, clusters, duplicates. Two passes, each over whole shards.

    Receives only the rows that are still kept at its step (``of: all`` in the plan: every row); the others get nulls.
    Its inputs cannot be ``image`` or ``pixels``: an earlier operator must score those.
    """

    @abstractmethod
    def summarise(self, batch: pa.RecordBatch) -> pa.Table:
        """First pass: a summary of one shard, as small as possible."""

    @abstractmethod
    def combine(self, summaries: Iterator[pa.Table]) -> pa.Table:
        """The state for the second pass, from all shards' summaries in the order of the pool."""

    @abstractmethod
    def decide(self, batch: pa.RecordBatch, state: pa.Table) -> Columns:
        """Second pass: the outputs for the rows of one shard."""

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
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
    """A ``pixels`` column of uint8 [height, width, 3] arrays."""
    heights = pa.array([p.shape[0] for p in pictures], pa.int32())
    widths = pa.array([p.shape[1] for p in pictures], pa.int32())
    offsets = np.cumsum([0, *(p.size for p in pictures)], dtype=np.int64)
    joined = np.concatenate([np.ascontiguousarray(p).reshape(-1) for p in pictures]) if pictures else np.zeros(0, np.uint8)
    # From buffers, since pa.array never releases the memoryviews that it is given (pyarrow 26), and with them the pictures.
    data = pa.Array.from_buffers(pa.large_binary(), len(pictures), [None, pa.py_buffer(offsets), pa.py_buffer(joined)])
    return pa.StructArray.from_arrays([heights, widths, data], fields=list(PIXELS))


def sample_hash(identity: str) -> int:
    """The 64-bit hash of a row, from its id."""
    return int.from_bytes(hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def uniform(hashes: np.ndarray, salt: str) -> np.ndarray:
    """Random numbers in [0, 1), float64 like ``hashes``; each depends on its hash and ``salt`` only, not on the order of rows.

    ``hashes``: uint64 of any shape. Each salt is an independent stream. The mixer is SplitMix64's (Steele et al. 2014).
    """
    with np.errstate(over="ignore"):
        z = hashes.astype(np.uint64) ^ np.uint64(sample_hash(salt))
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)
