"""``csv:`` and ``jsonl:``: a table with a column of image paths and a column of captions."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from diptych.core.errors import DiptychError
from diptych.data.source import Problem
from diptych.data.sources.base import CAPTION_COLUMNS, IMAGE_COLUMNS, Entry, ListedSource, column, texts
from diptych.data.storage import files

CAPTION = ("caption", CAPTION_COLUMNS)  # an option, and the usual names of its column
Row = tuple[int, dict[str, Any]]  # line number in the file, fields


class Table(ListedSource):
    """Rows of a .csv, .tsv or .jsonl file (globs allowed); paths are relative to the file.

    Other columns go to ``extra``. A cell of captions may hold a JSON list. Rows with the same image are one sample.
    """

    looked_for = "rows with an image path and a caption"

    def __init__(self, place: str, *, image: str | None = None, caption: str | None = None):
        self.image, self.caption = image, caption
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        urls = files.matching(self.place)
        for url, prefix in zip(urls, files.prefixes(urls), strict=True):
            yield from table_entries(url, self.problems, image=self.image, caption=self.caption, prefix=prefix)


def table_entries(
    url: str,
    problems: list[Problem],
    image: str | None = None,
    caption: str | None = None,
    paths: tuple[str, ...] = IMAGE_COLUMNS,
    words: tuple[str, tuple[str, ...]] = CAPTION,
    prefix: str = "",
) -> Iterator[Entry]:
    """An entry for each row of one file; rows that cannot be used are added to ``problems``.

    image, caption: columns chosen by the user. paths: usual names of the column of paths; words: the option that names the column
    of texts, and its usual names. prefix: what tells the file's paths from those of other files (``files.prefixes``). DiptychError
    if there is no such column.
    """
    name = prefix + files.name(url)
    columns, rows = read_jsonl(url) if url.endswith((".jsonl", ".ndjson")) else read_csv(url, problems, name)
    image = column(columns, paths, image, "image", url)
    caption = column(columns, words[1], caption, words[0], url)
    for line, row in rows:
        path = row.pop(image, None)
        if not isinstance(path, str) or not path.strip():
            problems.append(Problem(f"{name}:{line}", f"no path in column '{image}'"))
            continue
        where = files.join(files.parent(url), path.strip())
        yield Entry(files.named(path, prefix, url), where, texts(row.pop(caption, None)), row)


def read_csv(url: str, problems: list[Problem], name: str = "") -> tuple[list[str], list[Row]]:
    """Column names and rows of a file separated by comma, semicolon, tab or bar: what its first line has most of. name: of the file
    in ``problems``, if it is not the URL's last part.
    """
    text = files.read_text(url)
    header = text.lstrip().partition("\n")[0]
    delimiter = "\t" if url.endswith(".tsv") else max(",;\t|", key=header.count)
    csv.field_size_limit(100_000_000)  # the standard limit of 128 kB stops at one long caption
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[Row] = []
    columns: list[str] = []
    try:
        for fields in reader:
            if not any(f.strip() for f in fields):
                continue
            if not columns:
                columns = [f.strip() for f in fields]
            elif len(fields) > len(columns):
                reason = f"{len(fields)} fields, the header has {len(columns)}: quote texts that hold '{delimiter}'"
                problems.append(Problem(f"{name or files.name(url)}:{reader.line_num}", reason))
            else:
                rows.append((reader.line_num, {c: _cell(f) for c, f in zip(columns, fields, strict=False)}))
    except csv.Error as error:
        raise DiptychError(f"{url}, line {reader.line_num}: {error}") from error
    return columns, rows


def _cell(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        try:
            return json.loads(text)
        except ValueError:
            pass
    return text


def read_jsonl(url: str) -> tuple[list[str], list[Row]]:
    """All keys and all rows of a file with one JSON object a line."""
    rows: list[Row] = []
    for number, line in enumerate(files.read_text(url).split("\n"), 1):  # splitlines would also cut at U+2028
        if line.strip():
            rows.append((number, json_object(line, f"{url}, line {number}")))
    return _keys(row for _, row in rows), rows


def _keys(rows: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object, or a DiptychError that says where it is broken."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DiptychError(f"{where}: broken JSON: {error}") from error
    if not isinstance(value, dict):
        raise DiptychError(f"{where}: expected a JSON object {{…}}, found {type(value).__name__}")
    return value
