"""``csv:`` and ``jsonl:``: a table with a column of image paths and a column of captions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from diptych.core.errors import DiptychError
from diptych.data.source import Problem
from diptych.data.sources.base import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    Entry,
    ListedSource,
    file_column,
    split_key,
    texts,
    word_column,
)
from diptych.data.storage import files
from diptych.data.storage.separated import records

CAPTION = ("caption", CAPTION_COLUMNS)  # an option, and the usual names of its column
JSONL = (".jsonl", ".ndjson")
HEAD = 65536  # characters that show what a .json holds
Row = tuple[int, dict[str, Any]]  # line number in the file, fields


class Table(ListedSource):
    """Rows of a .csv, .tsv or .jsonl file, or of a .json with a list of objects (globs allowed); paths are relative to the file.

    Other columns go to ``extra``. A cell of captions may hold a list as JSON or Python writes it; of objects,
    ``?caption=COLUMN.KEY`` names the text. Rows with the same image are one sample.
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
    columns, rows = read_rows(url, problems, name)
    image = file_column(columns, paths, image, rows[0][1] if rows else {}, url)
    caption, key = split_key(columns, word_column(columns, words, caption, url))
    for line, row in rows:
        path = row.pop(image, None)
        if not isinstance(path, str) or not path.strip():
            problems.append(Problem(f"{name}:{line}", f"no path in column '{image}'"))
            continue
        path = files.slashed(path, files.parent(url))
        item = files.named(path, prefix, url)
        try:
            captions = texts(row.pop(caption, None), key, names=words[0] != CAPTION[0])
        except ValueError as error:
            problems.append(Problem(item, f"{name}:{line}: {error}"))
            continue
        yield Entry(item, files.join(files.parent(url), path.strip()), captions, row)


def read_rows(url: str, problems: list[Problem], name: str = "") -> tuple[list[str], list[Row]]:
    """Column names and rows of a table of any kind, by the ending of its name."""
    if url.lower().endswith(JSONL):
        return read_jsonl(url)
    return read_json(url) if url.lower().endswith(".json") else read_csv(url, problems, name)


def read_csv(url: str, problems: list[Problem], name: str = "") -> tuple[list[str], list[Row]]:
    """Column names and rows of a file separated by comma, semicolon, tab or bar: what its first line has most of. name: of the file
    in ``problems``, if it is not the URL's last part.

    A field in quotes ends at a quote that is followed by a delimiter or a line end, and may hold several lines (RFC 4180). A field
    that only begins with a quote, ``"Summer" by the lake``, is taken as it is written. If the quote is never closed, or the next
    rows would become part of the field, that is recorded too, and the rows are kept.
    """
    text = files.read_text(url).replace("\r\n", "\n").replace("\r", "\n")
    header = text.lstrip().partition("\n")[0]
    delimiter = "\t" if url.lower().endswith(".tsv") else max(",;\t|", key=header.count)
    name = name or files.name(url)
    rows: list[Row] = []
    columns: list[str] = []
    for line, fields, open_quote in records(text, delimiter):
        if not any(f.strip() for f in fields):
            continue
        if open_quote:
            problems.append(Problem(f"{name}:{line}", "a quote opens and is not closed; it was read as part of the text"))
        if not columns:
            columns = [f.strip() for f in fields]
        elif len(fields) > len(columns):
            reason = f"{len(fields)} fields, the header has {len(columns)}: quote texts that hold '{delimiter}'"
            problems.append(Problem(f"{name}:{line}", reason))
        else:
            rows.append((line, {c: _cell(f) for c, f in zip(columns, fields, strict=False)}))
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


def read_json(url: str) -> tuple[list[str], list[Row]]:
    """All keys and all rows of a .json with a list of objects, or with one object a line. The rows of a list are numbered
    from 0.
    """
    text = files.read_text(url)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(_parsed(text.lstrip().partition("\n")[0]), dict):
            return read_jsonl(url)
        raise DiptychError(f"{url}: broken JSON: {error}") from error
    if isinstance(content, dict):
        lists = isinstance(content.get("images"), list)
        if lists and isinstance(content.get("annotations"), list):
            raise DiptychError(f"{url}: expected rows; it is a COCO file: give coco:{url}")
        check_scheme(text, url, "rows", "jsonl")
        content = [content]
    if not isinstance(content, list):
        raise DiptychError(f"{url}: expected a list of JSON objects {{…}}, found {type(content).__name__}")
    for number, row in enumerate(content):
        if not isinstance(row, dict):
            raise DiptychError(f"{url}, entry {number}: expected a JSON object {{…}}, found {type(row).__name__}")
    return _keys(content), list(enumerate(content))


def scheme_of_json(text: str) -> str:
    """The scheme that reads a .json, from its beginning: ``llava``, ``chat``, ``karpathy``, ``jsonl`` (a list of objects, or one a
    line), else ``coco``.
    """
    text = text.lstrip()
    talks = re.search(r'"(conversations|messages)"\s*:', text) is not None
    if text.startswith("["):
        return "llava" if talks else "jsonl"
    first, _, rest = text.partition("\n")
    if rest.lstrip().startswith("{") and isinstance(_parsed(first), dict):
        return "chat" if talks else "jsonl"
    return "karpathy" if re.search(r'"sentences"\s*:\s*\[\s*\{', text) else "coco"


def check_scheme(text: str, place: str, expected: str, scheme: str) -> None:
    """DiptychError, with the address to give, for a .json that another scheme reads. expected: what was looked for."""
    other = scheme_of_json(text[:HEAD])
    if other not in (scheme, "coco"):
        what = {"jsonl": "rows with images and captions", "karpathy": "one of Karpathy's files"}.get(other, "conversations")
        raise DiptychError(f"{place}: expected {expected}; it holds {what}: give {other}:{place}")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


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
