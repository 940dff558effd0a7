"""``folder:``: image files, each with a .txt or .json next to it, or all named in one table at the top."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from diptych.core.errors import DiptychError
from diptych.data.image import SUFFIXES
from diptych.data.source import Problem
from diptych.data.sources.base import CAPTION_COLUMNS, IMAGE_COLUMNS, Entry, ListedSource, texts
from diptych.data.sources.table import json_object, table_entries
from diptych.data.storage import files

TABLES = ("captions.jsonl", "metadata.jsonl", "captions.csv", "metadata.csv")


class Folder(ListedSource):
    """All images below a directory.

    Next to ``a.jpg``: ``a.txt`` with one caption per line, or ``a.json`` with ``caption`` or ``captions`` (other keys go
    to ``extra``). Or, at the top, one of ``TABLES`` with the columns ``image`` or ``file_name``, and a caption.
    """

    looked_for = f"images ({' '.join(SUFFIXES)}) with a caption in a .txt or .json of the same name, or in {TABLES[0]}"

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        if not files.is_directory(self.place):
            raise DiptychError(f"{self.place}: there is no such directory")
        result = files.find(self.place)
        images = [path for path in result if path.lower().endswith(SUFFIXES)]
        yield from beside_or_in_table(self.place, images, result, self.problems)


def beside_or_in_table(
    directory: str, items: list[str], found: list[str], problems: list[Problem], paths: tuple[str, ...] = IMAGE_COLUMNS
) -> Iterator[Entry]:
    """An entry for each of ``items`` with its texts: of the table at the top, if there is one, otherwise of the files next to it.

    items, found: paths of the items that need captions, and of all files, relative to the directory. paths: usual names of the
    table's column of paths. Items without texts, and items that the table does not name, are added to ``problems``.
    """
    table = next((t for t in TABLES if t in found), None)
    if table:
        named = set()
        for entry in table_entries(files.join(directory, table), problems, paths=paths):
            named.add(entry.id)
            yield entry
        problems += [Problem(path, f"not named in {table}") for path in items if path not in named]
        return
    known = set(found)

    def entry_of(path: str) -> Entry | Problem:
        """The entry of one item with the texts of its files, or the problem if one of them cannot be read."""
        stem = str(PurePosixPath(path).with_suffix("")) if path in known else path  # a folder has no suffix
        beside = [stem + suffix for suffix in (".txt", ".json") if stem + suffix in known]
        try:
            captions, extra = captions_of({b: files.read_text(files.join(directory, b)) for b in beside})
        except DiptychError as error:
            return Problem(path, str(error))
        return Entry(path, files.join(directory, path), captions, extra)

    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(entry_of, items):
            if isinstance(result, Problem):
                problems.append(result)
            else:
                yield result


def captions_of(beside: dict[str, str]) -> tuple[list[str], dict[str, Any]]:
    """Captions and extras in the texts that belong to one image, by name: .txt, .json. DiptychError for broken JSON."""
    captions: list[str] = []
    extra: dict[str, Any] = {}
    for name, text in beside.items():
        if name.endswith(".json"):
            extra = json_object(text, name)
            key = next((k for k in CAPTION_COLUMNS if k in extra), None)
            captions += texts(extra.pop(key)) if key else []
        else:
            captions += [line for line in re.split(r"[\r\n]+", text) if line.strip()] or [""]
    return captions, extra
