"""Reads a source into shards of rows, with images by reference: a row names the file and the position of its image.

A source is read unit by unit: a tar or Parquet file is a unit, any other source is one unit. A worker holds the listing of one
unit at a time. Every item becomes a row; items that cannot be used carry the reason.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa

from diptych.core.errors import DiptychError
from diptych.core.files import read_json, write_json
from diptych.curation.engine.store import Store, address
from diptych.curation.operators.base import sample_hash
from diptych.curation.plan import Pool
from diptych.data.order import ENDLESS
from diptych.data.source import BrokenItem, Problem, Source
from diptych.data.sources import open_source
from diptych.data.sources.base import CAPTION_COLUMNS, IMAGE_COLUMNS, Entry, ListedSource, clean, column, texts
from diptych.data.storage import files

VERSION = 1  # of the shards' layout
INLINE_ABOVE = 256_000_000  # bytes of a Parquet row group's images: larger groups are copied, since a group is read as a whole

SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # unique in its source
        ("item", pa.string()),  # rows of one item share an image
        ("hash", pa.uint64()),
        ("text", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("extra", pa.string()),  # JSON
        ("url", pa.string()),  # of the file that holds the image, if not inline
        ("start", pa.int64()),  # a part of that file: first byte, or Parquet row group
        ("size", pa.int64()),  # bytes, or place in the row group
        ("field", pa.string()),  # the Parquet column
        ("stamp", pa.string()),  # changes when the file does
        ("image", pa.binary()),  # inline bytes
        ("error", pa.string()),  # why the row cannot be used
    ]
)


@dataclass(frozen=True)
class Unit:
    """A part of a source that is read at once."""

    address: str
    label: str  # identifies the file in the source; the prefix of ids
    key: str | None  # known before reading, if the file's stamp is


@dataclass(frozen=True)
class ShardInfo:
    """A shard: its address in the store and its number of rows."""

    key: str
    rows: int


def units(data: str, pool: Pool) -> list[Unit]:
    """The parts of the source at ``data``. Raises DiptychError if there is none."""
    scheme, place, options = _parsed(data)
    if scheme not in ("wds", "parquet") or options.get("split") or pool.limit:
        return [Unit(data, "", None)]
    place = files.normal(place)
    urls = files.expand(f"{place.rstrip('/')}/*{'.tar' if scheme == 'wds' else '.parquet'}" if files.is_directory(place) else place)
    stamps = files.stamps(urls)
    missing = [url for url, stamp in stamps.items() if stamp is None]
    if not urls or missing:
        what = (
            f"{len(missing)} of {len(urls)} files do not exist: {', '.join(missing[:3])}" if missing else "no file has such a name"
        )
        raise DiptychError(f"{data}: {what}")
    query = "&".join(f"{k}={v}" for k, v in options.items())
    made = []
    for url, label in zip(urls, files.relative(urls), strict=True):
        key = address("unit", VERSION, pool.model_dump(), stamps[url], label, query) if stamps[url] else None
        made.append(Unit(f"{scheme}:{url}{'?' + query if query else ''}", label, key))
    return made


def _parsed(data: str) -> tuple[str, str, dict[str, str]]:
    from urllib.parse import parse_qsl

    from diptych.data.sources import ENDINGS, SCHEMES

    scheme, mark, rest = data.partition(":")
    if not (mark and scheme in SCHEMES):
        rest = data
        bare = data.partition("?")[0].lower()
        scheme = next((kind for ending, kind in ENDINGS.items() if bare.endswith(ending)), "")
    place, _, query = rest.partition("?")
    return scheme, place, dict(parse_qsl(query))


def read_unit(unit: Unit, pool: Pool, store: Store) -> list[ShardInfo]:
    """The unit's shards, written into ``store`` unless they exist."""
    index = store.path(unit.key, ".json") if unit.key else None
    if index and index.is_file():
        return [ShardInfo(**s) for s in read_json(index)]
    shards = []
    for table in _cut(_rows(unit, pool), pool.shard):
        key = address("shard", VERSION, _digest(table))
        if not store.has(key):
            store.write(key, table)
        shards.append(ShardInfo(key, table.num_rows))
    if index:
        write_json(index, [vars(s) for s in shards])
    return shards


def known(unit: Unit, store: Store) -> list[ShardInfo] | None:
    """The unit's shards, if it was read before and its file has not changed since."""
    if not unit.key or not (path := store.path(unit.key, ".json")).is_file():
        return None
    shards = [ShardInfo(**s) for s in read_json(path)]
    return shards if all(store.has(s.key) for s in shards) else None


def _digest(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.blake2b(sink.getvalue(), digest_size=16).hexdigest()


def _cut(rows: Iterator[list[dict[str, Any]]], n: int) -> Iterator[pa.Table]:
    """Tables of n rows or slightly more, since the rows of one item stay together."""
    held: list[dict[str, Any]] = []
    for item in rows:
        held += item
        if len(held) >= n:
            yield pa.Table.from_pylist(held, SCHEMA)
            held = []
    if held:
        yield pa.Table.from_pylist(held, SCHEMA)


def _rows(unit: Unit, pool: Pool) -> Iterator[list[dict[str, Any]]]:
    """The rows of each item of the unit."""
    if unit.label and unit.address.startswith("parquet:"):
        rows = _parquet(unit, pool)
        if rows is not None:
            yield from rows
            return
    try:
        source = open_source(unit.address)
    except DiptychError as error:
        if "empty data set" in str(error) and unit.label:  # an unusable file does not affect the others
            yield [_broken(Problem(unit.label, str(error).partition("empty data set: ")[2]))]
            return
        raise
    name = files.name(unit.label)

    def identity(own: str) -> str:
        """The id within the whole pool: the unit's label in place of the name of its file."""
        return unit.label + own[len(name) :] if unit.label and own.startswith(name) else own

    entries = source._entries if isinstance(source, ListedSource) else None
    items = min(len(source), pool.limit or len(source))
    if items > ENDLESS and pool.limit is None:
        raise DiptychError(f"{unit.address} draws samples without end: limit them, such as --set pool.limit=10000")
    for i in range(items):
        if entries is not None:
            reference = _reference(cast(ListedSource, source), entries[i], pool)
            yield _item(identity(entries[i].id), entries[i].captions, entries[i].extra, reference, pool)
        else:
            yield _sample(source, i, pool)
    for problem in source.problems:
        yield [_broken(Problem(identity(problem.item), problem.reason))]


def _item(identity: str, captions: list[str], extra: dict[str, Any], image: dict[str, Any], pool: Pool) -> list[dict[str, Any]]:
    extra_json = _utf8(json.dumps(extra, ensure_ascii=False, sort_keys=True, default=str)) if extra else None
    identity = _utf8(identity)
    if pool.rows == "captions" and len(captions) > 1:
        split = [(f"{identity}#{n}", [caption]) for n, caption in enumerate(captions, 1)]
    else:
        split = [(identity, captions)]
    return [
        {"id": i, "item": identity, "hash": sample_hash(i), "text": c[0], "captions": c, "extra": extra_json, **image}
        for i, c in split
    ]


def _broken(problem: Problem) -> dict[str, Any]:
    identity = _utf8(problem.item)
    return {"id": identity, "item": identity, "hash": sample_hash(identity), "error": _utf8(problem.reason)}


def _utf8(text: str) -> str:
    """Valid UTF-8: file names may hold other bytes, Arrow strings may not."""
    return text.encode("utf-8", "replace").decode()


def _reference(source: ListedSource, entry: Entry, pool: Pool) -> dict[str, Any]:
    """The columns that locate the image's bytes, or hold them."""
    where = entry.where if isinstance(entry.where, str) else entry.where[0] if isinstance(entry.where, tuple) else None
    if pool.images == "inline" or where is None or where != _utf8(where):
        try:
            return {"image": source.image_bytes(entry)}
        except BrokenItem as error:
            return {"error": error.problem.reason}
    if isinstance(entry.where, str):
        return {"url": _absolute(entry.where), "stamp": entry.stamp}
    if len(entry.where) == 3:
        url, start, size = entry.where
        return {"url": _absolute(url), "start": start, "size": size, "stamp": _stamp(url)}
    url, group, place, field = entry.where
    return {"url": _absolute(url), "start": group, "size": place, "field": field, "stamp": _stamp(url)}


def _absolute(url: str) -> str:
    return os.path.abspath(url) if files.is_local(url) else url


def _stamp(url: str) -> str:
    return files.stamps([url])[url] or ""


def _sample(source: Source, i: int, pool: Pool) -> list[dict[str, Any]]:
    """The rows of an item of a source without files, such as ``scenes:``; its image is stored as PNG."""
    from PIL import Image

    try:
        sample = source[i]
    except BrokenItem as error:
        return [_broken(error.problem)]
    if sample.image is None or not sample.captions:
        return [_broken(Problem(sample.id, "no image" if sample.image is None else "no caption"))]
    file = io.BytesIO()
    Image.fromarray(sample.image).save(file, "PNG", compress_level=1)
    return _item(sample.id, [clean(c) for c in sample.captions], sample.extra, {"image": file.getvalue()}, pool)


def _parquet(unit: Unit, pool: Pool) -> Iterator[list[dict[str, Any]]] | None:
    """The rows of a Parquet file that contains images; ``None`` if its images are paths."""
    import pyarrow.types as kinds

    from diptych.data.sources.parquet import open_parquet

    _, url, options = _parsed(unit.address)
    with files.open_file(url) as file:
        schema = open_parquet(file, url).schema_arrow
    image = column(schema.names, IMAGE_COLUMNS, options.get("image"), "image", url)
    caption = column(schema.names, CAPTION_COLUMNS, options.get("caption"), "caption", url)
    kind = schema.field(image).type
    if not (kinds.is_binary(kind) or kinds.is_large_binary(kind)):
        return None
    light = [f.name for f in schema if f.name != image and "binary" not in str(f.type)]
    return _row_groups(unit, pool, url, image, caption, light)


def _row_groups(unit: Unit, pool: Pool, url: str, image: str, caption: str, light: list[str]) -> Iterator[list[dict[str, Any]]]:
    from diptych.data.sources.parquet import open_parquet

    stamp, number = _stamp(url), 0
    with files.open_file(url) as file:
        parquet = open_parquet(file, url)
        for group in range(parquet.num_row_groups):
            about = parquet.metadata.row_group(group)
            held = next(c.total_uncompressed_size for c in map(about.column, range(about.num_columns)) if c.path_in_schema == image)
            inline = pool.images == "inline" or held > INLINE_ABOVE
            place = 0
            for batch in parquet.iter_batches(
                256, row_groups=[group], columns=[*light, image] if inline else light, use_threads=False
            ):
                for row in batch.to_pylist():
                    captions = [c for c in map(clean, texts(row.pop(caption))) if c]
                    data = row.pop(image, None)
                    where = (
                        {"image": data}
                        if inline
                        else {"url": _absolute(url), "start": group, "size": place, "field": image, "stamp": stamp}
                    )
                    identity = f"{unit.label}:{number}"
                    if captions:
                        yield _item(identity, list(dict.fromkeys(captions)), row, where, pool)
                    else:
                        yield [_broken(Problem(identity, "no caption"))]
                    place, number = place + 1, number + 1
