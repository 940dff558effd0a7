"""One shard: an Arrow IPC file with one row per item and the columns of each field that the source has. Any Arrow reader opens it;
``columns.py`` gives random access without copying images.

Images are whole pictures with a shorter side of at most ``size`` pixels. They are never enlarged or cropped, so that a caption
stays true and training may crop as it would from the original. Boxes, of regions and in ``extra["boxes"]``, are in pixels of the
packed image; ``extra["width"]`` and ``extra["height"]`` are its size if they were the original's.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diptych.core.errors import DiptychError
from diptych.core.files import write_atomically
from diptych.core.sample import Sample
from diptych.data.fields import FIELDS
from diptych.data.image import shrink
from diptych.data.source import BrokenItem, Problem

if TYPE_CHECKING:
    import pyarrow as pa

    from diptych.data.source import Source

VERSION = 3  # the newest of the format; counts up when old readers would misread it. 1: image, text and negatives; 2: all fields;
# 3: regions with masks, negatives and points. What has no regions is written as version 2, which is the same for it.
ROWS = 128  # in one record batch, which the writer holds in memory
SHARD_ITEMS = {"raw": 1024, "jpeg": 4096, "webp": 4096}  # 250, 100 and 70 MB at 256 px; what is lost at most on a kill


@dataclass(frozen=True)
class Parameters:
    """All parameters that decide what is in the shards of a packing."""

    address: str
    fingerprint: str  # the source's
    split: str
    items: int  # read from the source, broken ones included
    size: int
    format: str  # raw: uint8 [height, width, 3]; jpeg; webp
    quality: int  # of pictures that are encoded anew
    shard_items: int
    rows: int = ROWS  # in one record batch
    version: int = VERSION


@dataclass
class Written:
    """What the manifest records of one shard."""

    file: str
    number: int
    items: int
    bytes: int
    blake2b: str
    fields: dict[str, int] = field(default_factory=dict)  # items that have each
    problems: list[Problem] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The fields without the problems, which have a file of their own."""
        return {k: v for k, v in asdict(self).items() if k != "problems"}


def packed_fields(source: Any) -> tuple[str, ...]:
    """Names of the built-in fields that samples of a source may have: those that it declares in ``fields``, else all. Fields of
    other kinds are not packed.
    """
    declared = tuple(getattr(source, "fields", ()) or FIELDS)
    # kinds that are named by their place are made of other fields
    return tuple(name for name, kind in FIELDS.items() if name in declared and not isinstance(kind, str) and kind.schema())


def version_of(fields: Iterable[str]) -> int:
    """The version of the format that shards with these fields are written in."""
    numbers: list[int] = [number for name in fields for number in FIELDS[name].added]
    return max([2, *numbers])


def schema(fields: Iterable[str], version: int = VERSION) -> pa.Schema:
    """Columns of a shard of a version: those of each field, and for each ``has_FIELD``, whether the sample has it."""
    import pyarrow as pa

    fields = list(fields)
    columns: dict[str, pa.DataType] = {"id": pa.string()}
    for name in fields:
        later = {column for number, added in FIELDS[name].added.items() if number > version for column in added}
        columns |= {column: kind for column, kind in FIELDS[name].schema().items() if column not in later}
    columns |= {"extra": pa.string()}  # JSON: what the source knows besides the fields
    columns |= {"digest": pa.binary(16)}  # of the source's encoded image: which part of a split it belongs to
    return pa.schema(columns | {f"has_{name}": pa.bool_() for name in fields})


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:05d}.arrow"


# Writing.


def write_shard(source: Source, number: int, parameters: Parameters, out: Path, tick: Callable[[], None]) -> Written:
    """Pack the items of one shard, atomically. ``tick`` is called before each item, and may raise to stop."""
    import pyarrow as pa

    first = number * parameters.shard_items
    indices = range(first, min(first + parameters.shard_items, parameters.items))
    problems: list[Problem] = []
    path, count = out / shard_name(number), 0
    fields = packed_fields(source)
    columns, have = schema(fields), dict.fromkeys(fields, 0)

    def write(temporary: Path) -> None:
        """Writes the shard record batch by record batch; broken items become problems."""
        nonlocal count
        rows: list[dict[str, Any]] = []
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, columns) as writer:
            for index in indices:
                tick()
                try:
                    rows.append(row_of(source, index, parameters))
                except BrokenItem as broken:
                    problems.append(broken.problem)
                if len(rows) == parameters.rows or (rows and index == indices[-1]):
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=columns))
                    count += len(rows)
                    for name in fields:
                        have[name] += sum(row[f"has_{name}"] for row in rows)
                    rows.clear()

    write_atomically(path, write)
    return Written(path.name, number, count, path.stat().st_size, file_hash(path), have, problems)


def file_hash(path: str | Path) -> str:
    """BLAKE2b of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def row_of(source: Any, index: int, parameters: Parameters) -> dict[str, Any]:
    """One item of any source as a row. Raises ``BrokenItem``."""
    encoded: bytes | None = source.encoded(index) if hasattr(source, "encoded") else None
    sample: Sample = source.sample_of(index, encoded) if encoded is not None else source[index]
    wanted = packed_fields(source)
    present = [name for name in FIELDS if name in sample.fields]
    if not present:
        raise BrokenItem(sample.id, "none of the fields that can be packed")
    if unknown := [name for name in present if name not in wanted]:
        raise DiptychError(
            f"{source.address}: {sample.id} has the field '{unknown[0]}', which the source does not declare ({', '.join(wanted)})"
        )
    held: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # with the original: Python reuses the ids of deleted arrays

    def scale(picture: np.ndarray) -> np.ndarray:
        """The picture at the packed size; a picture that several fields share is scaled once."""
        if id(picture) not in held:
            held[id(picture)] = picture, shrink(picture, parameters.size)
        return held[id(picture)][1]

    def store(picture: np.ndarray) -> bytes | None:
        """The bytes of a picture; None for the sample's own image, which is stored once."""
        return None if picture is own else stored(picture, None, picture, parameters)

    own = None if sample.image is None else scale(sample.image)
    x, y, extra = 1.0, 1.0, sample.extra
    frames = sample.fields["video"].frames if "video" in sample.fields else []
    for picture in [sample.image] if sample.image is not None else frames[:1]:
        (height, width), (new_height, new_width) = picture.shape[:2], scale(picture).shape[:2]
        x, y = new_width / width, new_height / height
        if (extra.get("width"), extra.get("height")) == (width, height):  # of the picture, and not of what it shows
            extra = {**extra, "width": new_width, "height": new_height}
    row: dict[str, Any] = {"id": sample.id, "extra": json.dumps(_scaled(extra, x, y), default=_plain)}
    row["digest"] = bytes(source.digests()[index]) if hasattr(source, "digests") else content_digest(sample)
    for name in present:
        value = FIELDS[name].scaled(sample.fields[name], x, y)
        keep = store if name != "image" else lambda picture: stored(picture, encoded, sample.fields["image"], parameters)
        row |= FIELDS[name].pack(value, scale, keep)
    return row | {f"has_{name}": name in present for name in wanted}


def content_digest(sample: Sample) -> bytes:
    """A 16-byte hash of a sample that is drawn or comes from a user's own source: of its image, or else of all its fields."""
    total = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        """Adds a value, and of a list its parts one by one."""
        if isinstance(value, (list, tuple)):
            for part in value:
                add(part)
        else:
            total.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode("utf-8", "surrogateescape"))

    add(sample.image if sample.image is not None else [sample.fields[name] for name in sorted(sample.fields)])
    return total.digest()


def stored(image: np.ndarray, encoded: bytes | None, original: np.ndarray, parameters: Parameters) -> bytes:
    """The image's bytes in the shard. A JPEG that needs no change is kept as it is: encoding it again would lose quality."""
    if parameters.format == "raw":
        return image.tobytes()
    if parameters.format == "webp":
        written = io.BytesIO()
        Image.fromarray(image).save(written, "WEBP", quality=parameters.quality)
        return written.getvalue()
    import simplejpeg

    if image is original and encoded is not None and _is_plain_jpeg(encoded, image):
        return encoded
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=parameters.quality, colorsubsampling="420")
    return data


def _is_plain_jpeg(data: bytes, image: np.ndarray) -> bool:
    import simplejpeg

    if data[:3] != b"\xff\xd8\xff" or b"Exif\0" in data[:65536] or len(data) > image.size:
        return False
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    return (height, width) == image.shape[:2] and colours not in ("CMYK", "YCCK")


def _scaled(extra: dict[str, Any], x: float, y: float) -> dict[str, Any]:
    """Extras with ``boxes`` and ``words`` scaled, whether plain or under the key ``box``, and those of ``tracks``."""
    lists = [name for name in ("boxes", "words") if extra.get(name)]
    if (x == 1 and y == 1) or not (lists or extra.get("tracks")):
        return extra

    def scaled(box: Any) -> Any:
        """A box with its edges scaled; a value that is not a box is unchanged."""
        if isinstance(box, dict) and "box" in box:
            return {**box, "box": scaled(box["box"])}
        if isinstance(box, (list, tuple, np.ndarray)) and len(box) == 4:
            return [float(edge) * factor for edge, factor in zip(box, (x, y, x, y), strict=True)]
        return box

    more: dict[str, Any] = {}
    for name in lists:
        more[name] = [scaled(box) for box in extra[name]]
    if extra.get("tracks"):
        more["tracks"] = [{**track, "boxes": [scaled(box) for box in track["boxes"]]} for track in extra["tracks"]]
    return {**extra, **more}


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
