"""Files that users bring, read strictly: an error names the file and the line, and nothing is left out silently.

A table of rows may be JSON lines (one object per line), a JSON array of objects, a JSON object of objects (its keys become the
field ``id``), CSV or TSV with a header, or Parquet.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from diptych.benchmarks.tables import Row, Table, short
from diptych.core.errors import DiptychError, counted, nearest

LONGEST_LINE = 64 << 20  # bytes; a longer line is refused
LINES_AT_ONCE = 64
LARGEST_JSON = 2 << 30  # bytes; a larger document is refused, because it is read as a whole

Fields = dict[str, Any]


def _open(path: Path) -> IO[bytes]:
    if not path.is_file():
        raise DiptychError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DiptychError(f"{path}: the file is empty")
    file = path.open("rb")
    start = file.read(4)
    file.seek(0)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DiptychError(f"{path}, line 1: UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    if start.startswith(b"\xef\xbb\xbf"):
        raise DiptychError(
            f"{path}, line 1: starts with a byte order mark; save it as UTF-8 without one (sed -i '1s/^\\xEF\\xBB\\xBF//')"
        )
    return file


def _decode(data: bytes, path: Path, line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data[: error.start].count(b"\n")
        raise DiptychError(f"{path}, line {line}: not UTF-8 (byte {data[error.start]:#04x}); save it as UTF-8") from None


def _parse(text: str, path: Path, line: int = 1) -> Any:
    """Strict JSON; ``line`` is where the text starts in the file."""

    def line_of(sign: str, from_: int = 0) -> int:
        """The line of the file where ``sign`` occurs first from ``from_`` on."""
        return line + text.count("\n", 0, max(text.find(sign, from_), 0))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object of these pairs. Raises DiptychError if a key occurs twice, of which Python would keep the last."""
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            written = json.dumps(twice)
            raise DiptychError(f"{path}, line {line_of(written, text.find(written) + 1)}: the key '{twice}' is twice in one object")
        return made

    def refuse(constant: str) -> float:
        """Raises DiptychError for NaN and Infinity, which Python reads but JSON does not have."""
        raise DiptychError(f"{path}, line {line_of(constant)}: {constant} is not JSON; write null for a missing value")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise DiptychError(f"{path}, line {line + error.lineno - 1}, column {error.colno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise DiptychError(f"{path}, line {line}: nested too deeply") from None


def _not_json(constant: str) -> float:
    raise ValueError(constant)


_QUICK = json.JSONDecoder(parse_constant=_not_json)


def _parse_lines(lines: list[tuple[int, bytes]], path: Path) -> list[Fields]:
    """Rows of lines; all at once if it is certain that all are valid, otherwise one by one."""
    if all(line.startswith(b"{") and line.endswith(b"}") for _, line in lines):
        try:
            text = (b"[" + b",".join(line for _, line in lines) + b"]").decode("utf-8")
            rows: list[dict[str, Any]] = _QUICK.decode(text)
        except (ValueError, RecursionError):
            rows = []
        # as many colons as keys: no object within a row, and no key twice
        if len(rows) == len(lines) and text.count(":") == sum(map(len, rows)):
            return rows
    return [_row(number, line, path) for number, line in lines]


def _row(number: int, line: bytes, path: Path) -> Fields:
    row = _parse(_decode(line, path, number), path, number)
    if not isinstance(row, dict):
        raise DiptychError(f"{path}, line {number}: expected an object, got {short(row)}")
    return row


def read_json(path: str | Path) -> Any:
    """A strict JSON document. Raises DiptychError for NaN, a key that occurs twice, or bytes that are not UTF-8."""
    path = Path(path)
    with _open(path) as file:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise DiptychError(f"{path}, line 1: {size >> 20} MiB in one JSON document; the limit is {LARGEST_JSON >> 20} MiB")
        return _parse(_decode(file.read(), path, 1), path)


def _lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise DiptychError(f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MiB; expected one row per line")
        line = line.rstrip()
        if line:
            yield number, line


def read_rows(path: str | Path, key: str | None = None) -> Table:
    """The table of a file in any of the formats above.

    ``key``: the field of a JSON object that holds the rows (``annotations``). Raises DiptychError if there are no rows.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        table = _read_parquet(path)
    elif suffix in (".csv", ".tsv"):
        table = _read_csv(path, "," if suffix == ".csv" else "\t")
    else:
        table = _read_json_rows(path, key)
    if not table.rows:
        raise DiptychError(f"{path}: no rows")
    return table


def read_records(path: str | Path, key: str | None = None) -> list[Row]:
    """The rows of ``read_rows``, each with its place in the file."""
    return read_rows(path, key).records()


def _read_json_rows(path: Path, key: str | None) -> Table:
    if kind_of(path) == "lines":
        rows: list[Fields] = []
        numbers: list[int] = []
        with _open(path) as file:
            lines = _lines(file, path)
            while part := list(islice(lines, LINES_AT_ONCE)):
                rows += _parse_lines(part, path)
                numbers += [number for number, _ in part]
        return Table(path, rows, numbers)
    document = read_json(path)
    return table_of(document, path, key)


def table_of(document: Any, path: Path, key: str | None = None) -> Table:
    """The table in a JSON document that was read; arguments and errors as in ``read_rows``."""
    name = ""
    if isinstance(document, dict):
        if key in document:
            document, name = document[key], str(key)
        elif document and all(isinstance(value, dict) for value in document.values()):
            names = list(document)
            return Table(path, [{"id": k, **v} for k, v in document.items()], lambda i: f"{path}, entry '{names[i]}'")
        else:
            expected = f"a field '{key}'" if key else "a list of rows"
            raise DiptychError(f"{path}: expected {expected}{nearest(key or '', document) if key else ''}")
    if not isinstance(document, list):
        raise DiptychError(f"{path}: expected a list of rows{f' in {name}' if name else ''}, got {short(document)}")
    for i, row in enumerate(document):
        if not isinstance(row, dict):
            raise DiptychError(f"{path}, {name}[{i}]: expected an object, got {short(row)}")
    return Table(path, document, lambda i: f"{path}, {name}[{i}]")


def kind_of(path: Path) -> str:
    """``lines`` if the file holds one JSON object per line, also if it is called .json (as POPE's files), else ``document``."""
    if path.suffix.lower() == ".jsonl":
        return "lines"
    with _open(path) as file:
        first = next(_lines_until(file), b"")
        if not first.startswith(b"{"):
            return "document"
        try:
            json.loads(first)
        except ValueError:
            return "document"
        rest = file.read(1 << 16).strip()
        return "lines" if rest else "document"


def _lines_until(file: IO[bytes]) -> Iterator[bytes]:
    """The first line that is not blank, if it is not endless."""
    while line := file.readline(LONGEST_LINE):
        if line.strip():
            yield line.strip()


def _read_csv(path: Path, delimiter: str) -> Table:
    with _open(path) as file:
        largest = 0
        for number, line in _lines(file, path):  # before the csv reader, which reads a line whole and decodes many at once
            largest = max(largest, len(line))
            _decode(line, path, number)
    csv.field_size_limit(max(largest + 1, 131072))
    with path.open(encoding="utf-8", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(reader)
            if len(set(header)) != len(header):
                raise DiptychError(f"{path}, line 1: a column name is twice in the header")
            rows, numbers = [], []
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise DiptychError(
                        f"{path}, line {reader.line_num}: {counted(len(values), 'value')} for {counted(len(header), 'column')}"
                    )
                rows.append(dict(zip(header, values, strict=True)))
                numbers.append(reader.line_num)
        except csv.Error as error:
            raise DiptychError(f"{path}, line {reader.line_num}: {error}") from None
    return Table(path, rows, numbers)


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DiptychError(f"{path}: no such file")
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DiptychError(f"{path}: not Parquet ({error})") from None
    return Table(path, rows, lambda i: f"{path}, row {i}")


def read_npy(path: Path, dimensions: int) -> np.ndarray:
    """A ``.npy`` of numbers, memory-mapped: rows are read when they are used."""
    if not path.is_file():
        raise DiptychError(f"{path}: no such file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DiptychError(f"{path}: not a .npy array of numbers ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim != dimensions or array.dtype.kind not in "fiu" or not array.size:
        shape = getattr(array, "shape", type(array).__name__)
        raise DiptychError(f"{path}: expected numbers in {dimensions} dimensions, got {getattr(array, 'dtype', '')} {shape}")
    return array
