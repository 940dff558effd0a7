"""One process writes an index at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.core.errors import DiptychError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The index, for one writer. The lock ends with its process. DiptychError if another holds it, or if nothing may be written."""
    from filelock import FileLock, Timeout

    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DiptychError(f"{path}: another command is writing it; wait for it, then run this again") from None
    except OSError as error:
        raise DiptychError(f"{path}: cannot be written ({error.strerror}); check whose the folder is") from None
    try:
        yield
    finally:
        lock.release()
