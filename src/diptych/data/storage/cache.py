"""The user's cache: whole copies of remote files, up to a size; the least recently used are deleted first.

``DIPTYCH_CACHE`` says where (default ``~/.cache/diptych``), ``DIPTYCH_CACHE_SIZE`` how much (default ``20 GB``; ``0``: none).
Copies are renamed into place, so processes may share it. Each process checks once whether a file has changed at its source.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import threading
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

from diptych.core.errors import DiptychError
from diptych.data.storage.patience import patiently

DEFAULT_SIZE = 20_000_000_000
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_lock = threading.Lock()
_names: dict[str, tuple[str, int]] = {}  # url → name of its copy (changes when the file does), bytes
_held: dict[str, int] = {}  # directory → bytes in it, as far as this process knows


def cache_directory() -> Path:
    """Where copies of remote files are kept."""
    return Path(os.environ.get("DIPTYCH_CACHE") or Path.home() / ".cache" / "diptych")


def size_limit() -> int:
    """Bytes that copies of remote files may take."""
    text = os.environ.get("DIPTYCH_CACHE_SIZE", "").strip()
    if not text:
        return DEFAULT_SIZE
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.lower())
    if not match:
        raise DiptychError(f"DIPTYCH_CACHE_SIZE={text}: expected a size such as 50GB, or 0 for no copies")
    return int(float(match[1]) * _UNITS[match[2]])


def check_room(needed: int, what: str) -> None:
    """Raises DiptychError if data that must be in the cache as a whole is too large for it."""
    if needed > size_limit():
        raise DiptychError(
            f"{what} takes {needed / 1e9:.2f} GB, the cache holds {size_limit() / 1e9:.2f}: set DIPTYCH_CACHE_SIZE, or copy "
            "the data to a local directory"
        )


def local_copy(url: str, needed: bool = False) -> str:
    """The path of a copy of a remote file; "" if it is too large, or there is no room, and it must be read at its source.

    needed: raise DiptychError instead. Raises what the file system raises if the file cannot be read.
    """
    from diptych.data.storage.files import filesystem

    fs, path = filesystem(url)
    with _lock:
        known = _names.get(url)
    if known is None:
        info, key = patiently(lambda: (fs.info(path), fs.ukey(path)))
        known = (blake2b(f"{url} {key}".encode(), digest_size=20).hexdigest(), int(info.get("size") or 0))
        with _lock:
            _names[url] = known
    name, size = known
    copy = cache_directory() / "files" / name[:2] / name
    try:
        os.utime(copy)  # used now
        return str(copy)
    except OSError:
        pass
    limit = size_limit()
    try:
        if size > limit or not limit:
            raise OSError(errno.EFBIG, f"larger than the cache ({limit / 1e9:.2f} GB): set DIPTYCH_CACHE_SIZE")
        copy.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".", dir=copy.parent)
        os.close(handle)
    except OSError as error:
        if needed:
            raise DiptychError(f"{url} must be copied to {cache_directory()}: {error.strerror}") from error
        return ""
    try:
        arrived = patiently(lambda: _fetched(fs, path, temporary, size))
        os.replace(temporary, copy)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if needed:
            raise DiptychError(f"{url} must be copied to {cache_directory()}: {error.strerror}") from error
        return ""
    finally:
        Path(temporary).unlink(missing_ok=True)
    _make_room(cache_directory() / "files", arrived, limit)
    return str(copy)


def _fetched(fs: Any, path: str, to: str, size: int) -> int:
    """Copies a file, and returns its bytes; EOFError if fewer arrived than there are."""
    fs.get_file(path, to)
    arrived = os.path.getsize(to)
    if arrived < size:
        raise EOFError(f"{path}: {arrived} of {size} bytes arrived")
    return arrived


def _make_room(directory: Path, arrived: int, limit: int) -> None:
    """Remove the least recently used copies until a tenth of the cache is free again."""
    with _lock:
        key = str(directory)
        _held[key] = _held[key] + arrived if key in _held else sum(size for _, size, _ in _copies(directory))
        if _held[key] <= limit:
            return
        copies = _copies(directory)
        total = sum(size for _, size, _ in copies)
        for _, size, path in copies[:-1]:  # never the one that has just come
            if total <= 0.9 * limit:
                break
            Path(path).unlink(missing_ok=True)  # processes that have it open or mapped can still read it
            total -= size
        _held[key] = total


def _copies(directory: Path) -> list[tuple[float, int, str]]:
    """(last use, bytes, path) of every copy, oldest first."""
    result = []
    for folder in os.scandir(directory):
        for entry in os.scandir(folder.path):
            try:
                status = entry.stat()
            except FileNotFoundError:  # another process made room
                continue
            if not entry.name.startswith(".") or status.st_mtime < time.time() - 86400:  # a killed process's
                result.append((status.st_mtime, status.st_size, entry.path))
    return sorted(result)
