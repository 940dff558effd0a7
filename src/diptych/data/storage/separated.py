"""The records of a text in which a delimiter separates fields: what spreadsheets write, and what people write by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator

_FILE = re.compile(r"\S+\.\w{2,5}")  # a cell that names a file


def records(text: str, delimiter: str) -> Iterator[tuple[int, list[str], bool]]:
    """(number of its first line, fields, whether a quote in it opens and is not closed) of each record. Lines end with ``\\n``.

    Every line is part of exactly one record.
    """
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        if '"' not in lines[at]:  # nearly all lines
            yield at + 1, lines[at].split(delimiter), False
            at += 1
            continue
        fields, end, open_quote = _quoted_record(lines, at, delimiter)
        yield at + 1, fields, open_quote
        at = end + 1


def _quoted_record(lines: list[str], first: int, delimiter: str) -> tuple[list[str], int, bool]:
    """Fields of the record that begins at a line, its last line, and whether a quote was left open."""
    fields: list[str] = []
    open_quote = False
    line, place = first, 0
    while True:
        here = lines[line]
        start = len(here) - len(here[place:].lstrip(" "))
        taken = _in_quotes(lines, line, start, delimiter) if here[start : start + 1] == '"' else None
        if taken and taken[1] > line and any(_like_a_row(fields, other, delimiter) for other in lines[line + 1 : taken[1] + 1]):
            taken = None  # a quote of a later row would close this one
            open_quote = True
        elif not taken and here[start : start + 1] == '"' and '"' not in here[start + 1 :]:
            open_quote = True
        if taken:
            field, line, place = taken
        else:
            end = here.find(delimiter, place)
            field, place = (here[place:], len(here)) if end < 0 else (here[place:end], end)
        fields.append(field)
        if place >= len(lines[line]):
            return fields, line, open_quote
        place += 1  # the delimiter


def _in_quotes(lines: list[str], line: int, start: int, delimiter: str) -> tuple[str, int, int] | None:
    """A field in quotes that begins at a place of a line: its text, and the line and place after it. None if the quote that ends it
    is followed by more text, or there is none.
    """
    parts: list[str] = []
    place = start + 1
    while True:
        end = lines[line].find('"', place)
        if end < 0:
            parts += [lines[line][place:], "\n"]
            line, place = line + 1, 0
            if line == len(lines):
                return None
        elif lines[line][end + 1 : end + 2] == '"':  # two stand for one
            parts.append(lines[line][place : end + 1])
            place = end + 2
        else:
            parts.append(lines[line][place:end])
            after = end + 1
            while lines[line][after : after + 1] == " " and delimiter != " ":
                after += 1
            closed = after == len(lines[line]) or lines[line][after] == delimiter
            return ("".join(parts), line, after) if closed else None


def _like_a_row(fields: list[str], line: str, delimiter: str) -> bool:
    """Whether a line within a field in quotes looks like a row of its own: it names a file where this record does."""
    cells = line.split(delimiter)
    return any(_FILE.fullmatch(a.strip()) and _FILE.fullmatch(b.strip()) for a, b in zip(fields, cells, strict=False))
