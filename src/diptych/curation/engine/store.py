"""A content-addressed store of results.

The address of a result is a hash of the operator's name, version and options and of the addresses of its inputs. So a killed run
resumes, a second run reuses everything, and changed options change the addresses of everything that depends on them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diptych.core.files import write_atomically


def address(*parts: Any) -> str:
    """A hash of plain data, 128 bits in hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


class Store:
    """Tables and files by address, in a directory. Each is written atomically."""

    def __init__(self, path: Path):
        self.root = path

    def path(self, key: str, suffix: str = ".parquet") -> Path:
        """The path of a result."""
        return self.root / key[:2] / f"{key}{suffix}"

    def has(self, key: str, suffix: str = ".parquet") -> bool:
        """Whether a result exists."""
        return self.path(key, suffix).exists()

    def write(self, key: str, table: pa.Table | pa.RecordBatch) -> None:
        """Saves a table."""
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        write_atomically(self.path(key), lambda path: pq.write_table(table, path))

    def read(self, key: str, columns: list[str] | None = None) -> pa.Table:
        """A saved table, or some of its columns."""
        return pq.read_table(self.path(key), columns=columns, memory_map=False, use_threads=False)

    def columns(self, key: str, names: list[str]) -> dict[str, pa.Array]:
        """Some columns of a saved table, by name."""
        table = self.read(key, names).combine_chunks()
        return {name: _one(table[name]) for name in names}

    def sweep(self) -> None:
        """Removes unfinished files of processes that no longer run."""
        for path in self.root.glob("*/.*.tmp"):
            pid = path.name.split(".")[-2]
            if pid.isdigit() and not _alive(int(pid)):
                if path.is_dir():
                    import shutil

                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _one(column: pa.ChunkedArray) -> pa.Array:
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks)
        if column.chunks
        else pa.array([], column.type)
    )


def _alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
