"""The files that ``predict`` and ``embed`` write: .csv, .jsonl, .parquet, and .npy with the ids next to it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diptych.core.errors import DiptychError
from diptych.core.files import write_atomically

JOIN = "|"  # between the classes of a set in a cell of a .csv


class Form:
    """A kind of file. Base class; the kinds are in ``FORMS``."""

    def write(self, out: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
        """Writes the tables one after the other to one file, atomically."""
        raise NotImplementedError

    def read(self, out: Path, schema: pa.Schema) -> pa.Table:
        """The rows of a file that ``write`` wrote. DiptychError if it was changed."""
        raise NotImplementedError

    def columns(self, out: Path) -> list[str]:
        """Names of the columns of a file; none if it cannot be read."""
        raise NotImplementedError

    def named(self, schema: pa.Schema) -> list[str]:
        """What ``columns`` gives of a file with this schema."""
        return list(schema.names)


class Parquet(Form):
    """One Parquet file, with the schema's metadata."""

    def write(self, out: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
        """Part by part, so that the rows need not fit into memory."""

        def to(path: Path) -> None:
            """Writes the file."""
            with pq.ParquetWriter(path, schema) as writer:
                for table in tables:
                    writer.write_table(table)

        write_atomically(out, to)

    def read(self, out: Path, schema: pa.Schema) -> pa.Table:
        """All rows."""
        try:
            return pq.read_table(out).cast(schema)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DiptychError(f"{out}: cannot be read ({error}); choose another --out, or --overwrite") from None

    def columns(self, out: Path) -> list[str]:
        """From the file's schema."""
        try:
            return list(pq.read_schema(out).names)
        except (pa.ArrowException, OSError):
            return []


class Csv(Form):
    """Text separated by commas, one line for a row; lists are joined by ``JOIN``, empty cells have no value."""

    def write(self, out: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
        """With a line of names first."""

        def to(path: Path) -> None:
            """Writes the file."""
            with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(schema.names)
                for table in tables:
                    writer.writerows([_cell(row[name]) for name in schema.names] for row in table.to_pylist())

        write_atomically(out, to)

    def read(self, out: Path, schema: pa.Schema) -> pa.Table:
        """All rows, with the types of the schema."""
        with out.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
        try:
            return pa.Table.from_pylist([{f.name: _value(row[f.name], f.type) for f in schema} for row in rows], schema=schema)
        except (KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
            raise DiptychError(
                f"{out}: was changed and cannot be continued ({error}); choose another --out, or --overwrite"
            ) from None

    def columns(self, out: Path) -> list[str]:
        """From the first line."""
        try:
            with out.open(encoding="utf-8", errors="replace", newline="") as file:
                return next(csv.reader(file), [])
        except (OSError, csv.Error):
            return []


class Jsonl(Form):
    """One JSON object for a row."""

    def write(self, out: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
        """With all columns in each object."""

        def to(path: Path) -> None:
            """Writes the file."""
            with path.open("w", encoding="utf-8", errors="surrogateescape") as file:
                for table in tables:
                    file.writelines(json.dumps(_rounded(row), ensure_ascii=False) + "\n" for row in table.to_pylist())

        write_atomically(out, to)

    def read(self, out: Path, schema: pa.Schema) -> pa.Table:
        """All rows."""
        try:
            with out.open(encoding="utf-8", errors="surrogateescape") as file:
                return pa.Table.from_pylist([json.loads(line) for line in file], schema=schema)
        except (ValueError, pa.ArrowException) as error:
            raise DiptychError(
                f"{out}: was changed and cannot be continued ({error}); choose another --out, or --overwrite"
            ) from None

    def columns(self, out: Path) -> list[str]:
        """From the first line."""
        try:
            with out.open(encoding="utf-8", errors="replace") as file:
                first = json.loads(next(file, "{}"))
        except (OSError, ValueError):
            return []
        return list(first) if isinstance(first, dict) else []


class Npy(Form):
    """The vectors as one array float32 [N, E], rows of NaN where there is none; the other columns in ``NAME.ids.jsonl``."""

    def ids(self, out: Path) -> Path:
        """The file of the other columns."""
        return out.with_suffix(".ids.jsonl")

    def write(self, out: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
        """The array, and before it the other columns."""
        kept = list(tables)
        others = pa.schema([f for f in schema if f.name != "vector"])
        Jsonl().write(self.ids(out), (table.select(others.names) for table in kept), others)
        width = schema.field("vector").type.list_size
        rows = [np.full((table.num_rows, width), np.nan, np.float32) for table in kept]
        for array, table in zip(rows, kept, strict=True):
            column = table["vector"].combine_chunks()
            known = np.array(column.is_valid().to_pylist(), dtype=bool)
            array[known] = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)

        def to(path: Path) -> None:
            """Writes the array."""
            with path.open("wb") as file:
                np.save(file, np.concatenate(rows) if rows else np.zeros((0, width), np.float32))

        write_atomically(out, to)

    def read(self, out: Path, schema: pa.Schema) -> pa.Table:
        """All rows."""
        table = Jsonl().read(self.ids(out), pa.schema([f for f in schema if f.name != "vector"]))
        try:
            array = np.load(out, allow_pickle=False)
            vectors = [None if np.isnan(row).all() else row.tolist() for row in array]
            return table.append_column(schema.field("vector"), pa.array(vectors, schema.field("vector").type)).select(schema.names)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DiptychError(
                f"{out}: was changed and cannot be continued ({error}); choose another --out, or --overwrite"
            ) from None

    def columns(self, out: Path) -> list[str]:
        """Of the ids next to it; ``vector`` alone if they are not there."""
        return [*Jsonl().columns(self.ids(out)), "vector"]

    def named(self, schema: pa.Schema) -> list[str]:
        """The vectors come last."""
        return [*(name for name in schema.names if name != "vector"), "vector"]


FORMS: dict[str, type[Form]] = {".csv": Csv, ".jsonl": Jsonl, ".parquet": Parquet, ".npy": Npy}


def form_of(out: Path, endings: Iterable[str]) -> Form:
    """The kind of file by its ending. DiptychError for another."""
    if out.suffix.lower() not in endings:
        raise DiptychError(f"--out {out}: expected a name that ends in {' or '.join(endings)}")
    if out.is_dir():
        raise DiptychError(f"--out {out}: is a folder; expected the name of a file")
    return FORMS[out.suffix.lower()]()


def check_place(out: Path) -> None:
    """DiptychError if no file can be written there: before a model is loaded, not after the work."""
    existing = next((p for p in out.absolute().parents if p.exists()), None)
    probe = None if existing is None else existing / f".{out.name}.probe"
    try:
        assert probe is not None
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise DiptychError(f"--out {out}: cannot be written ({error.strerror}); choose another place") from None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return JOIN.join(value) if isinstance(value, list) else str(value)


def _value(text: str, kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return text.split(JOIN) if text else None
    if text == "":
        return None
    if pa.types.is_boolean(kind):
        return {"yes": True, "no": False}[text]
    return float(text) if pa.types.is_floating(kind) else text


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in row.items()}
