"""Benchmarks' own files: rows of JSON, JSON lines, tables and Parquet, each with its place for error messages, and pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.capabilities import Image
from diptych.core.errors import DiptychError, nearest
from diptych.data.image import SUFFIXES, decode
from diptych.data.source import BrokenItem
from diptych.data.storage import files


@dataclass(frozen=True)
class Crop:
    """A part of a picture: x, y, width, height in pixels."""

    path: str
    box: tuple[int, int, int, int]


Shown = Image | str | bytes | Crop  # pixels, the path of a file, the file's bytes, or a part of a file


def pixels(shown: Shown, item: str) -> Image:
    """The picture. DiptychError names the item and what is wrong with it."""
    if isinstance(shown, np.ndarray):
        return shown
    if isinstance(shown, Crop):
        x, y, width, height = shown.box
        part = pixels(shown.path, item)[max(0, y) : y + height, max(0, x) : x + width]
        if not part.size:
            raise DiptychError(f"{shown.path} of item {item}: the box {shown.box} lies outside the picture")
        return part
    try:
        return decode(files.read(shown) if isinstance(shown, str) else shown, item)
    except (BrokenItem, OSError) as error:
        raise DiptychError(f"{shown if isinstance(shown, str) else 'picture'} of item {error}") from error


class Row(dict[str, Any]):
    """One row of a file, which knows where it stands."""

    where: str

    def need(self, *names: str, kind: type | tuple[type, ...] = object) -> Any:
        """The first of the fields that is there; DiptychError with file, line and field if none is or it is of another kind."""
        for name in names:
            if self.get(name) is not None:
                value = self[name]
                if not isinstance(value, kind):
                    kinds = kind if isinstance(kind, tuple) else (kind,)
                    expected = " or ".join(k.__name__ for k in kinds)
                    raise DiptychError(f"{self.where}: field '{name}': expected {expected}, found {type(value).__name__}")
                return value
        raise DiptychError(
            f"{self.where}: no field '{' or '.join(names)}'{nearest(names[0], self)}; it has {', '.join(self) or 'none'}"
        )

    def text(self, *names: str) -> str:
        value = self.need(*names, kind=(str, int, float))
        return str(value).strip()


def rows(path: str, inside: str = "") -> list[Row]:
    """Rows of a .jsonl, .csv, .tsv or .parquet file, or of a .json: a list, the list ``inside``, or an object of objects, which
    get their key as ``id``. POPE's .json files hold JSON lines: those are understood too."""
    from diptych.benchmarks.inputs import kind_of, read_rows

    file = Path(path)
    if file.suffix.lower() != ".json" or kind_of(file) == "lines":
        table = read_rows(file)
        return [_row(fields, table.where(i)) for i, fields in enumerate(table.rows)]
    return rows_in(content(path), path, inside)


def rows_in(whole: Any, path: str, inside: str = "") -> list[Row]:
    """The rows of a .json that was read."""
    if isinstance(whole, dict) and isinstance(whole.get(inside), list):
        whole = whole[inside]
    if isinstance(whole, dict):
        whole = [{"id": key, **one} if isinstance(one, dict) else one for key, one in whole.items()]
    if not isinstance(whole, list):
        raise DiptychError(f"{path}: expected a list{f' or the list {inside!r}' if inside else ''}, found {type(whole).__name__}")
    for number, one in enumerate(whole):
        if not isinstance(one, dict):
            raise DiptychError(f"{path}, entry {number}: expected an object, found {type(one).__name__}")
    return [_row(one, f"{path}, entry {number}") for number, one in enumerate(whole)]


def content(path: str) -> Any:
    """A whole .json file."""
    from diptych.benchmarks.inputs import read_json

    return read_json(Path(path))


def _row(fields: dict[str, Any], where: str) -> Row:
    row = Row(fields)
    row.where = where
    return row


def embedded(value: Any, where: str) -> bytes:
    """Bytes of a picture in a cell: as such, as ``{"bytes": …}``, or in base64."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(str(value).partition("base64,")[2] or str(value), validate=True)
    except ValueError:
        raise DiptychError(f"{where}: field 'image': expected a picture in base64") from None


class Pictures:
    """Finds the files of pictures by the names in a benchmark: under ``directory``, else beside the benchmark's file."""

    def __init__(self, directory: str, file: str):
        self.places = [directory] if directory else [files.parent(file), files.join(files.parent(file), "images")]
        self.file = file

    def path(self, name: str, where: str = "") -> str:
        for place in self.places:
            for ending in ("", *SUFFIXES) if "." not in name[-5:] else ("",):
                if files.exists(path := files.join(place, f"{name}{ending}")):
                    return path
        raise DiptychError(
            f"{where or self.file}: there is no picture '{name}' in {' or '.join(self.places)}; say where: &images=DIRECTORY"
        )


def limited(found: Iterable[Any], n: int) -> list[Any]:
    """The first n; all if n is 0."""
    kept: list[Any] = []
    for one in found:
        if n and len(kept) == n:
            break
        kept.append(one)
    return kept


def unique(ids: Iterable[str], path: str, what: str = "item") -> None:
    """DiptychError if one occurs twice: records are kept by it."""
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            raise DiptychError(f"{path}: {what} '{one}' occurs twice")
        seen.add(one)


def by_id(found: Iterable[Row], key: str, path: str) -> dict[str, Row]:
    """Rows by a field that tells them apart."""
    table: dict[str, Row] = {}
    for row in found:
        name = row.text(key)
        if name in table:
            raise DiptychError(f"{row.where}: field '{key}': {name} occurs twice")
        table[name] = row
    return table
