"""Files that users bring, read strictly: what is wrong is said with file and line, and nothing is left out in silence.

A table of rows may be JSON lines (one object a line), a JSON array of objects, CSV or TSV with a header, or Parquet.
Ids may be texts or whole numbers; 7 and "7" are the same id.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from diptych.core.errors import DiptychError, nearest

LONGEST_LINE = 64 << 20  # bytes; a longer one is no row
LINES_AT_ONCE = 64
LARGEST_JSON = 2 << 30  # bytes; such a document is read whole

Row = dict[str, Any]


class Table:
    """Rows and where each came from. ``where(i)``: ``answers.jsonl, line 3`` or ``results.json, annotations[2]``."""

    def __init__(self, path: Path, rows: list[Row], where: Callable[[int], str] | Sequence[int]):
        self.path, self.rows, self._where = path, rows, where

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, i: int) -> str:
        return self._where(i) if callable(self._where) else f"{self.path}, line {self._where[i]}"

    def column(self, name: str, kind: str = "any", *, aliases: Sequence[str] = (), default: Any = ...) -> list[Any]:
        """The values of one field, checked (``kind``: id, text, number, score, truth, list, any; see ``CHECKS``).

        ``aliases``: other names of the field. Without ``default`` every row must have it.
        """
        check, names, found = CHECKS[kind], (name, *aliases), []
        quick = self._quickly(name, kind)
        if quick is not None:
            return quick
        for i, row in enumerate(self.rows):
            for key in names:
                if key in row:
                    break
            else:
                if default is ...:
                    expected = " or ".join(f"'{n}'" for n in names)
                    raise DiptychError(f"{self.where(i)}: no field {expected}{nearest(name, map(str, row))}")
                found.append(default)
                continue
            try:
                found.append(check(row[key]))
            except ValueError as error:
                raise DiptychError(f"{self.where(i)}: '{key}' must be {error}, got {_short(row[key])}") from None
        return found

    def _quickly(self, name: str, kind: str) -> list[Any] | None:
        """A column of a million values that are all what they should be; None if any is not."""
        try:
            values = [row[name] for row in self.rows]
        except KeyError:
            return None
        types = set(map(type, values))
        if kind == "id" and types == {str}:
            return None if "" in values else values
        if kind == "id" and types == {int}:
            return list(map(str, values))
        if kind in ("number", "score") and types <= {float, int}:
            numbers = np.array(values, dtype=np.float64)
            return numbers.tolist() if np.isfinite(numbers).all() else None
        return values if kind == "text" and types == {str} else None

    def has(self, name: str) -> bool:
        return bool(self.rows) and name in self.rows[0]

    def unique(self, name: str = "id", *, aliases: Sequence[str] = ()) -> list[str]:
        """A column of ids, no two alike."""
        ids = self.column(name, "id", aliases=aliases)
        if len(set(ids)) == len(ids):
            return ids
        first: dict[str, int] = {}
        for i, each in enumerate(ids):
            if first.setdefault(each, i) != i:
                raise DiptychError(f"{self.where(i)}: {name} '{each}' again; it is also at {self.where(first[each])}")
        return ids


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError("an id (a text or a whole number)")
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a number")
    try:
        number = float(value)
    except ValueError:
        raise ValueError("a number") from None
    if not math.isfinite(number):
        raise ValueError("a finite number (null for a score that is none)")
    return number


def _score(value: Any) -> float:
    return math.nan if value is None or value == "" else _number(value)  # an empty cell of a table


def _truth(value: Any) -> float:
    found = _credit(value)
    if not 0 <= found <= 1:
        raise ValueError("true, false or a credit in [0, 1]")
    return found


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a list")
    return value


def _credit(value: Any) -> float:
    named = {"true": 1.0, "false": 0.0}.get(str(value).lower())
    return _number(value) if named is None else named


CHECKS: dict[str, Callable[[Any], Any]] = {
    "any": lambda value: value,
    "id": _id,
    "text": _text,
    "number": _number,
    "score": _score,  # a number, or null: NaN, which counts as the lowest and is shown in the table
    "truth": _truth,
    "credit": _credit,  # the same without bounds: CIDEr is one
    "list": _list,
    "texts": lambda value: [_text(v) for v in _list(value)],
    "scores": lambda value: [_score(v) for v in _list(value)],
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


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
        return line + text.count("\n", 0, max(text.find(sign, from_), 0))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            written = json.dumps(twice)
            raise DiptychError(f"{path}, line {line_of(written, text.find(written) + 1)}: the key '{twice}' twice in one object")
        return made

    def refuse(constant: str) -> float:
        raise DiptychError(f"{path}, line {line_of(constant)}: {constant} is not JSON; write null where a score is not a number")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise DiptychError(f"{path}, line {line + error.lineno - 1}, column {error.colno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise DiptychError(f"{path}, line {line}: nested too deeply") from None


def _not_json(constant: str) -> float:
    raise ValueError(constant)


_QUICK = json.JSONDecoder(parse_constant=_not_json)


def _parse_lines(lines: list[tuple[int, bytes]], path: Path) -> list[Row]:
    """Rows of lines; all at once where it is certain that nothing is wrong with any, else one by one."""
    if all(line.startswith(b"{") and line.endswith(b"}") for _, line in lines):
        try:
            text = (b"[" + b",".join(line for _, line in lines) + b"]").decode("utf-8")
            rows = _QUICK.decode(text)
        except (ValueError, RecursionError):
            rows = []
        # as many colons as keys: no object within a row, and no key twice
        if len(rows) == len(lines) and text.count(":") == sum(map(len, rows)):
            return rows
    return [_row(number, line, path) for number, line in lines]


def _row(number: int, line: bytes, path: Path) -> Row:
    row = _parse(_decode(line, path, number), path, number)
    if not isinstance(row, dict):
        raise DiptychError(f"{path}, line {number}: expected an object, got {_short(row)}")
    return row


def read_json(path: Path) -> Any:
    """One strict JSON document: no NaN, no key twice."""
    with _open(path) as file:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise DiptychError(
                f"{path}, line 1: {size >> 20} MiB in one JSON document; the most that is read is {LARGEST_JSON >> 20} MiB"
            )
        return _parse(_decode(file.read(), path, 1), path)


def _lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise DiptychError(f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MiB; expected one row a line")
        line = line.rstrip()
        if line:
            yield number, line


def read_rows(path: Path, key: str | None = None) -> Table:
    """The rows of a file in any of the formats above.

    ``key``: in a JSON object, the field that holds the rows (``annotations``); without it any of an object's fields
    is refused. Raises DiptychError if there is no row.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind == ".parquet":
        table = _read_parquet(path)
    elif kind in (".csv", ".tsv"):
        table = _read_csv(path, "," if kind == ".csv" else "\t")
    else:
        table = _read_json_rows(path, key)
    if not table.rows:
        raise DiptychError(f"{path}: no rows")
    return table


def _read_json_rows(path: Path, key: str | None) -> Table:
    with _open(path) as file:
        lines = _lines(file, path) if kind_of(path) == "lines" else None
        if lines is not None:
            rows: list[Row] = []
            numbers: list[int] = []
            while part := list(islice(lines, LINES_AT_ONCE)):
                rows += _parse_lines(part, path)
                numbers += [number for number, _ in part]
            return Table(path, rows, numbers)
    document, name = read_json(path), ""
    if isinstance(document, dict):
        if key is None or key not in document:
            expected = f"a field '{key}'" if key else "a list of rows"
            raise DiptychError(f"{path}: expected {expected}{nearest(key or '', document) if key else ''}")
        document, name = document[key], key
    if not isinstance(document, list):
        raise DiptychError(f"{path}: expected a list of rows{f' in {name}' if name else ''}, got {_short(document)}")
    for i, row in enumerate(document):
        if not isinstance(row, dict):
            raise DiptychError(f"{path}, {name}[{i}]: expected an object, got {_short(row)}")
    return Table(path, document, lambda i: f"{path}, {name}[{i}]")


def kind_of(path: Path) -> str:
    """``lines`` if the file holds one JSON object a line, whatever its name says, else ``document``."""
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
        for _, line in _lines(file, path):  # before the csv reader, which reads a line whole
            largest = max(largest, len(line))
    csv.field_size_limit(max(largest + 1, 131072))
    with path.open(encoding="utf-8", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(reader)
            if len(set(header)) != len(header):
                raise DiptychError(f"{path}, line 1: a column name twice in the header")
            rows, numbers = [], []
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise DiptychError(f"{path}, line {reader.line_num}: {len(values)} values for {len(header)} columns")
                rows.append(dict(zip(header, values, strict=True)))
                numbers.append(reader.line_num)
        except csv.Error as error:
            raise DiptychError(f"{path}, line {reader.line_num}: {error}") from None
        except UnicodeDecodeError as error:
            raise DiptychError(f"{path}, line {reader.line_num + 1}: not UTF-8 ({error.reason}); save it as UTF-8") from None
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


def match(
    have: Mapping[str, Any] | Sequence[str], want: Mapping[str, Any] | Sequence[str], of: Table | Path, against: Table | Path
) -> None:
    """Refuses ids of ``against`` without one in ``of``, and the other way round: n must be what both files say."""
    of_path, against_path = (t.path if isinstance(t, Table) else t for t in (of, against))
    having, wanted = set(have), set(want)
    for missing, where, other in ((wanted - having, of_path, against_path), (having - wanted, against_path, of_path)):
        if missing:
            place = ""
            if isinstance(of, Table) and where == against_path:
                first = next((i for i, each in enumerate(have) if each in missing), None)
                place = f"{of.where(first)}: " if first is not None and len(of) == len(have) else ""
            some = ", ".join(sorted(missing)[:3]) + (" …" if len(missing) > 3 else "")
            raise DiptychError(f"{place}{len(missing)} of the {len(wanted | having)} ids are in {other} but not in {where}: {some}")


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
