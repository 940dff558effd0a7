"""The output: the decision on every row with its reason, and the kept rows, ready for ``train``."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diptych.core.files import write_atomically
from diptych.curation.engine.shards import Shard

DECIDED = ("row", "id", "own_id", "text", "kept", "reason", "reasons", "errors")
SUFFIX = {"parquet": ".part.parquet", "packed": ".part.parquet", "images": ".images", "wds": ".tar"}
GROUP_BYTES = 32_000_000  # of images in a Parquet row group, which random access reads at once
KINDS = {b"\xff\xd8\xff": "jpg", b"\x89PN": "png", b"GIF": "gif", b"RIF": "webp", b"BM": "bmp", b"II*": "tif", b"MM\0": "tif"}


def write(shard: Shard) -> None:
    """Writes the kept rows, then the decisions: where decisions exist, so do the rows."""
    if shard.store.has(shard.keys.decided) and shard.store.has(shard.keys.part, SUFFIX[shard.plan.output.format]):
        return
    removals = shard.reasons(len(shard.steps))
    kept = np.ones(len(shard), dtype=bool)
    for _, removed in removals:
        kept &= ~removed
    lost: dict[int, str] = {}
    _write_part(shard, kept, lost)
    unreadable = np.isin(np.arange(len(shard)), list(lost))
    _write_decisions(shard, [*removals, ("unreadable image", unreadable)], lost)


def _write_decisions(shard: Shard, removals: list[tuple[str, np.ndarray]], lost: dict[int, str]) -> None:
    """Writes ``DECIDED`` and every score. ``reason``: the first that removed a row; ``reasons``: all that would remove it."""
    n = len(shard)
    first: list[str | None] = [None] * n
    every: list[list[str]] = [[] for _ in range(n)]
    for reason, removed in removals:
        for i in np.flatnonzero(removed):
            first[i] = first[i] or reason
            if reason not in every[i]:
                every[i].append(reason)
    columns: dict[str, pa.Array] = {
        "row": pa.array(shard.rows),
        "id": shard.light["id"],
        "own_id": pa.array(_own_ids(shard.light["extra"].to_pylist()), pa.string()),
        "text": shard.light["text"],
        "kept": pa.array([r is None for r in first]),
        "reason": pa.array(first, pa.string()),
        "reasons": pa.array(every, pa.list_(pa.string())),
        "errors": pa.array(_errors(shard, lost), pa.list_(pa.string())),
    }
    for step in shard.steps:
        columns |= {name: shard.column(name) for name, kind in step.outputs.items() if shows(kind)}
    rule_columns = [s.rule.column for s in shard.steps if s.rule and s.rule.column]
    columns |= {name: shard.column(name) for name in rule_columns if name not in columns}
    shard.store.write(shard.keys.decided, pa.table(columns))


def _own_ids(extras: list[str | None]) -> list[str | None]:
    """The ids in the data's own column ``id``, if it has one: ids of the source are positions in files."""
    own_ids = [json.loads(text).get("id") if text and '"id"' in text else None for text in extras]
    return [str(v) if isinstance(v, (str, int)) else None for v in own_ids]


def shows(kind: pa.DataType) -> bool:
    """Whether a column is readable for people: no embeddings, no hashes."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return bool(pa.types.is_string(kind.value_type) or pa.types.is_integer(kind.value_type))
    return not (
        pa.types.is_nested(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _errors(shard: Shard, lost: dict[int, str]) -> list[list[str]]:
    errors_by_row: list[list[str]] = [[e] if e else [] for e in shard.light["error"].to_pylist()]
    for i, error in lost.items():
        errors_by_row[i].append(error)
    for step in shard.steps:
        if step.operator and (errors := shard.errors(step.index)).null_count < len(errors):
            for i, error in enumerate(errors.to_pylist()):
                if error:
                    errors_by_row[i].append(f"{step.label}: {error}")
    return errors_by_row


def _write_part(shard: Shard, kept: np.ndarray, lost: dict[int, str]) -> None:
    """Writes the kept rows with their unchanged image files; adds rows with unreadable images to ``lost``."""
    form, number = shard.plan.output.format, shard.keys.number
    items = _kept_items(shard, kept, lost)
    path = shard.store.path(shard.keys.part, SUFFIX[form])
    if form in ("parquet", "packed"):
        write_atomically(path, lambda p: _parquet(items, p))
    elif form == "wds":
        write_atomically(path, lambda p: _tar(items, number, p))
    else:
        write_atomically(path, lambda p: _images(items, number, p))


def _kept_items(shard: Shard, kept: np.ndarray, lost: dict[int, str]) -> Iterator[dict[str, Any]]:
    """id, image, extra and kept captions of every image with a kept row."""
    names, captions, extras = (shard.light[c] for c in ("item", "captions", "extra"))
    held: dict[str, Any] | None = None
    for places, data, reasons in shard.images(kept):
        for place, encoded, reason in zip(places.tolist(), data, reasons, strict=True):
            if encoded is None:
                lost[place] = reason or "no image"
                continue
            item = names[place].as_py()
            if held and held["id"] == item:
                held["captions"] += captions[place].as_py()
                continue
            if held:
                yield held
            held = {"id": item, "image": encoded, "captions": captions[place].as_py(), "extra": extras[place].as_py()}
    if held:
        yield held


def _parquet(items: Iterator[dict[str, Any]], path: Path) -> None:
    schema = pa.schema([("id", pa.string()), ("image", pa.binary()), ("captions", pa.list_(pa.string())), ("extra", pa.string())])
    with pq.ParquetWriter(path, schema, compression={"image": "none", "id": "zstd", "captions": "zstd", "extra": "zstd"}) as writer:
        group: list[dict[str, Any]] = []
        held = 0
        for item in items:
            group.append(item)
            held += len(item["image"])
            if held > GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group, held = [], 0
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema))


def kind_of(data: bytes) -> str:
    """The file name suffix of an encoded image."""
    return KINDS.get(data[:3]) or KINDS.get(data[:2], "jpg")


def _tar(items: Iterator[dict[str, Any]], number: int, path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for n, item in enumerate(items):
            metadata = {"id": item["id"], "captions": item["captions"], **(json.loads(item["extra"]) if item["extra"] else {})}
            metadata["captions"] = item["captions"]  # not those of the extras
            for suffix, data in (
                (kind_of(item["image"]), item["image"]),
                ("json", json.dumps(metadata, ensure_ascii=False).encode()),
            ):
                member = tarfile.TarInfo(f"{number:05d}-{n:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _images(items: Iterator[dict[str, Any]], number: int, path: Path) -> None:
    """Writes ``images/00000/000000.jpg`` … and ``part-00000.parquet`` with their names."""
    folder = f"images/{number:05d}"
    (path / folder).mkdir(parents=True)
    rows = []
    for n, item in enumerate(items):
        name = f"{folder}/{n:06d}.{kind_of(item['image'])}"
        (path / name).write_bytes(item["image"])
        rows.append({"id": item["id"], "file_name": name, "captions": item["captions"], "extra": item["extra"]})
    schema = pa.schema(
        [("id", pa.string()), ("file_name", pa.string()), ("captions", pa.list_(pa.string())), ("extra", pa.string())]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), path / f"part-{number:05d}.parquet")
