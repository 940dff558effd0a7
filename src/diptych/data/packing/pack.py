"""``pack``: any source into memory-mapped Arrow, shard by shard. If it is killed or interrupted, the same command packs what is
missing.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any, Literal

from diptych.core.errors import DiptychError, Interrupted, nearest
from diptych.core.progress import CountDisplay
from diptych.data.order import ENDLESS
from diptych.data.packing.manifest import Manifest
from diptych.data.packing.shard import ROWS, SHARD_ITEMS, Parameters, packed_fields, shard_name, version_of
from diptych.data.packing.workers import write_shards
from diptych.data.source import Source

HEAVY = {"video": 16, "document": 4}  # fields of several pictures: this many times fewer items in a shard and a record batch


def pack(
    address: str,
    out: str | Path,
    size: int | None = None,
    format: Literal["raw", "jpeg", "webp"] = "jpeg",
    quality: int = 90,
    split: str = "all",
    limit: int | None = None,
    workers: int | None = None,
    shard_items: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write what is at ``address`` into the directory ``out`` and return its manifest.

    size: of the shorter side in pixels, only larger images are resized; None: the source's own size (scenes), or 256. limit: number
    of items, needed for a source that draws its samples without end. workers: processes; None: one per core. Raises
    ``DiptychError`` for what the user can fix, ``Interrupted`` on Ctrl-C.
    """
    from filelock import FileLock, Timeout

    from diptych.data.sources import open_source

    if format not in SHARD_ITEMS:
        raise DiptychError(f"--format {format}{nearest(format, SHARD_ITEMS)}")
    out = Path(out)
    source = open_source(address)
    source = source if split == "all" else source.split(split)
    items = min(len(source), limit or len(source))
    if items > ENDLESS and limit is None:
        raise DiptychError(f"{address} draws its samples without end: say how many to pack, such as --limit 100000")
    if not items:
        raise DiptychError(f"{source.address}: no items to pack")
    native: int | None = getattr(source, "image_size", None)
    size = size or native or 256
    share = next((HEAVY[name] for name in HEAVY if name in getattr(source, "fields", ())), 1)
    shard_items, rows = shard_items or SHARD_ITEMS[format] // share, ROWS // share
    parameters = Parameters(
        *(address, source.fingerprint(), split, items, size, format, quality, shard_items, rows),
        version=version_of(packed_fields(source)),
    )  # the fingerprint also reads every image's hash, which decides the split of the packed data
    out.mkdir(parents=True, exist_ok=True)
    part = getattr(source, "part", None) or (None if split == "all" else split)
    manifest = Manifest(
        out, parameters, part, native if native == size else None, source.problems, getattr(source, "classes", None)
    )
    try:
        with FileLock(out / ".lock", timeout=0):
            return _pack(source, manifest, workers or os.cpu_count() or 1, progress)
    except Timeout:
        raise DiptychError(f"{out}: another process is packing into it; wait for it, or choose another OUT") from None


def _pack(source: Source, manifest: Manifest, workers: int, progress: bool) -> dict[str, Any]:
    parameters, out = manifest.parameters, manifest.out
    done = manifest.take_up()
    for leftover in out.glob(".*.tmp"):  # of a killed run
        leftover.unlink()
    began, before = time.monotonic(), manifest.seconds

    def spent() -> float:
        """Seconds so far, those of interrupted runs included."""
        return before + time.monotonic() - began

    missing = [n for n in range(-(-parameters.items // parameters.shard_items)) if n not in manifest.shards]
    manifest.write(spent())
    with CountDisplay(f"packing {parameters.address}", parameters.items, done, disable=not progress) as display:
        try:
            write_shards(
                source, missing, parameters, out, workers, lambda w: manifest.add(w, spent()), lambda seen: display(done + seen)
            )
        except KeyboardInterrupt:
            kept = f"{len(manifest.shards)} of {len(manifest.shards.keys() | set(missing))} shards are kept"
            raise Interrupted(f"interrupted: {kept}; the same command resumes") from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiptychError(
                    f"{out}: the disk is full; {len(manifest.shards)} finished shards are kept. Free space and run the same "
                    "command again"
                ) from error
            raise
        for stale in set(out.glob("shard-*.arrow")) - {out / shard_name(n) for n in manifest.shards}:
            stale.unlink()
    content = manifest.write(spent())
    if not content["items"]:
        first = manifest.problems[0]
        raise DiptychError(f"{parameters.address}: no usable item among {parameters.items}; first: {first.item}: {first.reason}")
    return content
