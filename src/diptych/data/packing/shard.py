"""One shard: an Arrow IPC file, a row an item. Any Arrow reader opens it; ``Shard`` reads it at random without copying images.

Images are whole pictures whose shorter side is at most ``size``; never enlarged, never cropped, so that a caption stays true and
training may crop as it would from the original. Boxes in ``extra["boxes"]`` are in pixels of the packed image.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diptych.core.errors import DiptychError
from diptych.core.files import write_atomically
from diptych.core.sample import Captions, Sample
from diptych.data.image import decode, shrink
from diptych.data.source import BrokenItem, Problem

if TYPE_CHECKING:
    import pyarrow as pa

    from diptych.data.source import Source

VERSION = 1  # of the format; counts up when old readers would misread it
ROWS = 128  # in one record batch, which the writer holds in memory
SHARD_ITEMS = {"raw": 1024, "jpeg": 4096}  # 250 and 100 MB at 256 px; what is lost at most when a packing process is killed


@dataclass(frozen=True)
class Parameters:
    """All that decides what is in the shards of a packing."""

    address: str
    fingerprint: str  # the source's
    split: str
    items: int  # read from the source, broken ones included
    size: int
    format: str  # raw: uint8 [height, width, 3]; jpeg
    quality: int  # of JPEGs that are encoded anew
    shard_items: int
    version: int = VERSION


@dataclass
class Written:
    """What the manifest says of one shard."""

    file: str
    number: int
    items: int
    bytes: int
    blake2b: str
    problems: list[Problem] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "problems"}


def schema() -> pa.Schema:
    import pyarrow as pa

    texts = pa.list_(pa.string())
    return pa.schema(
        {
            "id": pa.string(),
            "image": pa.large_binary(),
            "height": pa.int32(),
            "width": pa.int32(),
            "source_height": pa.int32(),
            "source_width": pa.int32(),
            "captions": texts,
            "meanings": texts,
            "negatives": texts,
            "extra": pa.string(),  # JSON: labels, boxes, whatever the source knows
            "digest": pa.binary(16),  # of the source's encoded image: which part of a split it belongs to
        }
    )


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.arrow"


# Writing.


def write_shard(source: Source, number: int, parameters: Parameters, out: Path, tick: Callable[[], None]) -> Written:
    """Pack the items of one shard, atomically. ``tick`` is called before each item, and may raise to stop."""
    import pyarrow as pa

    first = number * parameters.shard_items
    indices = range(first, min(first + parameters.shard_items, parameters.items))
    problems: list[Problem] = []
    path, count = out / shard_name(number), 0

    def write(temporary: Path) -> None:
        nonlocal count
        rows: list[dict[str, Any]] = []
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema()) as writer:
            for index in indices:
                tick()
                try:
                    rows.append(row_of(source, index, parameters))
                except BrokenItem as broken:
                    problems.append(broken.problem)
                if len(rows) == ROWS or (rows and index == indices[-1]):
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema()))
                    count += len(rows)
                    rows.clear()

    write_atomically(path, write)
    return Written(path.name, number, count, path.stat().st_size, file_hash(path), problems)


def file_hash(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def row_of(source: Any, index: int, parameters: Parameters) -> dict[str, Any]:
    """One item of any source as a row. Raises ``BrokenItem``."""
    encoded: bytes | None = source.encoded(index) if hasattr(source, "encoded") else None
    sample: Sample = source.sample_of(index, encoded) if encoded is not None else source[index]
    if sample.image is None:
        raise BrokenItem(sample.id, "no image")
    if not sample.captions:
        raise BrokenItem(sample.id, "no caption")
    image = shrink(sample.image, parameters.size)
    height, width = sample.image.shape[:2]
    if hasattr(source, "digests"):
        digest = source.digests()[index]
    else:  # drawn, or of a user's own source: the pixels are all there is
        digest = hashlib.blake2b(sample.image.tobytes(), digest_size=16).digest()
    return {
        "id": sample.id,
        "image": stored(image, encoded, sample.image, parameters),
        "height": image.shape[0],
        "width": image.shape[1],
        "source_height": height,
        "source_width": width,
        "captions": [_valid(c) for c in sample.captions],
        "meanings": [_valid(m) for m in sample.meanings],
        "negatives": [_valid(n) for n in sample.negatives],
        "extra": json.dumps(_scaled(sample.extra, image.shape[1] / width, image.shape[0] / height), default=_plain),
        "digest": bytes(digest),
    }


def stored(image: np.ndarray, encoded: bytes | None, original: np.ndarray, parameters: Parameters) -> bytes:
    """The image's bytes in the shard. A JPEG that needs no change is taken as it is: encoding again would only lose."""
    if parameters.format == "raw":
        return image.tobytes()
    import simplejpeg

    if image is original and encoded is not None and _is_plain_jpeg(encoded, image):
        return encoded
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=parameters.quality, colorsubsampling="420")


def _is_plain_jpeg(data: bytes, image: np.ndarray) -> bool:
    import simplejpeg

    if data[:3] != b"\xff\xd8\xff" or b"Exif\0" in data[:65536] or len(data) > image.size:
        return False
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    return (height, width) == image.shape[:2] and colours not in ("CMYK", "YCCK")


def _valid(text: str) -> str:
    """Without half surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _scaled(extra: dict[str, Any], x: float, y: float) -> dict[str, Any]:
    if not extra.get("boxes") or (x == 1 and y == 1):
        return extra

    def scaled(box: Any) -> Any:
        if isinstance(box, dict) and "box" in box:
            return {**box, "box": scaled(box["box"])}
        if isinstance(box, (list, tuple, np.ndarray)) and len(box) == 4:
            return [float(edge) * factor for edge, factor in zip(box, (x, y, x, y), strict=True)]
        return box

    return {**extra, "boxes": [scaled(box) for box in extra["boxes"]]}


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


# Reading.


class Row(NamedTuple):
    id: str
    image: np.ndarray  # raw: uint8 [height, width, 3]; jpeg: the encoded bytes. A view into the file
    shape: tuple[int, int]
    captions: list[str]
    meanings: list[str]
    negatives: list[str]
    extra: str


class Shard:
    """Random access to one shard, mapped into memory. Raises ``DiptychError`` that names a shard which is not as the manifest says."""

    def __init__(self, path: str, written: dict[str, Any]):
        import pyarrow as pa

        self.path = path
        try:
            size = os.stat(path).st_size
            if size != written["bytes"]:
                raise DiptychError(
                    f"{path}: {'cut off' if size < written['bytes'] else 'altered'}: {size:,} of {written['bytes']:,} bytes"
                )
            self._reader = pa.ipc.open_file(pa.memory_map(path))
            self._batches: list[_Columns | None] = [None] * self._reader.num_record_batches
            self._verify_shape(written["items"])
        except FileNotFoundError:
            raise DiptychError(
                f"{path}: this shard is missing; copy it back, or pack again: only what is missing is made"
            ) from None
        except pa.ArrowInvalid as error:
            raise DiptychError(f"{path}: damaged: {error}; delete it and pack again: only what is missing is made") from error

    def _verify_shape(self, items: int) -> None:
        if self._reader.schema.names != schema().names:
            raise DiptychError(f"{self.path}: not a shard of this format: columns {', '.join(self._reader.schema.names)}")
        whole = [ROWS] * (items // ROWS) + ([items % ROWS] if items % ROWS else [])
        if len(self._batches) != len(whole):
            raise DiptychError(f"{self.path}: {len(self._batches)} record batches where {len(whole)} were expected; pack again")

    def columns(self, batch: int) -> _Columns:
        held = self._batches[batch]
        if held is None:
            import pyarrow as pa

            try:
                held = self._batches[batch] = _Columns(self._reader.get_batch(batch))
            except (pa.ArrowInvalid, OSError) as error:
                raise DiptychError(f"{self.path}: damaged: {error}; delete it and pack again") from error
        return held

    def __getitem__(self, row: int) -> Row:
        return self.columns(row // ROWS).row(row % ROWS)

    def captions(self, row: int) -> list[str]:
        return self.columns(row // ROWS).captions[row % ROWS]

    def digests(self) -> Iterator[bytes]:
        for batch in range(len(self._batches)):
            yield self.columns(batch).digests()


class _Texts:
    """A column of strings, by offsets: a tenth of the time that Arrow's scalars take."""

    def __init__(self, column: pa.Array):
        _, offsets, data = column.buffers()
        self.offsets = np.frombuffer(offsets, np.int32)[column.offset :]
        self.data = memoryview(data) if data is not None else memoryview(b"")

    def __getitem__(self, i: int) -> str:
        return str(self.data[self.offsets[i] : self.offsets[i + 1]], "utf-8")


class _Lists:
    """A column of lists of strings."""

    def __init__(self, column: pa.ListArray):
        self.offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset :]
        self.texts = _Texts(column.values) if len(column.values) else None

    def __getitem__(self, i: int) -> list[str]:
        first, last = self.offsets[i], self.offsets[i + 1]
        return [self.texts[k] for k in range(first, last)] if self.texts is not None else []


class _Columns:
    """One record batch as views into the mapped file."""

    def __init__(self, batch: pa.RecordBatch):
        self.batch = batch  # keeps the mapping alive
        self.id, self.extra = _Texts(batch.column("id")), _Texts(batch.column("extra"))
        self.captions, self.meanings, self.negatives = (_Lists(batch.column(c)) for c in ("captions", "meanings", "negatives"))
        _, offsets, data = batch.column("image").buffers()
        self.offsets, self.images = np.frombuffer(offsets, np.int64), np.frombuffer(data, np.uint8)
        self.heights, self.widths = (batch.column(c).to_numpy() for c in ("height", "width"))

    def row(self, i: int) -> Row:
        image = self.images[self.offsets[i] : self.offsets[i + 1]]
        shape = (int(self.heights[i]), int(self.widths[i]))
        return Row(self.id[i], image, shape, self.captions[i], self.meanings[i], self.negatives[i], self.extra[i])

    def digests(self) -> bytes:
        return self.batch.column("digest").buffers()[1].to_pybytes()[: 16 * self.batch.num_rows]


def sample_of(row: Row, format: str, path: str) -> Sample:
    """A row as the sample it was. Raises ``BrokenItem`` for a JPEG that was damaged after packing."""
    if format == "raw":
        if row.image.size != 3 * row.shape[0] * row.shape[1]:
            raise DiptychError(f"{path}: damaged at {row.id}; delete the shard and pack again: only what is missing is made")
        image = row.image.reshape(*row.shape, 3)
    else:
        image = _decode(row)
    text = Captions(row.captions, row.meanings)
    return Sample(row.id, json.loads(row.extra), image=image, text=text, negatives=row.negatives or None)


def _decode(row: Row) -> np.ndarray:
    import simplejpeg

    try:
        return simplejpeg.decode_jpeg(row.image, "RGB")  # what was packed is known to be upright and RGB
    except ValueError:
        return decode(row.image.tobytes(), row.id)  # blemishes that lose no pixels; for the rest, the reason
