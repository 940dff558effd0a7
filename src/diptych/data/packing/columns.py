"""Random access to a shard: views into the mapped file instead of Arrow scalars, which take ten times as long."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.fields import FIELDS
from diptych.data.image import decode
from diptych.data.packing.shard import ROWS

if TYPE_CHECKING:
    import pyarrow as pa

FIRST = (
    "image",
    "text",
    "negatives",
)  # the fields of version 1, which had no columns has_FIELD: a row has negatives if the list is not empty
FIRST_COLUMNS = (
    *("id", "image", "height", "width", "source_height", "source_width", "captions", "meanings", "negatives", "extra", "digest"),
)


class Shard:
    """Random access to one shard, mapped into memory. Raises ``DiptychError``, naming the shard, if it is not as the manifest says.

    written: what the manifest says of it. rows: in one record batch. fields: that may be in it; None: the shard is of version 1.
    """

    def __init__(self, path: str, written: dict[str, Any], rows: int = ROWS, fields: tuple[str, ...] | None = None):
        import pyarrow as pa

        self.path, self.rows, self.fields = path, rows, fields
        try:
            size = os.stat(path).st_size
            if size != written["bytes"]:
                raise DiptychError(
                    f"{path}: {'cut off' if size < written['bytes'] else 'altered'}: {size:,} of {written['bytes']:,} bytes"
                )
            self._reader = pa.ipc.open_file(pa.memory_map(path))
            self._batches: list[Columns | None] = [None] * self._reader.num_record_batches
            self._verify_shape(written["items"])
        except FileNotFoundError:
            raise DiptychError(
                f"{path}: this shard is missing; copy it back, or pack again: only missing shards are written"
            ) from None
        except pa.ArrowInvalid as error:
            raise DiptychError(f"{path}: damaged: {error}; delete it and pack again: only missing shards are written") from error

    def _verify_shape(self, items: int) -> None:
        from diptych.data.packing.shard import VERSION, schema

        names = self._reader.schema.names
        versions = range(2, VERSION + 1)
        known = [FIRST_COLUMNS] if self.fields is None else [schema(self.fields, version).names for version in versions]
        if set(names) not in map(set, known):
            raise DiptychError(f"{self.path}: not a shard of this format: columns {', '.join(names)}")
        batches = -(-items // self.rows)
        if len(self._batches) != batches:
            raise DiptychError(f"{self.path}: {len(self._batches)} record batches where {batches} were expected; pack again")

    def columns(self, batch: int) -> Columns:
        """One record batch."""
        held = self._batches[batch]
        if held is None:
            import pyarrow as pa

            try:
                held = self._batches[batch] = Columns(self._reader.get_batch(batch), self.fields)
            except (pa.ArrowInvalid, OSError) as error:
                raise DiptychError(f"{self.path}: damaged: {error}; delete it and pack again") from error
        return held

    def __getitem__(self, row: int) -> Row:
        return Row(self.columns(row // self.rows), row % self.rows)

    def captions(self, row: int) -> list[str]:
        """Captions and turns of one item; nothing else of it is read."""
        columns, i = self.columns(row // self.rows), row % self.rows
        captions = columns["captions"][i] or [] if "captions" in columns.names else []
        turns = columns["turns"][i] if "turns" in columns.has else None
        return captions if turns is None else captions + [text for _, text in json.loads(turns)]

    def digests(self) -> Iterator[bytes]:
        """16 bytes per item, one record batch at a time."""
        for batch in range(len(self._batches)):
            yield self.columns(batch).digests()


# --- columns: [i] gives a value as Field.unpack takes it ---


class _Texts:
    """Strings, by offsets."""

    def __init__(self, column: pa.Array):
        _, offsets, data = column.buffers()
        self.offsets = memoryview(offsets).cast("i")[column.offset :]  # three times as fast as NumPy's numbers
        self.data = memoryview(data) if data is not None else memoryview(b"")

    def __getitem__(self, i: int) -> str:
        return str(self.data[self.offsets[i] : self.offsets[i + 1]], "utf-8")


class _Bytes:
    """Binary values, as views."""

    def __init__(self, column: pa.Array):
        _, offsets, data = column.buffers()
        self.offsets = np.frombuffer(offsets, np.int64)[column.offset :]
        self.data = np.frombuffer(data if data is not None else b"", np.uint8)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.data[self.offsets[i] : self.offsets[i + 1]]


class _Numbers:
    """Numbers, or lists of a fixed number of them."""

    def __init__(self, column: pa.Array):
        import pyarrow.types as kinds

        fixed = kinds.is_fixed_size_list(column.type)
        numbers = column.flatten() if fixed else column
        self.values = np.asarray(numbers.fill_null(0) if numbers.null_count else numbers)
        if fixed:
            self.values = self.values.reshape(-1, column.type.list_size)
        self.single = None if fixed else self.values.data

    def __getitem__(self, i: int) -> Any:
        return self.values[i].tolist() if self.single is None else self.single[i]


class _Lists:
    """Lists of values."""

    def __init__(self, column: pa.ListArray):
        self.offsets = memoryview(column.buffers()[1]).cast("i")[column.offset :]
        self.values = reader(column.values) if len(column.values) else None

    def __getitem__(self, i: int) -> list[Any]:
        first, last, values = self.offsets[i], self.offsets[i + 1], self.values
        if first == last:
            return []
        if isinstance(values, _Texts):
            data, ends = values.data, values.offsets[first : last + 1].tolist()
            return [str(data[a:b], "utf-8") for a, b in itertools.pairwise(ends)]
        if isinstance(values, _Numbers):
            numbers: list[Any] = values.values[first:last].tolist()
            return numbers
        return [values[k] for k in range(first, last)]  # type: ignore[index]


class _Structs:
    """Named values."""

    def __init__(self, column: pa.StructArray):
        self.values = {f.name: reader(column.field(k)) for k, f in enumerate(column.type)}

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: values[i] for name, values in self.values.items()}


class _Nullable:
    """Values of which some are missing."""

    def __init__(self, column: pa.Array, values: Any):
        self.valid, self.values = np.asarray(column.is_valid()), values

    def __getitem__(self, i: int) -> Any:
        return self.values[i] if self.valid[i] else None


def reader(column: pa.Array) -> Any:
    """Random access to a column, by its type."""
    import pyarrow.types as kinds

    kind = column.type
    if kinds.is_string(kind):
        values: Any = _Texts(column)
    elif kinds.is_large_binary(kind):
        values = _Bytes(column)
    elif kinds.is_list(kind):
        values = _Lists(column)
    elif kinds.is_struct(kind):
        values = _Structs(column)
    else:
        values = _Numbers(column)
    return _Nullable(column, values) if column.null_count else values


class _Readers(dict[str, Any]):
    """Readers of a record batch's columns, made when they are first asked for."""

    def __init__(self, batch: pa.RecordBatch):
        self.batch = batch  # keeps the mapping alive

    def __missing__(self, name: str) -> Any:
        made = self[name] = reader(self.batch.column(name))
        return made


class Columns:
    """One record batch as views into the mapped file. ``columns[name]``: random access to one."""

    def __init__(self, batch: pa.RecordBatch, fields: tuple[str, ...] | None):
        self.batch = batch
        self.names = frozenset(batch.schema.names)
        self.readers = _Readers(batch)
        self.has: dict[str, Any] = {}  # field that some row has → whether each has it; None: all have
        for name in FIRST if fields is None else fields:
            if fields is None:
                self.has[name] = None if name != "negatives" else np.diff(np.asarray(self["negatives"].offsets)) > 0
            else:
                present = batch.column(f"has_{name}").to_numpy(zero_copy_only=False)
                if present.any():
                    self.has[name] = None if present.all() else present
        self.unpack = [(name, FIELDS[name].unpack, has) for name, has in self.has.items()]

    def __getitem__(self, name: str) -> Any:
        return self.readers[name]

    def digests(self) -> bytes:
        """16 bytes per row."""
        digests: bytes = self.batch.column("digest").buffers()[1].to_pybytes()[: 16 * self.batch.num_rows]
        return digests


class Row(dict[str, Any]):
    """One item; columns are read when they are asked for. ``row["image"]``: the image's bytes as a view into the file."""

    __slots__ = ("columns", "i", "own", "raw", "readers")

    def __init__(self, columns: Columns, i: int):
        self.columns, self.readers, self.i = columns, columns.readers, i
        self.own: np.ndarray | None = None  # the sample's image, once it was asked for
        self.raw = False

    def __missing__(self, name: str) -> Any:
        value = self[name] = self.readers[name][self.i]
        return value

    def load(self, data: Any, height: int, width: int) -> np.ndarray:
        """A picture from its bytes; None means the sample's image. Raises ``BrokenItem``, or ``ValueError`` if there are too few
        bytes.
        """
        if data is not None and data is not self.get("image"):
            return self._picture(data, height, width)
        if self.own is None:
            self.own = self._picture(self["image"], self["height"], self["width"])
        return self.own

    def _picture(self, data: np.ndarray, height: int, width: int) -> np.ndarray:
        return data.reshape(height, width, 3) if self.raw else _decode(data, self["id"])


def sample_of(row: Row, format: str, path: str) -> Sample:
    """The sample that was packed into a row. Raises ``BrokenItem`` for a picture that was damaged after packing, ``DiptychError``
    for a damaged shard.
    """
    row.raw, i = format == "raw", row.i
    try:
        fields = {name: unpack(row, row.load) for name, unpack, has in row.columns.unpack if has is None or has[i]}
        return Sample(row["id"], json.loads(row["extra"]), **fields)
    except ValueError as error:
        raise DiptychError(
            f"{path}: damaged at {row['id']}; delete the shard and pack again: only missing shards are written"
        ) from error


def _decode(data: np.ndarray, item: str) -> np.ndarray:
    if data[:4].tobytes() == b"RIFF":  # WebP
        return decode(data.tobytes(), item)
    import simplejpeg

    try:
        image: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")  # what was packed is known to be upright and RGB
        return image
    except ValueError:
        return decode(data.tobytes(), item)  # accepts minor damage that loses no pixels; else raises the reason
