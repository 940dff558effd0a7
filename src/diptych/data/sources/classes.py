"""``classes:``: images with one class each, in class folders or in a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from diptych.core.errors import DiptychError
from diptych.core.sample import Label, class_text
from diptych.data.image import CONVERT, SUFFIXES, UNREAD
from diptych.data.source import Problem
from diptych.data.sources.base import PARTS, Entry
from diptych.data.sources.parquet import CellSource, parquet_entries
from diptych.data.sources.table import JSONL, table_entries
from diptych.data.storage import files

LABEL_COLUMNS = ("label", "class", "class_name", "category", "species", "target", "fine_label")
LABEL = ("label", LABEL_COLUMNS)
_SPLITS = {*PARTS, "val", "valid", "dev"}


class Classes(CellSource):
    """A directory with a folder for each class, or a .csv, .tsv, .jsonl or .parquet file (globs allowed) with columns of images and
    of classes.

    Folders may be nested: the class is the folder directly below the directory. In Parquet, images may be bytes, and classes
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
        result = self._from_folders() if files.is_directory(self.place) else self._from_tables()
        for entry, name in result:
            first = self._class_of.setdefault(entry.id, name)
            if first != name:
                self.problems.append(Problem(entry.id, f"of class '{name}' too; kept the first, '{first}'"))
                continue
            entry.captions = [self.caption(name)]
            yield entry

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
        empty = dict.fromkeys(folders)
        for path in files.find(self.place):
            if (suffix := PurePosixPath(path.lower()).suffix) in UNREAD:
                self.problems.append(Problem(path, f"{UNREAD[suffix]} {CONVERT}"))
            elif path.lower().endswith(SUFFIXES):
                name, slash, _ = path.partition("/")
                if slash:
                    empty.pop(name, None)
                    yield Entry(path, files.join(self.place, path), []), name
                else:
                    self.problems.append(Problem(path, "in no class folder"))
        self.problems += [Problem(f"{name}/", "a class folder without images") for name in empty]

    def _from_tables(self) -> Iterator[tuple[Entry, str]]:
        if self.place.lower().endswith(".parquet"):
            rows = parquet_entries(self.place, self.problems, self.image, self.label, LABEL)
        else:
            urls = files.expand(self.place)
            if not urls or not files.exists(urls[0]):
                raise DiptychError(f"classes:{self.place}: there is no such directory or table")
            if wrong := [url for url in urls if not url.lower().endswith((".csv", ".tsv", ".json", *JSONL))]:
                raise DiptychError(
                    f"classes:{wrong[0]}: not a directory of class folders, and not a .csv, .tsv, .json, .jsonl or .parquet table"
                )
            rows = (
                entry
                for url, prefix in zip(urls, files.prefixes(urls), strict=True)
                for entry in table_entries(url, self.problems, self.image, self.label, words=LABEL, prefix=prefix)
            )
        for entry in rows:
            names = [name for name in map(str.strip, entry.captions) if name]
            if len(names) == 1:
                yield entry, names[0]
            else:
                self.problems.append(Problem(entry.id, "no class" if not names else f"{len(names)} classes: {', '.join(names)}"))
