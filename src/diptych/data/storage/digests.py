"""Hashes of encoded images, computed by threads and kept between runs for files that did not change."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.data.source import BrokenItem
from diptych.data.storage.cache import cache_directory

if TYPE_CHECKING:
    from diptych.data.sources.base import Entry

THREADS = 8  # reading, not computing, is what takes the time


def digest(data: bytes) -> bytes:
    """BLAKE2b of some bytes, 16 bytes long."""
    return hashlib.blake2b(data, digest_size=16).digest()


def of_entries(place: str, entries: Sequence[Entry], read: Callable[[Entry], bytes]) -> list[bytes]:
    """One digest per entry. An entry that cannot be read gets a hash of its id, so it belongs to one part and is reported there."""
    path = cache_directory() / "digests" / f"{digest(os.path.abspath(place).encode()).hex()}.json"
    kept = _load(path)
    keys = [digest(e.stamp.encode("utf-8", "surrogateescape")).hex() if e.stamp else "" for e in entries]
    unknown = [i for i, key in enumerate(keys) if key not in kept]

    def work(i: int) -> bytes | None:
        """The digest of one entry; None if it cannot be read."""
        try:
            return digest(read(entries[i]))
        except BrokenItem:
            return None

    fresh: dict[int, bytes | None] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(unknown), 4096):  # the pool would hold one object for every item otherwise
            chunk = unknown[start : start + 4096]
            fresh.update(zip(chunk, pool.map(work, chunk), strict=True))
    kept.update((keys[i], d.hex()) for i, d in fresh.items() if d is not None and keys[i])
    if any(keys[i] and d is not None for i, d in fresh.items()):
        _save(path, {key: kept[key] for key in keys if key in kept})
    by_name = (digest(b"unreadable:" + e.id.encode("utf-8", "surrogateescape")) for e in entries)
    return [(fresh[i] or name) if i in fresh else bytes.fromhex(kept[keys[i]]) for i, name in enumerate(by_name)]


def _load(path: Path) -> dict[str, str]:
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _save(path: Path, kept: dict[str, str]) -> None:
    """Written in one step, so that no other process reads half a file; a cache that cannot be written is not an error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(kept, file)
        os.replace(file.name, path)
    except OSError:
        pass
