"""``folder:``: image files, each with a .txt or .json next to it, or all named in one table at the top."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from diptych.core.errors import DiptychError
from diptych.data.image import CONVERT, SUFFIXES, UNREAD
from diptych.data.source import Problem
from diptych.data.sources.base import CAPTION_COLUMNS, IMAGE_COLUMNS, PARTS, Entry, ListedSource, texts
from diptych.data.sources.table import json_object, table_entries
from diptych.data.storage import files

TABLES = ("captions.jsonl", "metadata.jsonl", "captions.csv", "metadata.csv")
_ABOUT = re.compile(r"(read.?me|licen[cs]e|copying|notice)", re.IGNORECASE)  # texts about a folder


PART_FOLDERS = {"train": "train", "val": "validation", "valid": "validation", "dev": "validation"}
PART_FOLDERS |= {"validation": "validation", "test": "test"}


class Folder(ListedSource):
    """All images below a directory.

    Next to ``a.jpg``: ``a.txt`` with one caption per line, or ``a.json`` with ``caption`` or ``captions`` (other keys go
    to ``extra``). Or one of ``TABLES`` with the columns ``image`` or ``file_name``, and a caption: at the top for all, or in
    folders for what is below them. If the top has no table, and all images are in folders with tables that are called train,
    validation or test, these are the parts, not those by hash. Pictures that are not decoded (HEIC …), and texts without a
    picture, are problems.
    """

    looked_for = f"images ({' '.join(SUFFIXES)}) with a caption in a .txt or .json of the same name, or in {TABLES[0]}"
    _own_parts = False  # folders are the parts

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        if not files.is_directory(self.place):
            raise DiptychError(f"{self.place}: there is no such directory")
        result = files.find(self.place)
        images = [path for path in result if path.lower().endswith(SUFFIXES)]
        unread = {path: UNREAD[suffix] for path in result if (suffix := PurePosixPath(path.lower()).suffix) in UNREAD}
        tables = tables_of(result)
        self._own_parts = bool(tables) and all(
            path.partition("/")[0] in PART_FOLDERS and _table_for(path, tables) for path in images
        )
        if "" in tables:  # those that it names are refused when they are decoded
            images = sorted([*images, *unread])
        else:
            self.problems += [Problem(path, f"{kind} {CONVERT}") for path, kind in unread.items()]
            self.problems += lone_texts([*images, *unread], result, "picture")
        yield from by_file_or_in_table(self.place, images, result, self.problems)

    def split(self, name: str) -> ListedSource:
        """The folder of that name, if folders are the parts; else the part by hash."""
        if not self._own_parts or name not in PARTS or self.part is not None:
            return super().split(name)
        first = (entry.id.partition("/")[0] for entry in self._entries)
        return self._part_of(name, [i for i, folder in enumerate(first) if PART_FOLDERS.get(folder) == name])


def lone_texts(items: list[str], found: list[str], what: str) -> list[Problem]:
    """A problem for each .txt that has no item of its name, among the files that no table is for: its item may have an ending that
    is not read.
    """
    tables = tables_of(found)
    stems = {str(PurePosixPath(path).with_suffix("")) for path in items} | set(items)
    texts_alone = (p for p in found if p.endswith(".txt") and p[:-4] not in stems and not _table_for(p, tables))
    return [Problem(p, f"a text without a {what} of its name") for p in texts_alone if not _ABOUT.match(files.name(p))]


def tables_of(found: list[str]) -> dict[str, str]:
    """The tables among the files of a directory: folder → the first of ``TABLES`` in it. One at the top, "", is the only one."""
    tables: dict[str, str] = {}
    for name in TABLES:
        for path in found:
            folder, _, own = path.rpartition("/")
            if own == name:
                tables.setdefault(folder, path)
    return {"": tables[""]} if "" in tables else tables


def _table_for(path: str, tables: Mapping[str, str]) -> str | None:
    """The table of the nearest folder above a file."""
    folder = path
    while folder:
        folder = folder.rpartition("/")[0]
        if folder in tables:
            return tables[folder]
    return None


def by_file_or_in_table(
    directory: str, items: list[str], found: list[str], problems: list[Problem], paths: tuple[str, ...] = IMAGE_COLUMNS
) -> Iterator[Entry]:
    """An entry for each of ``items`` with its texts: of the table at the top or in a folder above it, if there is one, otherwise of
    the files next to it.

    items, found: paths of the items that need captions, and of all files, relative to the directory. paths: usual names of the
    table's column of paths. Items without texts, and items that the table does not name, are added to ``problems``.
    """
    tables = tables_of(found)
    named: dict[str, set[str]] = {}
    for folder, table in list(tables.items()):
        rows = table_entries(files.join(directory, table), problems, paths=paths, prefix=f"{folder}/" if folder else "")
        try:
            entries = list(rows)
        except DiptychError as error:
            if not folder:
                raise
            del tables[folder]  # a table of something else
            problems.append(Problem(table, str(error)))
            continue
        named[table] = {entry.id for entry in entries}
        yield from entries
    lone = []
    for path in items:
        above = _table_for(path, tables)
        if above is None:
            lone.append(path)
        elif path not in named[above]:
            problems.append(Problem(path, f"not named in {above}"))
    yield from _next_to(directory, lone, found, problems)


def _next_to(directory: str, items: list[str], found: list[str], problems: list[Problem]) -> Iterator[Entry]:
    """An entry for each item with the texts of the files next to it."""
    known = set(found)

    def entry_of(path: str) -> Entry | Problem:
        """The entry of one item with the texts of its files, or the problem if one of them cannot be read."""
        stem = str(PurePosixPath(path).with_suffix("")) if path in known else path  # a folder has no suffix
        text_files = [stem + suffix for suffix in (".txt", ".json") if stem + suffix in known]
        try:
            captions, extra = captions_of({b: files.read_text(files.join(directory, b)) for b in text_files})
        except (DiptychError, ValueError) as error:
            return Problem(path, str(error))
        return Entry(path, files.join(directory, path), captions, extra)

    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(entry_of, items):
            if isinstance(result, Problem):
                problems.append(result)
            else:
                yield result


def captions_of(text_files: dict[str, str]) -> tuple[list[str], dict[str, Any]]:
    """Captions and extras in the texts that belong to one image, by name: .txt, .json. DiptychError for broken JSON, ValueError for
    captions that are no texts.
    """
    captions: list[str] = []
    extra: dict[str, Any] = {}
    for name, text in text_files.items():
        if name.endswith(".json"):
            extra = json_object(text, name)
            key = next((k for k in CAPTION_COLUMNS if k in extra), None)
            captions += texts(extra.pop(key)) if key else []
        else:
            captions += [line for line in re.split(r"[\r\n]+", text) if line.strip()] or [""]
    return captions, extra
