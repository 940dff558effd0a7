"""Remote storage that fails now and then: each request is tried again, with longer and longer waits.

Object stores and networks lose a small share of requests (throttling, a dropped connection). Without a second try each of them
would be a broken item, and a run would learn from fewer samples.
"""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

ATTEMPTS = 6
FIRST_WAIT = 0.1  # seconds; twice as long each time: 3 s in all
BUFFER = 2**20  # bytes read at a time of a file that is not copied
# What another try does not mend: the file is not there, may not be read, or this machine's disk is full.
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLIENTS = ("aiohttp", "azure", "botocore", "google", "http", "requests", "urllib3")  # packages with errors that are no OSError


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, LASTING) or (isinstance(error, OSError) and error.errno in FULL):
        return False
    return isinstance(error, OSError | EOFError) or type(error).__module__.partition(".")[0] in CLIENTS


def patiently(request: Callable[[], T]) -> T:
    """What a request returns; raises its last error if it failed ``ATTEMPTS`` times, or with an error that lasts at once."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return request()
        except Exception as error:
            if not may_pass(error):
                raise
            time.sleep(FIRST_WAIT * 2**attempt)
    return request()


class RemoteFile(io.RawIOBase):
    """A remote file that is read in pieces, each a request of its own that may be repeated. fs, path: of fsspec; size: in bytes."""

    def __init__(self, fs: Any, path: str, size: int):
        super().__init__()
        self.fs, self.path, self.size, self.place = fs, path, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The next byte to be read."""
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a byte, counted from the start, the present place or the end."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        self.place = max(0, start + offset)
        return self.place

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer from the present place; the number of bytes, 0 at the end."""
        end = min(self.place + len(buffer), self.size)
        if end <= self.place:
            return 0
        data = patiently(lambda: self._piece(self.place, end))
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)

    def _piece(self, start: int, end: int) -> bytes:
        data = bytes(self.fs.cat_file(self.path, start=start, end=end))
        if len(data) != end - start:
            raise EOFError(f"{self.path}: {len(data)} of {end - start} bytes arrived")
        return data


def opened(fs: Any, path: str) -> Any:
    """A seekable binary file, read ahead by ``BUFFER`` bytes; fsspec's own where the storage does not tell a file's size."""
    size = patiently(lambda: fs.info(path)).get("size")
    return patiently(lambda: fs.open(path, "rb")) if size is None else io.BufferedReader(RemoteFile(fs, path, int(size)), BUFFER)
