"""``folder:``: image files, each with a .txt or .json beside it, or all named in one table at the top."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from diptych.core.errors import DiptychError
from diptych.data.image import SUFFIXES
from diptych.data.source import Problem
from diptych.data.sources.base import CAPTION_COLUMNS, Entry, ListedSource, texts
from diptych.data.sources.table import json_object, table_entries
from diptych.data.storage import files

TABLES = ("captions.jsonl", "metadata.jsonl", "captions.csv", "metadata.csv")


class Folder(ListedSource):
    """All images below a directory.

    Beside ``a.jpg``: ``a.txt`` with one caption a line, or ``a.json`` with ``caption`` or ``captions`` (other keys go
    to ``extra``). Or, at the top, one of ``TABLES`` with the columns ``image`` or ``file_name``, and a caption.
    """

    looked_for = f"images ({' '.join(SUFFIXES)}) with a caption in a .txt or .json of the same name, or in {TABLES[0]}"

    def entries(self) -> Iterator[Entry]:
        if not files.is_directory(self.place):
            raise DiptychError(f"{self.place}: there is no such directory")
        found = files.find(self.place)
        images = [path for path in found if path.lower().endswith(SUFFIXES)]
        table = next((t for t in TABLES if t in found), None)
        if table:
            yield from self._from_table(table, images)
        else:
            yield from self._from_neighbours(images, set(found))

    def _from_table(self, table: str, images: list[str]) -> Iterator[Entry]:
        named = set()
        for entry in table_entries(files.join(self.place, table), self.problems):
            named.add(entry.id)
            yield entry
        self.problems += [Problem(path, f"not named in {table}") for path in images if path not in named]

    def _from_neighbours(self, images: list[str], found: set[str]) -> Iterator[Entry]:
        def entry(path: str) -> Entry | Problem:
            stem = str(PurePosixPath(path).with_suffix(""))
            beside = [stem + suffix for suffix in (".txt", ".json") if stem + suffix in found]
            try:
                captions, extra = captions_of({b: files.read_text(files.join(self.place, b)) for b in beside})
            except DiptychError as error:
                return Problem(path, str(error))
            return Entry(path, files.join(self.place, path), captions, extra)

        with ThreadPoolExecutor(8) as pool:
            for result in pool.map(entry, images):
                if isinstance(result, Problem):
                    self.problems.append(result)
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
