"""``classes:``: images with one class each, in class folders, in a table, or in a folder with a table."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath

from diptych.core.errors import DiptychError, counted
from diptych.core.sample import Label, class_text
from diptych.data.image import CONVERT, SUFFIXES, UNREAD
from diptych.data.source import Problem
from diptych.data.sources.base import PARTS, Entry
from diptych.data.sources.classes.synsets import TABLES as SYNSET_TABLES
from diptych.data.sources.classes.synsets import are_synsets, synset_names
from diptych.data.sources.parquet import CellSource, open_parquet, parquet_entries
from diptych.data.sources.table import JSONL, json_object, read_rows, table_entries
from diptych.data.storage import files

SEVERAL_COLUMNS = ("labels", "classes", "categories", "tags")  # of classes, perhaps more than one
LABEL_COLUMNS = ("label", "class", "class_name", "category", "species", "target", "fine_label", *SEVERAL_COLUMNS)
LABEL = ("label", LABEL_COLUMNS)
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of a folder of images, as ``datasets`` reads it (imagefolder)
_SPLITS = {*PARTS, "val", "valid", "dev"}


class Classes(CellSource):
    """A directory with a folder for each class, a .csv, .tsv, .jsonl or .parquet file (globs allowed) with columns of images and of
    classes, or a directory with such a table (``METADATA``).

    Folders may be nested: the class is the folder directly below the directory. Folders that are called like synsets, n01440764,
    get the names of a table in the directory or above it (``synset_names``). In Parquet, images may be bytes, and classes
    numbers of a ``ClassLabel``. Samples have an image, its ``Label`` and one caption, the class name in place of ``{}`` in
    ``template`` (underscores become spaces). ``classes``: names of the classes of the whole source, sorted, in every split; a
    label's index is into it.
    image, label: columns of the table.
    """

    looked_for = f"images ({' '.join(SUFFIXES)}) in class folders, or rows with an image and a class"

    def __init__(self, place: str, *, image: str | None = None, label: str | None = None, template: str = "a photo of a {}"):
        if "{}" not in template:
            raise DiptychError(f"classes:{place}: template '{template}' has no {{}} where the class name goes")
        self.image, self.label, self.template = image, label, template
        self._class_of: dict[str, str] = {}  # of each image met, by id
        super().__init__(place)
        names = {entry.id: self._class_of[entry.id] for entry in self._entries}
        self.classes = sorted(set(names.values()))
        numbers = {name: index for index, name in enumerate(self.classes)}
        for entry in self._entries:
            name = names[entry.id]
            entry.fields["label"] = Label(numbers[name], name)
        self.fields = self._fields()
        del self._class_of

    def caption(self, name: str) -> str:
        """The caption of a class."""
        return self.template.replace("{}", class_text(name))

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        if files.is_directory(self.place):
            table = self._table()
            result = self._from_tables(table) if table else self._from_folders()
        else:
            result = self._from_tables(self.place)
        for entry, name in result:
            first = self._class_of.setdefault(entry.id, name)
            if first != name:
                self.problems.append(Problem(entry.id, f"of class '{name}' too; kept the first, '{first}'"))
                continue
            entry.captions = [self.caption(name)]
            yield entry

    def _table(self) -> str:
        """The table of classes at the top of the directory; "" if there is none, or it has no column of classes. Where there are
        class folders, too, tags are no classes.
        """
        name = next((name for name in METADATA if files.exists(files.join(self.place, name))), "")
        if not name:
            return ""
        url = files.join(self.place, name)
        columns = columns_of(url)
        known = {c.lower() for c in columns} & set(LABEL_COLUMNS)
        folders = {path.partition("/")[0] for path in files.find(self.place) if path.lower().endswith(SUFFIXES) and "/" in path}
        if self.label is not None or known - set(SEVERAL_COLUMNS if len(folders) > 1 else ()):
            if len(folders) > 1:
                _note(f"classes:{self.place}: the classes are those of {name}, not the {len(folders)} folders")
            return url
        if len(folders) < 2:
            raise DiptychError(
                f"classes:{self.place}: no class folders, and {name} has no column of classes (looked for "
                f"{', '.join(LABEL_COLUMNS)}); columns: {', '.join(columns)}; name yours with ?label=NAME"
            )
        return ""

    def _parts(self, text: str, column: str) -> list[str]:
        """The classes in a text of a column."""
        return divided(text) if column.lower() in SEVERAL_COLUMNS else [text]

    def _from_folders(self) -> Iterator[tuple[Entry, str]]:
        folders = files.subfolders(self.place)
        if not folders:
            raise DiptychError(
                f"classes:{self.place}: has no class folders; put the images of each class into a folder of their own, or "
                "read images "
                f"with captions by folder:{self.place}"
            )
        if set(map(str.lower, folders)) <= _SPLITS:
            raise DiptychError(
                f"classes:{self.place}: its folders are parts of a data set ({', '.join(folders)}), not classes; "
                f"give one of them: classes:{self.place}/{folders[0]}"
            )
        names = self._names(folders)
        empty = dict.fromkeys(folders)
        for path in files.find(self.place):
            if (suffix := PurePosixPath(path.lower()).suffix) in UNREAD:
                self.problems.append(Problem(path, f"{UNREAD[suffix]} {CONVERT}"))
            elif path.lower().endswith(SUFFIXES):
                name, slash, _ = path.partition("/")
                if slash:
                    empty.pop(name, None)
                    yield Entry(path, files.join(self.place, path), []), names.get(name, name)
                else:
                    self.problems.append(Problem(path, "in no class folder"))
        self.problems += [Problem(f"{name}/", "a class folder without images") for name in empty]

    def _names(self, folders: list[str]) -> dict[str, str]:
        """The names of folders that are synsets, with a note if there are none."""
        if not are_synsets(folders):
            return {}
        names, table = synset_names(self.place, folders)
        lacking = [folder for folder in folders if folder not in names]
        if not table:
            _note(
                f"classes:{self.place}: the folders are called like synsets ({folders[0]} …), and there is no table of their names "
                f"({', '.join(SYNSET_TABLES)}) in it or above it: the classes are called so too, which no model reads"
            )
        elif lacking:
            _note(f"classes:{self.place}: {table} has no name for {counted(len(lacking), 'folder')}: {', '.join(lacking[:5])}")
        return names

    def _from_tables(self, place: str) -> Iterator[tuple[Entry, str]]:
        several: list[tuple[str, list[str]]] = []
        total = 0
        for entry, names in self._rows(place):
            total += 1
            if len(names) == 1:
                yield entry, names[0]
            elif names:
                several.append((entry.id, names))
            else:
                self.problems.append(Problem(entry.id, "no class"))
        if 2 * len(several) > total:
            first, names = several[0]
            raise DiptychError(
                f"classes:{place}: {len(several):,} of {counted(total, 'row')} have several classes, such as {first}: "
                f"{', '.join(names[:5])}. An image has one class here; several at once are read by labels:{place}. Or name a "
                "column with the main class, ?label=NAME, or write one class in each row"
            )
        self.problems += [Problem(item, f"{len(names)} classes: {', '.join(names)}") for item, names in several]

    def _rows(self, place: str) -> Iterator[tuple[Entry, list[str]]]:
        """The rows of tables with the names of their classes."""
        in_folder = place != self.place
        if place.lower().endswith(".parquet"):
            rows = parquet_entries(place, self.problems, self.image, self.label, LABEL)
            columns = columns_of(files.matching(place)[0])
        else:
            urls = files.expand(place)
            if not urls or not files.exists(urls[0]):
                raise DiptychError(f"classes:{place}: there is no such directory or table")
            if wrong := [url for url in urls if not url.lower().endswith((".csv", ".tsv", ".json", *JSONL))]:
                raise DiptychError(
                    f"classes:{wrong[0]}: not a directory of class folders, and not a .csv, .tsv, .json, .jsonl or .parquet table"
                )
            rows = (
                entry
                for url, prefix in zip(urls, files.prefixes(urls), strict=True)
                for entry in table_entries(url, self.problems, self.image, self.label, words=LABEL, prefix=prefix)
            )
            columns = columns_of(urls[0])
        chosen = self.label or next((c for n in LABEL_COLUMNS for c in columns if c.lower() == n), "")
        named = set()
        for entry in rows:
            named.add(entry.id)
            given = [part for text in entry.captions for part in self._parts(text, chosen)]
            yield entry, list(dict.fromkeys(name for name in map(str.strip, given) if name))
        if in_folder:
            images = [path for path in files.find(self.place) if path.lower().endswith(SUFFIXES)]
            self.problems += [Problem(path, f"not named in {files.name(place)}") for path in images if path not in named]


def columns_of(url: str) -> list[str]:
    """Names of the columns of a table."""
    if url.lower().endswith(".parquet"):
        with files.open_file(url) as file:
            return list(open_parquet(file, url).schema_arrow.names)
    if url.lower().endswith(".json"):
        return read_rows(url, [])[0]
    first = files.read_text(url).lstrip().partition("\n")[0]  # without parsing all rows
    if url.lower().endswith(JSONL):
        return list(json_object(first, f"{url}, line 1")) if first else []
    delimiter = "\t" if url.lower().endswith(".tsv") else max(",;\t|", key=first.count)
    return [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]


def divided(text: str) -> list[str]:
    """``cat|dog``, ``cat; dog`` or ``cat, dog`` as several: by the first of these marks that is in it."""
    mark = next((mark for mark in "|;," if mark in text), None)
    return re.split(rf"\s*{re.escape(mark)}\s*", text) if mark else [text]


@cache
def _note(text: str) -> None:
    """Said once."""
    print(f"note: {text}", file=sys.stderr)
